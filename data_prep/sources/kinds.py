"""The kinds of sources, a row each: what the rest of curation knows of them.

A new format is a module with a `read` and a row of KINDS.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from data_prep.sources import pages
from data_prep.sources.spec import Reading, Spec
from metaclip_jax import files, patterns

__all__ = ["KINDS", "Reading", "Spec", "describe", "find", "read"]


@dataclass(frozen=True)
class _Kind:
    # Yields the CANDIDATES of one file and counts what it read.
    read: Callable[[str, Spec, Reading], Iterator[pa.RecordBatch]]
    item: str  # what holds texts, for the funnel


KINDS = {
    "warc": _Kind(pages.read, "pages"),
}


def find(paths: str) -> list[str]:
    """Returns the files of a source, sorted; each is read by itself.

    Raises ValueError where there is none.
    """
    found = patterns.find(paths)
    if not found:
        raise ValueError(f"config.source.paths={paths!r} matches no file")
    return found


def describe(found: list[str]) -> list[tuple[str, int]]:
    """Returns name and size of each file: what a finished folder is known by."""
    return [(os.path.basename(path), files.size(path)) for path in found]


def read(path: str, spec: Spec, flow: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of one file of a source.

    Args:
      path: one of those that `find` returned.
      spec: what to read of it.
      flow: gets the FLOW rows of the file, once all of it is read.

    Raises OSError where the storage fails. Damage is counted, in `flow`.
    """
    kind, reading = KINDS[spec.kind], Reading()
    yield from kind.read(path, spec, reading)
    flow += reading.flow(kind.item)
