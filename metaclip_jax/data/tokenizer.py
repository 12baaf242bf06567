"""Tokenizers: loading any tokenizer.json or CLIP's merges, and training our own.

    python -m metaclip_jax.data.tokenizer --dataset=DIR --vocab_size=N --output=FILE

trains a byte-level BPE tokenizer like CLIP's on a dataset's texts, or with
`--model=unigram` one like XLM-V's, as MetaCLIP 2 uses. Loading needs only the file and
the model's family: the names of the special tokens determine the ids of the marks and
the clean-up.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import flags, logging
from tokenizers import (
    models,
    normalizers,
    processors,
    trainers,
)

from metaclip_jax import files
from metaclip_jax.cli import command, differences
from metaclip_jax.data import bpe, unigram
from metaclip_jax.data.bpe import BOS, EOS
from metaclip_jax.data.clean_up import canonical, clean

PAD = "<|pad|>"
_Marks = tuple[str | None, str, str | None, str]
# (begin, end, pad, clean-up) of known tokenizers; the first whose tokens are all in a
# file is used. CLIP's vocabulary has no pad token and pads with id 0.
_MARKS: tuple[_Marks, ...] = (
    (BOS, EOS, PAD, "clip"),
    (BOS, EOS, None, "clip"),
    ("<s>", "</s>", "<pad>", "none"),  # XLM-V and its family
    (None, "</s>", "<pad>", "none"),  # mT5
)
# SigLIP's end mark is also its padding, although its vocabulary has a <pad> like mT5's.
# So the file alone cannot tell the two apart.
_MARKS_OF_FAMILY: dict[str, tuple[_Marks, ...]] = {
    "clip": _MARKS,
    "siglip": ((None, "</s>", "</s>", "canonical"), *_MARKS),
}
_SMALLEST_VOCABULARY = 2 * bpe.BYTES + 3  # each byte inside and at the end of a word
# Characters that a vocabulary may lack; it must then have an unknown token.
_RARE = "".join(map(chr, range(32, 127))) + " \u00e9 \u6771 \U0001f600 \U0010fffd"


class Tokenizer:
    """Encodes texts as padded token ids. It is thread-safe and can be pickled.

    Attributes:
      tokens: the number of tokens.
      vocab_size: the largest id + 1.
      bos_id, eos_id, pad_id: ids of the marks; bos_id is None without a begin mark.
      clean_up: "clip" (`clean`), "canonical" (`canonical`) or "none".
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int,
        pad_id: int,
        clean_up: str,
    ) -> None:
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.clean_up = clean_up
        # vocab_size exceeds the number of tokens if the ids have gaps.
        ids = backend.get_vocab(with_added_tokens=True).values()
        self.tokens, self.vocab_size = len(ids), 1 + max(ids)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        # CLIP pads with an ordinary token, which may occur in texts.
        added = backend.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        self._marks = {bos_id, eos_id} | ({pad_id} & special)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # pickling loses this

    @property
    def fingerprint(self) -> str:
        """The hex sha256 of everything that affects the ids."""
        facts = [self.bos_id, self.eos_id, self.pad_id, self.clean_up]
        # Exports add a post-processor for other libraries; it is not used here.
        used = json.loads(self._backend.to_str()) | {"post_processor": None}
        text = json.dumps([facts, used], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without marks, truncation and padding.

        A text such as "</s>" does not give the mark of that name, because the model
        pools a text at its first end mark.
        """
        if self.clean_up != "none":
            clean_up = clean if self.clean_up == "clip" else canonical
            texts = [clean_up(text) for text in texts]
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=False
        )
        ids = [encoding.ids for encoding in encodings]
        # Some vocabularies also have their marks as ordinary pieces.
        return [
            row
            if self._marks.isdisjoint(row)
            else [token for token in row if token not in self._marks]
            for row in ids
        ]

    def __call__(
        self, texts: Sequence[str], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts as (int32[n, context_length], bool[n]: which were truncated).

        A row is the begin mark, the text, the end mark and padding. A text that is too
        long is truncated before its end mark.
        """
        if context_length < 3:
            raise ValueError(
                f"context_length must be at least 3 (begin, a token, end), got "
                f"{context_length}"
            )
        head = [] if self.bos_id is None else [self.bos_id]
        room = context_length - len(head) - 1
        result = np.full((len(texts), context_length), self.pad_id, np.int32)
        truncated = np.zeros(len(texts), bool)
        for row, ids in enumerate(self.ids(texts)):
            truncated[row] = len(ids) > room
            tokens = [*head, *ids[:room], self.eos_id]
            result[row, : len(tokens)] = tokens
        return result, truncated

    def to_json(self) -> str:
        """Returns a tokenizer.json that `load` loads as this tokenizer."""
        return self._backend.to_str()

    def to_huggingface(self, context_length: int) -> dict[str, str]:
        """Returns transformers' tokenizer files by name, which give the same ids.

        They truncate to `context_length` tokens and add both marks. transformers does
        not apply `clean`; give it cleaned texts.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        bos = None if self.bos_id is None else backend.id_to_token(self.bos_id)
        eos = backend.id_to_token(self.eos_id)
        assert eos is not None  # the id was found by this token's name
        begin = [] if bos is None else [bos]
        marks = [*begin, eos]
        backend.post_processor = processors.TemplateProcessing(
            single=" ".join([*begin, "$A", eos]),
            special_tokens=[(mark, backend.token_to_id(mark)) for mark in marks],
        )
        # CLIP pads with an ordinary token, which decoding must not drop.
        pad = backend.id_to_token(self.pad_id) if self.pad_id in self._marks else eos
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "unk_token": eos if backend.token_to_id("<unk>") is None else "<unk>",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": backend.to_str(),
            "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True),
        }

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of a row of ids, up to the first end mark."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token not in (self.bos_id, self.pad_id):
                kept.append(int(token))
        return self._backend.decode(kept, skip_special_tokens=False).strip()


def load(source: str | os.PathLike, *, family: str) -> Tokenizer:
    """Loads the tokenizer of a model.

    Args:
      source: a tokenizer.json (trained here, or public, such as XLM-V's); CLIP's merges
        as a text file, gzipped or not; or "clip" for the merges file of an installed
        open_clip.
      family: the model's, "clip" or "siglip" (config.model.family).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a tokenizer, or its marks are unknown.
    """
    if family not in _MARKS_OF_FAMILY:
        raise ValueError(
            f"family must be one of {', '.join(_MARKS_OF_FAMILY)}, got {family!r}"
        )
    marks = _MARKS_OF_FAMILY[family]
    if os.fspath(source) == "clip":
        source = bpe.installed_clip_file()
    path = files.path(source) if source else None
    if path is None or not path.exists() or path.is_dir():
        raise FileNotFoundError(
            f"there is no tokenizer {os.fspath(source)!r}: wanted a tokenizer.json,"
            " CLIP's merges file or 'clip'; python -m metaclip_jax.data.tokenizer"
            " trains one"
        )
    data = path.read_bytes()
    if path.name.endswith((".txt", ".txt.gz")):
        backend = bpe.from_clip_file(data, os.fspath(source))
        return _checked(_with_marks(backend, source, marks), source)
    try:
        backend = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the Rust library raises plain Exception
        raise ValueError(
            f"{source} should be a tokenizer.json, but: {error}; train it again, or "
            "fetch it again"
        ) from error
    return _checked(_with_marks(backend, source, marks), source)


def _checked(loaded: Tokenizer, source: str | os.PathLike) -> Tokenizer:
    """Refuses a tokenizer with absurdly large ids, or that cannot encode all texts."""
    if loaded.vocab_size > 2 * loaded.tokens:
        raise ValueError(
            f"{source}: wanted ids up to about its {loaded.tokens} tokens, got"
            f" {loaded.vocab_size - 1}; fetch it again"
        )
    try:
        loaded.ids([_RARE])
    except Exception as error:  # the Rust library raises plain Exception
        raise ValueError(
            f"{source} cannot encode every text: {error}; fetch it again"
        ) from error
    return loaded


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE tokenizer like CLIP's; equal texts give an equal one.

    Unlike CLIP's, its words keep their combining marks (`bpe.WORDS`). Each byte has a
    token inside a word and one at the end of a word, so that no text has unknown
    tokens. The result has at most `vocab_size` tokens, and fewer if no
    other pair occurs twice. `load` reads its `to_str()` from a file.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size must be at least {_SMALLEST_VOCABULARY} (two tokens for each "
            f"byte and three marks), got {vocab_size}"
        )
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=bpe.END_OF_WORD))
    learner.pre_tokenizer = bpe.pre_tokenizer(bpe.WORDS)
    learner.train_from_iterator(
        (clean(text) for text in texts),
        trainers.BpeTrainer(
            # Includes the byte tokens and not the marks, so it gives enough merges.
            vocab_size=vocab_size,
            min_frequency=2,
            # On ties, pairs merge in the order of their ids. Without this, the ids of
            # bytes at the end of a word depend on a hash that differs in each run.
            special_tokens=[byte + bpe.END_OF_WORD for byte in bpe.alphabet()],
            initial_alphabet=bpe.alphabet(),
            end_of_word_suffix=bpe.END_OF_WORD,
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [(left, right) for left, right in learned]
    most = vocab_size - _SMALLEST_VOCABULARY
    trained = bpe.from_merges(merges[:most], marks=(BOS, EOS, PAD), words=bpe.WORDS)
    # For libraries without `clean`; it does not change cleaned texts.
    trained.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    return trained


def _with_marks(
    backend: tokenizers.Tokenizer, source: str | os.PathLike, marks: Sequence[_Marks]
) -> Tokenizer:
    for bos, eos, pad, clean_up in marks:
        bos_id = None if bos is None else backend.token_to_id(bos)
        eos_id = backend.token_to_id(eos)
        pad_id = 0 if pad is None else backend.token_to_id(pad)
        bos_fits = bos is None or bos_id is not None
        if bos_fits and eos_id is not None and pad_id is not None:
            return Tokenizer(
                backend, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, clean_up=clean_up
            )
    known = "; ".join(" ".join(filter(None, row[:3])) for row in marks)
    raise ValueError(
        f"{source} must have one of these sets of marks: {known}; give the tokenizer of"
        " a CLIP model"
    )


_TRAIN = {"bpe": train, "unigram": unigram.train}


def main(argv: Sequence[str]) -> None:
    """Trains a tokenizer on a dataset and writes it, unless the file is finished."""
    from metaclip_jax.data import records  # a slow import, of TFDS

    command.refuse_arguments(argv)
    values = flags.FLAGS
    dataset = records.open_dataset(values.dataset)
    if not len(dataset):
        raise ValueError(
            f"wanted texts to train on, but {values.dataset} has no records; the "
            "funnel in its data_card.json shows where they were dropped"
        )
    output = files.path(values.output)
    # The manifest is named after the file, because its folder may have other files.
    manifest = output.with_name(f"{output.stem}.manifest.json")
    # What the output depends on, without paths, so that folders may move.
    inputs = {
        "dataset": records.fingerprint(values.dataset),
        "model": values.model,
        "vocab_size": values.vocab_size,
        "records": values.records,
    }
    if output.exists():
        written = files.read_json(manifest) if manifest.exists() else None
        if written != inputs:
            other = f"there is no {manifest.name} that says how it was made"
            if written is not None:
                other = f"it is another one: {differences.describe(inputs, written)}"
            raise ValueError(
                f"{output} exists, but {other}; choose another file, or remove this one"
            )
        logging.info("%s is finished already", output)
        return
    read = records.evenly_spaced(dataset, values.records)
    texts = itertools.chain.from_iterable(record.texts for record in read)
    trained = _TRAIN[values.model](texts, values.vocab_size)
    # The manifest comes first, because the output's existence means it is finished.
    files.write_json(manifest, inputs)
    files.write_bytes(output, trained.to_str(pretty=True).encode())
    size = trained.get_vocab_size(with_added_tokens=True)
    logging.info("%s: %d tokens, of at most %d", output, size, values.vocab_size)


if __name__ == "__main__":
    # Defined here, because training imports this module and has its own flags.
    flags.DEFINE_string("dataset", None, "Dataset folder with the texts.")
    flags.DEFINE_integer(
        "vocab_size",
        None,
        f"Most tokens, at least {_SMALLEST_VOCABULARY}; few texts give fewer.",
        lower_bound=_SMALLEST_VOCABULARY,
    )
    flags.DEFINE_enum("model", "bpe", list(_TRAIN), "CLIP's kind, or XLM-V's.")
    flags.DEFINE_string("output", None, "File to write, for example tokenizer.json.")
    flags.DEFINE_integer(
        "records",
        1_000_000,
        "Most records to read, spaced evenly over the dataset.",
        lower_bound=1,
    )
    flags.mark_flags_as_required(["dataset", "vocab_size", "output"])
    command.run(main)
