"""Texts to token ids: CLIP's clean-up, any tokenizer.json, and training our own.

    python -m metaclip_jax.data.tokenizer --dataset=DIR --vocab_size=N --output=FILE

trains a byte-level BPE tokenizer like CLIP's on a dataset's texts. The file and the
model's family are all that is needed later: the ids of the marks and the clean-up
follow from the names of its special tokens.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
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
from metaclip_jax.cli import command
from metaclip_jax.data import bpe as bpes
from metaclip_jax.data import records
from metaclip_jax.data.bpe import BOS, EOS
from metaclip_jax.data.clean_up import canonical, clean

PAD = "<|pad|>"
_Marks = tuple[str | None, str, str | None, str]
# (begin, end, pad, clean-up) by which a tokenizer file is recognised, first fit wins.
# CLIP's own vocabulary has no pad token and pads with id 0.
_MARKS: tuple[_Marks, ...] = (
    (BOS, EOS, PAD, "clip"),
    (BOS, EOS, None, "clip"),
    ("<s>", "</s>", "<pad>", "none"),  # XLM-V and its family
    (None, "</s>", "<pad>", "none"),  # mT5
)
# SigLIP ends and pads with one mark, though its vocabulary has a pad as mT5's has: the
# file alone does not say which of the two it is.
_MARKS_OF_FAMILY: dict[str, tuple[_Marks, ...]] = {
    "clip": _MARKS,
    "siglip": ((None, "</s>", "</s>", "canonical"), *_MARKS),
}
_SMALLEST_VOCABULARY = 2 * bpes.BYTES + 3  # each byte inside and at the end of a word
_BATCH = 1_000  # texts at a time in training
# Characters of which a vocabulary may lack some, and then needs a token for the others.
_RARE = "".join(map(chr, range(32, 127))) + " \u00e9 \u6771 \U0001f600 \U0010fffd"


class Tokenizer:
    """Texts to padded token ids. Threads may share it, processes may pickle it.

    Attributes:
      tokens: how many there are.
      vocab_size: ids are below it.
      bos_id, eos_id, pad_id: ids of the marks; bos_id is None where there is none.
      clean_up: "clip" (`clean`), "canonical" (`canonical`) or "none".
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int,
        pad_id: int,
        clean_up: str,
    ) -> None:
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        self.clean_up = clean_up
        # More than there are tokens where the ids have gaps.
        ids = bpe.get_vocab(with_added_tokens=True).values()
        self.tokens, self.vocab_size = len(ids), 1 + max(ids)
        bpe.no_truncation()
        bpe.no_padding()
        bpe.encode_special_tokens = True
        self._bpe = bpe
        # CLIP pads with an ordinary token, which texts may hold.
        special = {i for i, t in bpe.get_added_tokens_decoder().items() if t.special}
        self._marks = {bos_id, eos_id} | ({pad_id} & special)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bpe.encode_special_tokens = True  # its pickle forgets this

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that decides about the ids, as hex."""
        facts = [self.bos_id, self.eos_id, self.pad_id, self.clean_up]
        # An export says how other libraries add the marks, which is not used here.
        used = json.loads(self._bpe.to_str()) | {"post_processor": None}
        text = json.dumps([facts, used], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, as many as it has, without marks.

        A text that spells a mark, like "</s>", does not give it: the model reads its
        output at the first end mark.
        """
        if self.clean_up != "none":
            clean_up = clean if self.clean_up == "clip" else canonical
            texts = [clean_up(text) for text in texts]
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        # Some models hold their marks as ordinary pieces too.
        return [
            row
            if self._marks.isdisjoint(row)
            else [token for token in row if token not in self._marks]
            for row in ids
        ]

    def __call__(
        self, texts: Sequence[str], context_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts as (int32[n, context_length], bool[n]: which were cut).

        A row is the begin mark, the text, the end mark and padding. A text that is too
        long loses its end, never its end mark.
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
        """Returns a tokenizer.json from which `load` makes this tokenizer again."""
        return self._bpe.to_str()

    def to_huggingface(self, context_length: int) -> dict[str, str]:
        """Returns the files by name with which transformers encodes as this does.

        Cut to `context_length` tokens, with both marks. transformers knows nothing of
        `clean`: on texts that it would change, give it cleaned ones.
        """
        bpe = tokenizers.Tokenizer.from_str(self._bpe.to_str())
        bos = None if self.bos_id is None else bpe.id_to_token(self.bos_id)
        eos = bpe.id_to_token(self.eos_id)
        assert eos is not None  # it was found by its name
        begin = [] if bos is None else [bos]
        bpe.post_processor = processors.TemplateProcessing(
            single=" ".join([*begin, "$A", eos]),
            special_tokens=[(mark, bpe.token_to_id(mark)) for mark in [*begin, eos]],
        )
        # CLIP's own pad is an ordinary token, which decoding should not lose.
        pad = bpe.id_to_token(self.pad_id) if self.pad_id in self._marks else eos
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "unk_token": eos if bpe.token_to_id("<unk>") is None else "<unk>",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": bpe.to_str(),
            "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True),
        }

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of a row of ids, as far as its end mark."""
        kept = []
        for token in ids:
            if token == self.eos_id:
                break
            if token not in (self.bos_id, self.pad_id):
                kept.append(int(token))
        return self._bpe.decode(kept, skip_special_tokens=False).strip()


def load(source: str | os.PathLike, *, family: str) -> Tokenizer:
    """Loads the tokenizer of a model.

    Args:
      source: a tokenizer.json (trained here, or a public one such as XLM-V's); CLIP's
        merges as a text file, gzipped or not; or "clip", which takes that file from
        an installed open_clip.
      family: the model's, "clip" or "siglip" (config.model.family).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no tokenizer, or has none of the marks known here.
    """
    if family not in _MARKS_OF_FAMILY:
        raise ValueError(
            f"family must be one of {', '.join(_MARKS_OF_FAMILY)}, got {family!r}"
        )
    marks = _MARKS_OF_FAMILY[family]
    if os.fspath(source) == "clip":
        source = bpes.installed_clip_file()
    path = files.path(source) if source else None
    if path is None or not path.exists() or path.is_dir():
        raise FileNotFoundError(
            f"there is no tokenizer {os.fspath(source)!r}: want a tokenizer.json,"
            " CLIP's merges file or 'clip'; python -m metaclip_jax.data.tokenizer"
            " trains one"
        )
    data = path.read_bytes()
    if path.name.endswith((".txt", ".txt.gz")):
        bpe = bpes.from_clip_file(data, os.fspath(source))
        return _checked(_with_marks(bpe, source, marks), source)
    try:
        bpe = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the Rust library raises plain Exception
        raise ValueError(
            f"{source} should be a tokenizer.json, but: {error}. Train it again, or "
            "fetch it again"
        ) from error
    return _checked(_with_marks(bpe, source, marks), source)


def _checked(loaded: Tokenizer, source: str | os.PathLike) -> Tokenizer:
    """Refuses ids that no table has rows for, and what cannot encode every text."""
    if loaded.vocab_size > 2 * loaded.tokens:
        raise ValueError(
            f"{source}: wanted ids of its {loaded.tokens} tokens from 0 on, got"
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
    """Trains a byte-level BPE tokenizer like CLIP's; the same texts give the same one.

    Every byte has a token inside a word and one at its end, so that no text is unknown.
    The result has at most `vocab_size` tokens, fewer where the texts hold no more pairs
    that occur twice; write its `to_str()` to a file and `load` that.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size must be at least {_SMALLEST_VOCABULARY} (two tokens for each "
            f"byte and three marks), got {vocab_size}"
        )
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=bpes.END_OF_WORD))
    learner.pre_tokenizer = bpes.pre_tokenizer()
    learner.train_from_iterator(
        (clean(text) for text in texts),
        trainers.BpeTrainer(
            # The bytes that the texts hold come in addition to the merges.
            vocab_size=vocab_size,
            min_frequency=2,
            # Equally frequent pairs are merged in the order of their ids, and those of
            # bytes that end a word would follow from a hash of each run's own.
            special_tokens=[byte + bpes.END_OF_WORD for byte in bpes.alphabet()],
            initial_alphabet=bpes.alphabet(),
            end_of_word_suffix=bpes.END_OF_WORD,
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [(left, right) for left, right in learned]
    most = vocab_size - _SMALLEST_VOCABULARY
    bpe = bpes.from_merges(merges[:most], marks=(BOS, EOS, PAD))
    # For readers that do not know `clean`; on cleaned texts it changes nothing.
    bpe.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    return bpe


def _with_marks(
    bpe: tokenizers.Tokenizer, source: str | os.PathLike, marks: Sequence[_Marks]
) -> Tokenizer:
    for bos, eos, pad, clean_up in marks:
        bos_id = None if bos is None else bpe.token_to_id(bos)
        eos_id = bpe.token_to_id(eos)
        pad_id = 0 if pad is None else bpe.token_to_id(pad)
        bos_fits = bos is None or bos_id is not None
        if bos_fits and eos_id is not None and pad_id is not None:
            return Tokenizer(
                bpe, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id, clean_up=clean_up
            )
    known = "; ".join(" ".join(filter(None, row[:3])) for row in marks)
    raise ValueError(
        f"{source} has none of the sets of marks known here ({known}); is it the "
        "tokenizer of a CLIP model?"
    )


def _dataset_texts(dataset: records.Dataset, most_records: int) -> Iterator[str]:
    """Yields the texts of records that are spread evenly over the dataset."""
    count = min(most_records, len(dataset))
    positions = np.arange(count) * len(dataset) // max(count, 1)
    for start in range(0, count, _BATCH):
        for data in records.read(dataset, positions[start : start + _BATCH]):
            yield from records.decode(data).texts


def _inputs(
    dataset: records.Dataset, vocab_size: int, most_records: int
) -> dict[str, object]:
    """What the output depends on; paths do not count, so that folders may move."""
    shards = records.read_shards(dataset.folder)
    return {
        "dataset": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
        "vocab_size": vocab_size,
        "records": most_records,
    }


def main(argv: Sequence[str]) -> None:
    """Trains a tokenizer on a dataset and writes it, unless that is done already."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    dataset = records.open_dataset(values.dataset)
    if not len(dataset):
        raise ValueError(
            f"wanted texts to learn from, but {values.dataset} holds no records; the "
            "funnel in its data_card.json says where they were lost"
        )
    output = files.path(values.output)
    # One manifest a file, beside it, since the folder may hold other things.
    manifest = output.with_name(f"{output.stem}.manifest.json")
    inputs = _inputs(dataset, values.vocab_size, values.records)
    if output.exists():
        made_from = files.read_json(manifest) if manifest.exists() else None
        if made_from != inputs:
            raise ValueError(
                f"{output} was made from {made_from or 'something unknown'}, wanted "
                f"{inputs}: choose another file, or remove this one"
            )
        logging.info("%s is finished already", output)
        return
    bpe = train(_dataset_texts(dataset, values.records), values.vocab_size)
    # First what it is made from: the file itself says that it is finished.
    files.write_json(manifest, inputs)
    files.write_bytes(output, bpe.to_str(pretty=True).encode())
    size = bpe.get_vocab_size(with_added_tokens=True)
    logging.info("%s: %d tokens, at most %d asked for", output, size, values.vocab_size)


if __name__ == "__main__":
    # Here, since training imports this module and has flags of its own.
    flags.DEFINE_string("dataset", None, "Dataset folder with the texts.")
    flags.DEFINE_integer(
        "vocab_size",
        None,
        f"Most tokens to have, at least {_SMALLEST_VOCABULARY}; few texts give fewer.",
        lower_bound=_SMALLEST_VOCABULARY,
    )
    flags.DEFINE_string("output", None, "File to write, like tokenizer.json.")
    flags.DEFINE_integer(
        "records",
        1_000_000,
        "Most records to read, spread evenly over the dataset.",
        lower_bound=1,
    )
    flags.mark_flags_as_required(["dataset", "vocab_size", "output"])
    command.run(main)
