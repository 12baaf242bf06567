"""The reference engine: pyahocorasick over spaced strings, one text at a time.

Slow and simple. Tests compare the kernel in `token_trie` with it, and
`benchmarks/matching.py` measures the kernel's speed against this loop.
"""

from collections.abc import Sequence
from typing import Any

import ahocorasick
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.matching import spacing


class Reference:
    """Matches entries, checked as `Matcher` does, in a mode of `spacing`."""

    def __init__(self, entries: Sequence[str], *, mode: str) -> None:
        """Builds an automaton over the keys; its values are tuples of entry ids."""
        self._automaton: Any = ahocorasick.Automaton()
        self._mode = mode
        for entry_id, entry in enumerate(entries):
            if mode == "fixed" and spacing.why_never_matches(entry, mode=mode):
                continue  # a key without atoms would match texts without atoms
            key = spacing.key(entry, mode=mode)
            known = self._automaton.get(key, ())
            self._automaton.add_word(key, (*known, entry_id))
        self._automaton.make_automaton()

    def match(
        self, texts: Sequence[str] | pa.Array
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Returns what `Matcher.match` does."""
        ends = [0]
        matches: list[int] = []
        for text in pa.array(texts, pa.large_string()).to_pylist():
            matched: set[int] = set()
            if len(self._automaton):
                for _, ids in self._automaton.iter(
                    spacing.spaced(text, mode=self._mode)
                ):
                    matched.update(ids)
            matches.extend(sorted(matched))
            ends.append(len(matches))
        return np.array(ends, np.int64), np.array(matches, np.int32)
