"""Finds files by a pattern with wildcards, locally and on Google Cloud Storage."""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from etils import epath

from metaclip_jax import files

_WILDCARD = re.compile(r"[*?\[]")


def find(pattern: epath.PathLike) -> list[str]:
    """Returns the files, not folders, that match `pattern`, sorted.

    Wildcards are a shell's, in any component: * and ? within a name, [ab], and ** for
    any number of folders. Only a component that begins with a dot matches hidden names.
    A name that exists exactly as written, even with brackets, matches only itself.

    Raises OSError if a folder cannot be listed.
    """
    text = os.fspath(pattern)
    if files.is_local(text):
        root = "/" if text.startswith("/") else ""
    else:
        root, _, text = text.partition("://")[2].partition("/")
        root = f"{os.fspath(pattern).partition('://')[0]}://{root}/"
    components = [name for name in text.split("/") if name not in ("", ".")]
    return sorted(set(_matching(root, components))) if components else []


def _matching(folder: str, components: Sequence[str]) -> Iterator[str]:
    """Yields the matching files below a folder, which is "" or ends with a slash."""
    first, rest = components[0], components[1:]
    if first == "**":
        yield from _matching(folder, rest or ["*"])
        for name, is_folder in _list(folder):
            if is_folder and not name.startswith(".") and not _is_link(folder + name):
                yield from _matching(f"{folder}{name}/", components)
    elif not _WILDCARD.search(first):
        if rest:
            yield from _matching(f"{folder}{first}/", rest)
        elif (
            files.path(folder + first).exists()
            and not files.path(folder + first).is_dir()
        ):
            yield folder + first
    else:
        found = [
            (name, is_folder)
            for name, is_folder in _list(folder)
            if name == first
            or (
                fnmatch.fnmatchcase(name, first) and (name[0] != "." or first[0] == ".")
            )
        ]
        as_written = [entry for entry in found if entry[0] == first]
        for name, is_folder in as_written or found:
            if rest and is_folder:
                yield from _matching(f"{folder}{name}/", rest)
            elif not rest and not is_folder:
                yield folder + name


def _list(folder: str) -> list[tuple[str, bool]]:
    """Returns (name, is a folder) of a folder's entries, [] if there is no folder."""
    try:
        if files.is_local(folder):
            with os.scandir(folder or ".") as entries:
                return [(entry.name, _is_folder(entry)) for entry in entries]
        import fsspec  # a slow import

        files.path(folder)  # configures gs://
        storage, place = fsspec.core.url_to_fs(folder)
        place = place.rstrip("/")
        objects = storage.ls(place, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        (entry["name"].rstrip("/").rpartition("/")[2], entry["type"] == "directory")
        for entry in objects
        if entry["name"].rstrip("/") != place  # the folder's own placeholder object
    ]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_link(name: str) -> bool:
    return files.is_local(name) and os.path.islink(name)


def find_all(
    group: Mapping[str, Iterable[str]], name: str, *keys: str
) -> dict[str, list[str]]:
    """Returns the Parquet files that match any pattern of each key, sorted.

    Args:
      group: of a config: patterns by key.
      name: of the group, such as "config.selection".
      keys: those to look up.

    Raises ValueError if a pattern matches none.
    """
    found = {}
    for key in keys:
        files_of = {pattern: find(pattern) for pattern in group[key]}
        for pattern, matching in files_of.items():
            if not matching:
                raise ValueError(
                    f"{name}.{key}: wanted Parquet files, got none for {pattern!r};"
                    " correct the path"
                )
        found[key] = sorted({path for some in files_of.values() for path in some})
    return found
