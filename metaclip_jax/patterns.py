"""Finds files by a pattern with wildcards, locally and on Google Cloud Storage."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence

from etils import epath

from metaclip_jax import files

_WILDCARD = re.compile(r"[*?\[]")


def find(pattern: epath.PathLike) -> list[str]:
    """Returns the files that match `pattern`, sorted. A folder that matches is no file.

    Wildcards as in a shell, in any part: * and ? within a name, [ab], and ** for any
    number of folders. A hidden name is matched by a part that begins with a dot only.
    A name that is there as it is written is taken as that, even with brackets in it.

    Raises OSError where a folder cannot be listed.
    """
    text = os.fspath(pattern)
    if files.is_local(text):
        root = "/" if text.startswith("/") else ""
    else:
        root, _, text = text.partition("://")[2].partition("/")
        root = f"{os.fspath(pattern).partition('://')[0]}://{root}/"
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return sorted(set(_matching(root, parts))) if parts else []


def _matching(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yields the files that match, below a folder: "" or what ends in a slash."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matching(folder, rest or ["*"])
        for name, is_folder in _list(folder):
            if is_folder and not name.startswith(".") and not _is_link(folder + name):
                yield from _matching(f"{folder}{name}/", parts)
    elif not _WILDCARD.search(part):
        if rest:
            yield from _matching(f"{folder}{part}/", rest)
        elif (
            files.path(folder + part).exists()
            and not files.path(folder + part).is_dir()
        ):
            yield folder + part
    else:
        found = [
            (name, is_folder)
            for name, is_folder in _list(folder)
            if name == part
            or (fnmatch.fnmatchcase(name, part) and (name[0] != "." or part[0] == "."))
        ]
        as_written = [one for one in found if one[0] == part]
        for name, is_folder in as_written or found:
            if rest and is_folder:
                yield from _matching(f"{folder}{name}/", rest)
            elif not rest and not is_folder:
                yield folder + name


def _list(folder: str) -> list[tuple[str, bool]]:
    """Returns (name, whether it is a folder) of a folder's entries, [] of no folder."""
    try:
        if files.is_local(folder):
            with os.scandir(folder or ".") as entries:
                return [(entry.name, entry.is_dir()) for entry in entries]
        import fsspec  # only here: it takes long

        files.path(folder)  # sets gs:// up
        storage, place = fsspec.core.url_to_fs(folder)
        place = place.rstrip("/")
        objects = storage.ls(place, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        (one["name"].rstrip("/").rpartition("/")[2], one["type"] == "directory")
        for one in objects
        if one["name"].rstrip("/") != place  # an empty object that stands for it
    ]


def _is_link(name: str) -> bool:
    return files.is_local(name) and os.path.islink(name)
