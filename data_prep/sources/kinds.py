"""The kinds of sources: a table with one row per format.

A new format is a module that says what it is, a `spec.Kind`, and a row of KINDS.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from ml_collections import ConfigDict

from data_prep.sources import (
    array_record,
    compressed,
    folder,
    formats,
    pages,
    pairs,
    remote,
    table,
    texts,
    wat,
    webdataset,
)
from data_prep.sources.spec import ImageReader, Reading, Spec
from metaclip_jax import files

_LIST = re.compile(r"\.paths(\.gz)?$")
_MAX_LIST_BYTES = 256 << 20  # of all lines; those of a crawl have 15 MB
KINDS = {
    "warc": pages.KIND,
    "wat": wat.KIND,
    "table": table.KIND,
    "parquet": table.KIND_WITH_IMAGES,
    "webdataset": webdataset.KIND,
    "folder": folder.KIND,
    "array_record": array_record.KIND,
}


def spec_of(config: ConfigDict) -> Spec:
    """Returns the options of sources from a config of `curate`."""
    source, kind = config.source.to_dict(), KINDS[config.source.kind]
    paths = source.pop("paths") or ""
    del source["prefix"]  # only `find` reads it
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
        user_agent=config.download.user_agent,
        optional=frozenset(optional),
        root=_root(paths),
    )


def _root(paths: str) -> str:
    """Returns the folder before all wildcards, with its slash."""
    if remote.is_on_web(paths):
        return paths[: paths.rfind("/") + 1]
    if files.path(paths or ".").is_dir():
        return f"{paths.rstrip('/')}/"
    folder, slash, _ = re.split(r"[*?\[]", paths)[0].rpartition("/")
    return folder + slash


def find(paths: str, spec: Spec, *, prefix: str = "") -> list[str]:
    """Returns the files of a source, sorted; each is read by itself.

    A file that is named .paths, or .paths.gz, lists them, as Common Crawl's do: one a
    line, a whole path, or one below `prefix`, or else below the folder of the list.

    Raises:
      ValueError: there is none, or the first is of another kind or does not fit the
        spec; a list is too large.
      OSError: the storage of a list, or of the first file, fails.
    """
    kind = KINDS[spec.kind]
    if kind.is_streamed and spec.score_columns:
        raise ValueError(
            f"config.source.score_columns: wanted none for config.source.kind="
            f"{spec.kind}, whose pages have no scores, got {spec.score_columns}"
        )
    is_on_web = remote.is_on_web(paths)
    if kind.glob and not is_on_web and files.path(paths).is_dir():
        raise ValueError(
            f"config.source.paths: wanted files, got the folder {paths!r}; write "
            f"{os.path.join(paths, kind.glob)!r}"
        )
    found: list[str] = []
    for path in [paths] if is_on_web else kind.find(paths):
        is_list = _LIST.search(path)
        found += _listed(path, prefix, spec.user_agent) if is_list else [path]
    if not found:
        raise ValueError(
            "config.source.paths: wanted files, got none for "
            f"{paths!r}; correct the path"
        )
    found = sorted(dict.fromkeys(found))
    on_web = [path for path in found if remote.is_on_web(path)]
    if on_web and not kind.is_streamed:
        raise ValueError(
            f"config.source.kind={spec.kind}: wanted local files or gs://, got "
            f"{on_web[0]}; download them first"
        )
    if kind.formats:
        _refuse_other_format(found[0], spec)
    kind.check(found[0], spec)
    return found


def _refuse_other_format(path: str, spec: Spec) -> None:
    """Raises ValueError for a file of a format that the kind does not read.

    Unknown formats pass: a damaged file is counted when it is read.
    """
    name, got = spec.kind, formats.of(path, user_agent=spec.user_agent)
    if not got or got in KINDS[name].formats:
        return
    readers = [other for other, row in KINDS.items() if got in row.formats]
    cure = f"choose config.source.kind={' or '.join(readers)}, or other paths"
    raise ValueError(
        f"config.source.kind={name}: wanted {' or '.join(KINDS[name].formats)}, got "
        f"{got} in {path}; {cure if readers else 'correct config.source.paths'}"
    )


def _listed(path: str, prefix: str, user_agent: str) -> list[str]:
    """Reads a list of files. Raises ValueError if it is too large or damaged."""
    with (
        remote.open_file(path, user_agent=user_agent) as file,
        files.naming(path, "a list"),
    ):
        data = bytearray()
        for more, _ in compressed.read(file):
            data += more
            if len(data) > _MAX_LIST_BYTES:
                raise ValueError(f"more than {_MAX_LIST_BYTES >> 20} MiB of lines")
        lines = [line.strip() for line in data.decode().splitlines()]
    base = prefix or path[: path.rfind("/") + 1]
    return [
        line if line.startswith("/") or "://" in line else base + line
        for line in lines
        if line
    ]


def describe(found: Sequence[str], spec: Spec) -> list[tuple[str, int]]:
    """Returns name and size of each file, which identify a finished folder's inputs.

    Of a file on a web server, its address, and -1 for its size, which is not asked: a
    crawl has a hundred thousand files.
    """
    size = KINDS[spec.kind].size
    return [
        (path, -1) if remote.is_on_web(path) else (os.path.basename(path), size(path))
        for path in found
    ]


def total_bytes(described: Sequence[tuple[str, int]]) -> int:
    """Returns the size of files as `describe` has them; unknown ones have a GB."""
    return sum(size if size >= 0 else 10**9 for _, size in described)


def read(
    path: str,
    spec: Spec,
    flow: list[pa.RecordBatch],
    lost: Mapping[str, texts.Losses] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yields the CANDIDATES of one file of a source.

    Args:
      path: one of those that `find` returned.
      spec: what to read of it.
      flow: gets the FLOW rows of the file, once all of it is read.
      lost: gets what was lost, then: pages, rows, ... by "read", and texts by "parse".

    Raises OSError where the storage fails. Damage is counted, in `flow`.
    """
    kind, reading = KINDS[spec.kind], Reading()
    yield from kind.read(path, spec, reading)
    flow += reading.flow(kind.item)
    if lost is not None:
        lost["read"].add(reading.lost_items)
        lost["parse"].add(reading.lost_texts)


def images(
    references: Sequence[str], spec: Spec
) -> Iterator[tuple[int, str, bytes]] | None:
    """Reads the images that a source holds, and yields one result for each.

    None where the source holds none: they are to be downloaded.

    Args:
      references: those in `stored_at` of CANDIDATES.
      spec: the source's; an image of more than max_image_bytes is too_large.

    Yields:
      (position in `references`, status, bytes where the status is "ok"). Reasons of the
      others: missing_file, damaged_file, too_large.

    Raises OSError where the storage fails.
    """
    reader = KINDS[spec.kind].images
    return None if reader is None else _fetched(references, reader, spec)


def _fetched(
    references: Sequence[str], read: ImageReader, spec: Spec
) -> Iterator[tuple[int, str, bytes]]:
    by_file: dict[str, list[tuple[str, int]]] = {}
    for index, one in enumerate(references):
        position, _, path = one.partition(pairs.SEPARATOR)
        by_file.setdefault(path, []).append((position, index))
    for path in sorted(by_file):
        wanted = sorted(by_file[path], key=lambda one: (len(one[0]), one))
        bodies = read(path, [position for position, _ in wanted], spec)
        for _, index in wanted:
            try:
                status, body = next(bodies)
            except (FileNotFoundError, StopIteration):
                status, body = "missing_file", b""
            yield index, status, body
