"""The kinds of sources: a table with one row per format.

A new format is a module with a `read` and a row of KINDS.
"""

import gzip
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from ml_collections import ConfigDict

from data_prep.sources import (
    array_record,
    folder,
    formats,
    pages,
    stored,
    table,
    wat,
    webdataset,
)
from data_prep.sources.spec import Reading, Spec
from metaclip_jax import files, patterns

__all__ = [
    "KINDS",
    "Reading",
    "Spec",
    "describe",
    "find",
    "images",
    "read",
    "spec_of",
]


@dataclass(frozen=True)
class _Kind:
    # Yields the CANDIDATES of one file and counts what it read.
    read: Callable[[str, Spec, Reading], Iterator[pa.RecordBatch]]
    item: str  # what holds texts, for the funnel
    formats: tuple[str, ...]  # that it reads, in the words of `formats.of`; (): any
    glob: str  # of its files in a folder; "": it reads folders
    texts: tuple[str, ...] = ()  # columns of texts, where config names none
    # Reads the images that the source holds. None: they are downloaded.
    images: stored.Reader | None = None
    # Raises ValueError where the keys of `source` do not fit a file.
    check: Callable[[str, Spec], None] = lambda path, spec: None
    find: Callable[[str], list[str]] = patterns.find
    size: Callable[[str], int] = files.size


_LIST = re.compile(r"\.paths(\.gz)?$")
KINDS = {
    "warc": _Kind(pages.read, "pages", ("WARC",), "*.warc.gz"),
    "wat": _Kind(wat.read, "pages", ("WAT",), "*.wat.gz"),
    "table": _Kind(
        table.read,
        "rows",
        ("Parquet", "text table"),
        "*.parquet",
        ("text",),
        check=table.check,
    ),
    "parquet": _Kind(
        table.read_with_images,
        "rows",
        ("Parquet",),
        "*.parquet",
        ("text",),
        table.images,
        table.check_with_images,
    ),
    "webdataset": _Kind(
        webdataset.read,
        "samples",
        ("tar",),
        "*.tar",
        ("txt",),
        webdataset.images,
        webdataset.check,
    ),
    "folder": _Kind(
        folder.read,
        "images",
        (),
        "",
        ("txt",),
        folder.images,
        find=folder.find,
        size=folder.size,
    ),
    "array_record": _Kind(
        array_record.read,
        "records",
        ("ArrayRecord",),
        "*.array_record*",
        ("texts",),
        array_record.images,
        array_record.check,
    ),
}


def spec_of(config: ConfigDict) -> Spec:
    """Returns the options of sources from a config of `curate`."""
    source, kind = config.source.to_dict(), KINDS[config.source.kind]
    paths = source.pop("paths") or ""
    given = source["text_columns"]
    optional = {"url"} if kind.images is not None and not source["url_column"] else ()
    source |= {
        "url_column": source["url_column"] or "url",
        "image_column": source["image_column"] or "image",
        "text_columns": given or kind.texts,
        "caption_columns": given or KINDS["table"].texts,
    }
    return Spec(
        **source,
        **config.pages.to_dict(),
        identifier=config.language.identifier,
        max_image_bytes=config.download.max_bytes,
        optional=frozenset(optional),
        root=_root(paths),
    )


def _root(paths: str) -> str:
    """Returns the folder before all wildcards, with its slash."""
    if files.path(paths or ".").is_dir():
        return f"{paths.rstrip('/')}/"
    folder, slash, _ = re.split(r"[*?\[]", paths)[0].rpartition("/")
    return folder + slash


def find(paths: str, spec: Spec) -> list[str]:
    """Returns the files of a source, sorted; each is read by itself.

    A file that is named .paths, or .paths.gz, lists them, as Common Crawl's do: one a
    line, below the folder of the list or as a whole path.

    Raises ValueError where there is none, or the first is of another kind or does not
    fit the spec.
    """
    kind = KINDS[spec.kind]
    if kind.glob and files.path(paths).is_dir():
        raise ValueError(
            f"config.source.paths: wanted files, got the folder {paths!r}; write "
            f"{os.path.join(paths, kind.glob)!r}"
        )
    found = kind.find(paths)
    lists = [path for path in found if _LIST.search(path)]
    for path in lists:
        found.remove(path)
        found += _listed(path)
    if not found:
        raise ValueError(
            "config.source.paths: wanted files, got none for "
            f"{paths!r}; correct the path"
        )
    found = sorted(dict.fromkeys(found))
    if kind.formats:
        _refuse_other_format(found[0], spec.kind)
    kind.check(found[0], spec)
    return found


def _refuse_other_format(path: str, name: str) -> None:
    """Raises ValueError for a file of a format that the kind does not read.

    Unknown formats pass: a damaged file is counted when it is read.
    """
    got = formats.of(path)
    if not got or got in KINDS[name].formats:
        return
    readers = [other for other, row in KINDS.items() if got in row.formats]
    cure = f"choose config.source.kind={' or '.join(readers)}, or other paths"
    raise ValueError(
        f"config.source.kind={name}: wanted {' or '.join(KINDS[name].formats)}, got "
        f"{got} in {path}; {cure if readers else 'correct config.source.paths'}"
    )


def _listed(path: str) -> list[str]:
    data = files.path(path).read_bytes()
    if path.endswith(".gz"):
        data = gzip.decompress(data)
    folder = path.rpartition("/")[0]
    lines = [line.strip() for line in data.decode().splitlines()]
    return [
        line if line.startswith("/") or "://" in line else os.path.join(folder, line)
        for line in lines
        if line
    ]


def describe(found: Sequence[str], spec: Spec) -> list[tuple[str, int]]:
    """Returns name and size of each file, which identify a finished folder's inputs."""
    size = KINDS[spec.kind].size
    return [(os.path.basename(path), size(path)) for path in found]


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


def images(
    references: Sequence[str], spec: Spec
) -> Iterator[tuple[int, str, bytes]] | None:
    """Reads the images that a source holds, as `stored.fetch` does.

    None where the source holds none: they are to be downloaded.
    """
    reader = KINDS[spec.kind].images
    return None if reader is None else stored.fetch(references, reader, spec)
