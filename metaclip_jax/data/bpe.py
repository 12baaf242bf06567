"""Builds byte-level BPE tokenizers from CLIP's merges or from others."""

import gzip
import importlib.util
import io
import zlib
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
BYTES = 256
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# CLIP's pattern cuts at combining marks, which write most vowels of Hindi, Thai and
# their kin, and at the joiners of Persian and Sinhala. Here letters and digits keep
# what follows them. Emoji keep their marks and joiners by the last alternative.
WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}[\p{L}\p{M}\u200c\u200d]*|\p{N}\p{M}*|[^\s\p{L}\p{N}]+"
)
_CLIP_VOCABULARY = 49_408
_MAX_CLIP_BYTES = 1 << 26  # of its merges; they have 3 MB


def from_merges(
    merges: list[tuple[str, str]], *, marks: tuple[str, ...], words: str
) -> tokenizers.Tokenizer:
    """Builds a tokenizer with ids in CLIP's order.

    These are the bytes, the bytes at the end of a word, the merges, and the marks.
    `words` is the pattern that divides texts: CLIP_WORDS, or WORDS for other merges.
    """
    single = alphabet()
    pieces = [*single, *(byte + END_OF_WORD for byte in single)]
    pieces += [left + right for left, right in merges]
    # Two merges can give the same piece, which keeps its first id.
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    bpe = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END_OF_WORD)
    )
    bpe.pre_tokenizer = pre_tokenizer(words)
    bpe.decoder = decoders.Sequence(
        [
            decoders.ByteLevel(),
            decoders.Replace(END_OF_WORD, " "),
        ]
    )
    bpe.add_special_tokens([tokenizers.AddedToken(m, normalized=False) for m in marks])
    return bpe


def pre_tokenizer(words: str) -> pre_tokenizers.PreTokenizer:
    """Returns a pre-tokenizer that splits texts into words of bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(words), behavior="removed", invert=True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def alphabet() -> list[str]:
    """Returns the characters that encode the 256 bytes, in the order of CLIP's ids.

    Bytes that are printable in Latin-1 come first and encode themselves; the others
    have the code points from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(BYTES + n) for n in range(others)]


def from_clip_file(data: bytes, source: str) -> tokenizers.Tokenizer:
    """Builds CLIP's tokenizer from its merges file; `source` is for messages.

    Raises:
      ValueError: it is another file.
    """
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:  # a small one may fill the memory
                data = file.read(_MAX_CLIP_BYTES)
        lines = data.decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{source} should be CLIP's merges, but: {error}") from error
    wanted = _CLIP_VOCABULARY - 2 * BYTES - 2
    pairs = [tuple(line.split()) for line in lines[1 : 1 + wanted]]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != wanted:
        raise ValueError(
            f"{source} should be CLIP's merges ({CLIP_FILE}): a header and {wanted} "
            f"lines of two words, found {len(merges)}; fetch it again"
        )
    return from_merges(merges, marks=(BOS, EOS), words=CLIP_WORDS)


def installed_clip_file() -> Path:
    """Returns the path of CLIP's merges file in an installed open_clip.

    Raises:
      ValueError: open_clip is not installed.
    """
    try:
        spec = importlib.util.find_spec("open_clip")
    except ValueError:  # a module without a spec has this name
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(
            "the tokenizer 'clip' needs an installed open_clip, which has its merges; "
            f"pip install --no-deps open_clip_torch, or give the path of {CLIP_FILE}"
        )
    return Path(spec.origin).with_name(CLIP_FILE)
