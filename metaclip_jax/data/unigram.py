"""Trains tokenizers of XLM-V's kind: SentencePiece's unigram model, many languages.

SentencePiece learns the pieces, since tokenizers' own trainer gives another vocabulary
each time it runs; tokenizers encodes with them, at the speed of all other tokenizers.
"""

import io
import string
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

MARKS = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-V's, with its ids
_THREADS = 4  # fixed: the sums of counts, and so the pieces, depend on it
_BYTES = 256
# Texts may spell a byte or a mark, such as "<0x41>" or "<s>". This keeps its piece from
# being used there: its letters are always likelier.
_UNLIKELY = -1_000.0


def learn(texts: Iterable[str], vocab_size: int) -> bytes:
    """Returns a SentencePiece model; the same texts in the same order, the same bytes.

    Characters that are too rare for a piece are written as bytes, so that no text has
    unknown tokens. The model has at most `vocab_size` pieces.

    Raises:
      ModuleNotFoundError: sentencepiece is not installed.
      ValueError: `vocab_size` is too small for the characters, or there is no text.
    """
    import sentencepiece  # only training needs it

    normalize = _normalizer().normalize_str
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(normalize, texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            required_chars=string.printable.strip(),
            normalization_rule_name="identity",  # done already
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"wanted texts and a vocab_size that has room for their characters and"
            f" {_BYTES + len(MARKS)} bytes and marks, got {vocab_size}: {error}"
        ) from error
    return model.getvalue()


def from_model(model: bytes) -> tokenizers.Tokenizer:
    """Builds the tokenizer of a model that `learn` has returned."""
    import sentencepiece

    learned = sentencepiece.SentencePieceProcessor(model_proto=model)
    letters = len(MARKS) + _BYTES  # the first piece of letters
    vocabulary = [
        (
            learned.id_to_piece(number),
            learned.get_score(number) if number >= letters else _UNLIKELY,
        )
        for number in range(learned.get_piece_size())
    ]
    made = tokenizers.Tokenizer(
        models.Unigram(vocabulary, unk_id=MARKS.index("<unk>"), byte_fallback=True)
    )
    made.normalizer = _normalizer()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([tokenizers.AddedToken(m, normalized=False) for m in MARKS])
    return made


def train(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a tokenizer whose marks are XLM-V's; it keeps the case of texts.

    Equal texts in the same order give an equal one. For errors see `learn`.
    """
    return from_model(learn(texts, vocab_size))


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
