"""The reference engine: pyahocorasick over spaced strings, one text at a time.

Slow and simple. Tests compare the kernel in `token_trie` with it, and
`benchmarks/matching.py` measures the kernel's speed against this loop.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import ahocorasick
import numpy as np
from numpy.typing import NDArray

from data_prep.matching import spacing


def build(entries: Sequence[str], *, mode: str) -> Any:
    """Returns an automaton over the keys; its values are tuples of entry ids."""
    automaton = ahocorasick.Automaton()
    for entry_id, entry in enumerate(entries):
        if mode == "fixed" and spacing.why_never_matches(entry, mode=mode):
            continue  # a key without atoms would match texts without atoms
        key = spacing.key(entry, mode=mode)
        automaton.add_word(key, (*automaton.get(key, ()), entry_id))
    automaton.make_automaton()
    return automaton


def match(
    automaton: Any, texts: Iterable[str], *, mode: str
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Returns (i64[texts + 1], i32[matches]), as `token_trie.match` does."""
    ends = [0]
    matches: list[int] = []
    has_keys = len(automaton) > 0
    for text in texts:
        if has_keys:
            matched: set[int] = set()
            for _, entry_ids in automaton.iter(spacing.spaced(text, mode=mode)):
                matched.update(entry_ids)
            matches.extend(sorted(matched))
        ends.append(len(matches))
    return np.array(ends, np.int64), np.array(matches, np.int32)
