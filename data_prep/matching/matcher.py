"""The matcher: finds the entries that each text contains; saved as a mapped file.

`spacing` defines a match, `token_trie` finds them.
"""

import json
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import ahocorasick
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_prep.matching import local_copies, native, spacing, tables, token_trie
from metaclip_jax import files

Strings: TypeAlias = "Sequence[str] | pa.Array | pa.ChunkedArray"

_OPTIONS = b"matcher"  # metadata of the file's schema
_TABLES = ("slots", "entry_states", "entry_bytes", "entry_offsets", "same_as")
_RULES = ("byte_classes", "classes")
# The entries as they were given; only in fixed mode do the tables change them.
_RAW, _UNCHANGED = ("raw_bytes", "raw_offsets"), ("entry_bytes", "entry_offsets")


class Matcher:
    """Finds, for each text, the entries that it contains.

    Matchers are independent, and a matcher may be used from several threads.

        matcher = Matcher(["New York", "NY"], mode="v1")
        offsets, entry_ids = matcher.match(["New York, NY", "nothing"])
        # offsets [0, 2, 2], entry_ids [0, 1]
    """

    def __init__(
        self,
        entries: Strings,
        *,
        mode: str = "v1",
        ignore_case: bool = False,
    ) -> None:
        """Builds the tables.

        Args:
          entries: different, non-empty strings; the entry id is the position.
          mode: "v1", "v2" or "fixed", see `spacing`.
          ignore_case: lower-case texts and entries first; only in fixed mode, since
            MetaCLIP's own modes are case-sensitive.

        Raises:
          ValueError: an entry is empty, repeated or not valid Unicode (named with its
            position), or an option is unknown.
          TypeError: the entries are not strings.
        """
        spacing.check_mode(mode)
        if ignore_case and mode != "fixed":
            raise ValueError(
                f"wanted mode='fixed' with ignore_case, got {mode!r}; change one"
            )
        self.mode, self.ignore_case = mode, ignore_case
        strings = _strings(entries, "entry")
        _check_entries(strings)
        folded = pc.utf8_lower(strings) if ignore_case else strings
        self._tables = tables.build(folded, mode=mode)
        # Only in fixed mode do the tables change the entries.
        self._raw = self._tables.entry_bytes, self._tables.entry_offsets
        if mode == "fixed":
            self._raw = tables.buffers(strings)

    def __len__(self) -> int:
        """The number of entries."""
        return self._raw[1].size - 1

    def match(self, texts: Strings) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Matches texts of any number and length.

        Args:
          texts: a sequence of str, or a pyarrow string array (read without a copy).

        Returns:
          (offsets i64[n + 1], entry_ids i32[matches]): text i matches the entries
          entry_ids[offsets[i] : offsets[i + 1]], ascending, each once.

        Raises:
          ValueError: a text is null or has a lone surrogate; says which one.
          TypeError: the texts are not strings.
        """
        strings = _strings(texts, "text")
        if self.ignore_case:
            strings = pc.utf8_lower(strings)
        offsets, entry_ids = token_trie.match(*tables.buffers(strings), self._tables)
        return offsets, entry_ids

    def entries(self) -> list[str]:
        """Returns the entries in the order of their ids."""
        data, offsets = self._raw
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(
            pa.large_string(), offsets.size - 1, buffers
        ).to_pylist()

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables; every process that loads them shares one copy."""
        return sum(array.nbytes for array in self._arrays().values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tables as one file of Arrow, atomically.

        With a gs:// path, each process that loads it maps its own local copy.
        """
        options = {"mode": self.mode, "ignore_case": self.ignore_case}
        options |= {"seed": int(self._tables.rules.seed)}
        columns = {  # each is one row: a list of the array's length
            name: pa.LargeListArray.from_arrays([0, array.size], pa.array(array))
            for name, array in self._arrays().items()
        }
        table = pa.table(columns, metadata={_OPTIONS: json.dumps(options)})
        with (
            files.staged(path) as local,
            pa.ipc.new_file(str(local), table.schema) as file,
        ):
            file.write_table(table)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Matcher":
        """Opens a saved matcher without reading it: its pages are mapped and shared.

        Raises:
          ValueError: the file is not a saved matcher, or is cut short.
        """
        matcher = cls.__new__(cls)
        local = local_copies.shared(path)
        with files.naming(path, "a file written by Matcher.save"):
            table = pa.ipc.open_file(pa.memory_map(str(local))).read_all()
            options = json.loads(table.schema.metadata[_OPTIONS])
            arrays = {
                name: column.chunk(0).values.to_numpy()
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
            matcher.mode, matcher.ignore_case = options["mode"], options["ignore_case"]
            is_fixed = matcher.mode == "fixed"
            rules = native.Rules(
                **{name: arrays[name] for name in _RULES},
                literal=not is_fixed,
                seed=np.uint64(options["seed"]),
            )
            matcher._tables = native.Tables(
                **{name: arrays[name] for name in _TABLES}, rules=rules
            )
            entry_bytes, entry_offsets = _RAW if is_fixed else _UNCHANGED
            matcher._raw = arrays[entry_bytes], arrays[entry_offsets]
        return matcher

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Returns all arrays by name, those that are the same under one name."""
        arrays = {name: getattr(self._tables, name) for name in _TABLES}
        arrays |= {name: getattr(self._tables.rules, name) for name in _RULES}
        if self.mode == "fixed":
            arrays |= zip(_RAW, self._raw, strict=True)
        return arrays


class Reference:
    """The reference engine: pyahocorasick over spaced strings, one text at a time.

    Slow and simple. Tests compare the kernel in `token_trie` with it, and
    `benchmarks/matching.py` measures the kernel's speed against this loop.
    """

    def __init__(self, entries: Sequence[str], *, mode: str) -> None:
        """Builds an automaton over the keys; its values are tuples of entry ids.

        `entries` are as `Matcher` wants them, and are not checked.
        """
        self._automaton: Any = ahocorasick.Automaton()
        self._mode = mode
        for entry_id, entry in enumerate(entries):
            if mode == "fixed" and spacing.why_never_matches(entry, mode=mode):
                continue  # a key without atoms would match texts without atoms
            key = spacing.key(entry, mode=mode)
            known = self._automaton.get(key, ())
            self._automaton.add_word(key, (*known, entry_id))
        self._automaton.make_automaton()

    def match(self, texts: Strings) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
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


class EveryText:
    """A matcher for curation without metadata: every text matches entry 0.

    So counting and drawing need no special case.
    """

    def match(self, texts: Strings) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Returns what `Matcher.match` does."""
        return np.arange(len(texts) + 1), np.zeros(len(texts), np.int32)


def _strings(values: Strings, what: str) -> pa.Array:
    """Returns the values as one Arrow array of strings without nulls."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"wanted a sequence of strings, got one string: {values!r:.60}")
    if isinstance(values, pa.ChunkedArray):
        values = values.cast(pa.large_string()).combine_chunks()
    if not isinstance(values, pa.Array):
        try:
            values = pa.array(values, pa.large_string())
        except UnicodeEncodeError as error:
            position, code = list(values).index(error.object), error.object[error.start]
            raise ValueError(
                f"{what} {position}: wanted valid Unicode, got a lone surrogate"
                f" U+{ord(code):04X} at character {error.start}; remove it"
            ) from None
        except pa.ArrowTypeError as error:
            raise TypeError(f"wanted every {what} to be a str: {error}") from None
    if pa.types.is_dictionary(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise TypeError(
            f"wanted every {what} to be a str, got an array of {values.type}"
        )
    if values.null_count:
        position = pc.index(values.is_null(), True).as_py()
        raise ValueError(f"{what} {position}: wanted a string, got null; remove it")
    return values


def _check_entries(entries: pa.Array) -> None:
    if len(entries) >= 2**31 - 1:
        raise ValueError(f"wanted at most 2**31 - 2 entries, got {len(entries)}")
    if (position := pc.index(pc.binary_length(entries), 0).as_py()) >= 0:
        raise ValueError(
            f"entry {position}: wanted a string that is not empty, since '' would match"
            " every text; remove it"
        )
    if pc.count_distinct(entries).as_py() == len(entries):
        return
    seen: dict[str, int] = {}
    for position, entry in enumerate(entries.to_pylist()):
        if entry in seen:
            raise ValueError(
                f"entry {position}: wanted different entries, got {entry!r} again,"
                f" which is entry {seen[entry]}; remove one"
            )
        seen[entry] = position
