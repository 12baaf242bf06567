"""Matching: our kernel against the usual pyahocorasick loop, in one run.

    python -m benchmarks.matching                   # 200,000 texts, under two minutes
    python -m benchmarks.matching --texts=1000000

Both match the same generated texts with the same 500,000 generated entries on one core.
Words follow Zipf's law; entries are single words, pairs and longer names, as in
MetaCLIP's metadata. The loop is the usual one with pyahocorasick: space the text,
iterate over the automaton, sort the set. Rounds of the two alternate and the median
counts, since other programs may share the machine. The matches must be equal.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ahocorasick
import numpy as np
import pyarrow as pa
from absl import flags

from data_prep.matching import Matcher, spacing
from metaclip_jax.cli import command

_VOCABULARY = 1_000_000
_SYLLABLES = [c + v for c in "bcdfghjklmnprstvwyz" for v in ("a", "e", "i", "o", "ou")]
_CODAS = ["", "n", "r", "s", "t", "l", "ng", "ck"]


def words(count: int) -> list[str]:
    """Returns `count` different words, the frequent ones short, as in a language."""
    base = len(_SYLLABLES)
    out = []
    for rank in range(count):
        left, coda = divmod(rank, len(_CODAS))
        word = _SYLLABLES[left % base]
        while left := left // base:
            word += _SYLLABLES[left % base]
        out.append(word + _CODAS[coda])
    return list(dict.fromkeys(out))


def zipf_ranks(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Returns i64[size], ranks below `count` with probability ~ 1 / (rank + 3)."""
    weights = np.cumsum(1 / (np.arange(count) + 3))
    return np.searchsorted(weights, rng.random(size) * weights[-1])


def make_entries(
    rng: np.random.Generator, vocabulary: Sequence[str], count: int
) -> list[str]:
    """Returns `count` entries: 60% words, 25% pairs, 15% names of three to five."""
    entries = dict.fromkeys(vocabulary[: count * 6 // 10])
    for share, low, high in ((0.85, 2, 2), (1.0, 3, 5)):
        while len(entries) < count * share:
            lengths = rng.integers(low, high + 1, 20_000)
            ranks = zipf_ranks(rng, int(lengths.sum()), len(vocabulary))
            for part in np.split(ranks, np.cumsum(lengths)[:-1]):
                entries[" ".join([vocabulary[r] for r in part])] = None
    return list(entries)[:count]


def make_texts(
    rng: np.random.Generator, vocabulary: Sequence[str], count: int
) -> list[str]:
    """Returns `count` alt texts of about nine words, with capitals and punctuation."""
    lengths = 1 + rng.poisson(rng.gamma(2, 4, count))
    size = int(lengths.sum())
    ranks = zipf_ranks(rng, size, len(vocabulary))
    dress = rng.integers(0, 100, size)
    out, at = [], 0
    for length in lengths.tolist():
        parts = []
        for i in range(at, at + length):
            word, style = vocabulary[ranks[i]], dress[i]
            if style < 40:
                word = word.capitalize()
            elif style < 48:
                word += ","
            elif style < 52:
                word += "."
            elif style < 54:
                word = f"{word}-{style}"
            elif style < 55:
                word += "é"
            parts.append(word)
        out.append(" ".join(parts))
        at += length
    return out


def reference_loop(automaton: Any, texts: Sequence[str]) -> list[list[int]]:
    """Returns the matches of each text by the loop that we measure against."""
    out = []
    for text in texts:
        spaced = spacing.spaced(text, mode="v1")
        out.append(sorted({entry_id for _, entry_id in automaton.iter(spaced)}))
    return out


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Returns (CPU seconds, result)."""
    begin = time.process_time()
    result = function(*args)
    return time.process_time() - begin, result


def main(argv: list[str]) -> None:
    """Prints the ratios, then the rates."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    rng = np.random.default_rng(values.seed)
    vocabulary = words(_VOCABULARY)
    entries = make_entries(rng, vocabulary, values.entries)
    texts = make_texts(rng, vocabulary, values.texts)
    arrow = pa.array(texts)

    Matcher(entries[:10]).match(texts[:10])  # compiles
    build_seconds, matcher = timed(Matcher, entries)
    automaton = ahocorasick.Automaton()
    for entry_id, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", entry_id)
    automaton.make_automaton()

    seconds: dict[str, list[float]] = {"ours": [], "from_list": [], "loop": []}
    for _ in range(values.rounds):
        took, (offsets, entry_ids) = timed(matcher.match, arrow)
        seconds["ours"].append(took)
        seconds["from_list"].append(timed(matcher.match, texts)[0])
        took, wanted = timed(reference_loop, automaton, texts)
        seconds["loop"].append(took)
    lengths = np.fromiter(map(len, wanted), np.int64, len(wanted))
    flat = np.fromiter((i for ids in wanted for i in ids), np.int32)
    if not (np.diff(offsets) == lengths).all() or not np.array_equal(entry_ids, flat):
        raise SystemExit("matching: the matches differ")
    ours, listed, loop = (float(np.median(s)) for s in seconds.values())
    print(
        f"matching: {loop / ours:.1f}x the texts/s of the pyahocorasick loop, with "
        "equal matches\n"
        f"matching: {loop / listed:.1f}x its texts/s from a list of str\n"
        f"matching: {len(texts) / ours:,.0f} against {len(texts) / loop:,.0f} texts/s "
        f"of one core, {flat.size / len(texts):.1f} matches and "
        f"{arrow.nbytes / len(texts):.0f} bytes per text\n"
        f"matching: {len(entries):,} entries built in {build_seconds:.2f} s, tables "
        f"{matcher.table_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("texts", 200_000, "Number of texts.", lower_bound=1)
    flags.DEFINE_integer("entries", 500_000, "Number of entries.", lower_bound=10)
    flags.DEFINE_integer("rounds", 3, "Timed rounds of each.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the words and texts.", lower_bound=0)
    command.run(main)
