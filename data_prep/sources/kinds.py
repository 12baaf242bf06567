"""The kinds of sources, a row each: what the rest of curation knows of them.

A new format is a module with a `read` and a row of KINDS.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from ml_collections import ConfigDict

from data_prep.sources import pages, table
from data_prep.sources.spec import Reading, Spec
from metaclip_jax import files, patterns

__all__ = ["KINDS", "Reading", "Spec", "describe", "find", "read", "spec_of"]


@dataclass(frozen=True)
class _Kind:
    # Yields the CANDIDATES of one file and counts what it read.
    read: Callable[[str, Spec, Reading], Iterator[pa.RecordBatch]]
    item: str  # what holds texts, for the funnel
    texts: tuple[str, ...] = ()  # columns of texts, where config names none
    # Raises ValueError where the keys of `source` do not fit a file.
    check: Callable[[str, Spec], None] = lambda path, spec: None


KINDS = {
    "warc": _Kind(pages.read, "pages"),
    "table": _Kind(table.read, "rows", ("text",), table.check),
}


def spec_of(config: ConfigDict) -> Spec:
    """Takes the keys that sources need out of a config of `curate`."""
    source = config.source.to_dict()
    del source["paths"]
    source["text_columns"] = source["text_columns"] or KINDS[config.source.kind].texts
    return Spec(
        **source, **config.pages.to_dict(), identifier=config.language.identifier
    )


def find(paths: str, spec: Spec) -> list[str]:
    """Returns the files of a source, sorted; each is read by itself.

    Raises ValueError where there is none, or the first does not fit the spec.
    """
    found = patterns.find(paths)
    if not found:
        raise ValueError(f"config.source.paths={paths!r} matches no file")
    KINDS[spec.kind].check(found[0], spec)
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
