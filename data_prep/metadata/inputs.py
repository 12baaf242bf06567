"""Finds the files of the sources of metadata, checks them, and cuts them into pieces.

A path is local, gs:// or https://, with wildcards where files can be listed; several
addresses on web servers are joined by commas. In the paths of wordnets and dumps
{code} stands for the code of each Wikipedia, as in the names of its dumps ("zh_yue").
"""

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from data_prep.metadata import dumps, editions, titles, wordnet
from data_prep.metadata.pieces import Piece
from data_prep.sources import formats, remote
from metaclip_jax import files, patterns

CODE = "{code}"
_SHOWN = 5  # languages in an error
_RANGE_BYTES = 64 << 20  # of a dump: minutes of work for a core if it is compressed


class Inputs(NamedTuple):
    """What is read, and what identifies it: kind, code, name and size of each file."""

    pieces: list[Piece]
    described: list[tuple[str, str, str, int]]

    @property
    def bytes(self) -> int:
        """Size of all files whose size is known."""
        return sum(size for *_, size in self.described)


def find(
    paths: Mapping[str, str | None], languages: Sequence[str], *, user_agent: str = ""
) -> Inputs:
    """Returns the pieces of all sources.

    Args:
      paths: of each kind of `pieces.KINDS`; None or "" if it is not read.
      languages: codes of metadata.
      user_agent: the header that web servers get, see `remote.open_file`.

    Raises:
      ValueError: no source is given, one has no files, a file has another format, a
        language is unknown, or a web server would not learn whom to write to.
      OSError: the storage fails.
    """
    if not any(paths.values()):
        names = " or ".join(f"--{name}" for name in paths)
        raise ValueError(f"wanted a source of metadata, got none; give {names}")
    members = editions.members(languages)
    inputs = Inputs([], [])
    for kind, path in paths.items():
        if not path:
            continue
        # Not by folder: moved files are the same inputs, and make the same parts.
        read = [
            (
                code,
                file if remote.is_on_web(file) else os.path.basename(file),
                remote.size(file, user_agent=user_agent),
                file,
                dump,
            )
            for code, file, dump in _FINDERS[kind](path, members, user_agent)
        ]
        seen: dict[tuple[str, str], str] = {}
        for code, name, size, file, dump in sorted(read):
            real = os.path.realpath(file) if files.is_local(file) else file
            first = seen.setdefault((code, real), file)
            if first != file:
                logging.warning("--%s: %s and %s are one file", kind, first, file)
                continue
            inputs.described.append((kind, code, name, size))
            ranges = dump.ranges(size, range_bytes=_RANGE_BYTES)
            inputs.pieces.extend(
                Piece(kind, file, start, stop, code, dump.main_page)
                for start, stop in ranges
            )
    return inputs


def in_short(codes: Collection[str]) -> str:
    """Returns the first five codes for a message, and how many more there are."""
    more = f" and {len(codes) - _SHOWN} more" if len(codes) > _SHOWN else ""
    return ", ".join(itertools.islice(codes, _SHOWN)) + more


# Code of a Wikipedia or "", a file, and what its head says if it is a dump.
_SourceFiles = Iterator[tuple[str, str, dumps.Dump]]
_NO_DUMP = dumps.Dump()
_Members = Mapping[str, Sequence[str]]  # by code of a metadata
_CONTENTS = {"warc": "WARC files", "pageviews": "files of page views"}


def _find_warc(pattern: str, members: _Members, user_agent: str) -> _SourceFiles:
    forms = _forms(pattern, "warc", "WARC", user_agent)
    if not any(forms.values()):
        raise ValueError(
            f"--warc: wanted WARC files, got none among {len(forms)} such as"
            f" {[*forms][-1]}; correct the path"
        )
    return (("", path, _NO_DUMP) for path in forms)


def _find_views(pattern: str, members: _Members, user_agent: str) -> _SourceFiles:
    paths = list(_forms(pattern, "pageviews", "text table", user_agent))
    titles.check(paths[0], user_agent=user_agent)
    return (("", path, _NO_DUMP) for path in paths)


def _forms(pattern: str, flag: str, wanted: str, user_agent: str) -> dict[str, str]:
    """Returns the format of each file, "" for unrecognized ones.

    Those, such as damaged or empty ones, are counted while reading. Raises ValueError
    if there are no files, or for a file of another format.
    """
    if not (paths := _listed(pattern, flag)):
        raise _no_files(pattern, flag)
    forms = {path: formats.of(path, user_agent=user_agent) for path in paths}
    for path, got in forms.items():
        if got not in ("", wanted):
            raise ValueError(
                f"--{flag}: wanted {_CONTENTS[flag]}, got {got} in {path}; correct the"
                " path"
            )
    return forms


def _find_dumps(pattern: str, members: _Members, user_agent: str) -> _SourceFiles:
    if CODE not in pattern and (len(members) > 1 or editions.OTHER in members):
        raise ValueError(
            f"--wikipedia: wanted {CODE} in the path for the languages"
            f" {in_short(members)}, got {pattern}; for example"
            f" {CODE}wiki-*-pages-articles*.xml.bz2"
        )
    for language, codes in members.items():
        wanted = [code for code in codes if code != editions.OTHER]
        if CODE not in pattern:
            wanted = wanted[:1]
        listed = {code: _listed(pattern.replace(CODE, code), "wikipedia")
                 for code in wanted}  # fmt: skip
        if language in listed and not listed[language]:
            raise _no_files(pattern.replace(CODE, language), "wikipedia")
        missing = [code for code in wanted if not listed[code]]
        if missing:
            logging.warning(
                "--wikipedia: no files of %s, parts of %s", ", ".join(missing), language
            )
        if len(missing) == len(wanted):
            raise ValueError(
                f"--wikipedia: wanted files of an edition of {language!r}, got none for"
                f" {pattern!r}; correct the path, or config.languages"
            )
        for code in wanted:
            for path in listed[code]:
                yield code, path, dumps.check(path, code, user_agent=user_agent)


def _find_wordnets(folder: str, members: _Members, user_agent: str) -> _SourceFiles:
    wordnets = [
        (code, path, _NO_DUMP)
        for codes in members.values()
        for code in codes
        for path in wordnet.find(
            folder.replace(CODE, code), code, user_agent=user_agent
        )
    ]
    if not wordnets:
        raise ValueError(
            f"--wordnet: wanted {', '.join(wordnet.PRINCETON)} for English, or"
            " wn-data-XXX.tab of a language of docs/languages.md, got none in"
            f" {folder}; correct the folder"
        )
    yield from wordnets


_FINDERS: dict[str, Callable[[str, _Members, str], _SourceFiles]] = {
    "wordnet": _find_wordnets,
    "wikipedia": _find_dumps,
    "warc": _find_warc,
    "pageviews": _find_views,
}


def _listed(pattern: str, flag: str) -> list[str]:
    """Returns the files of a path, [] if there are none."""
    if remote.is_on_web(pattern):
        if "*" in pattern:
            raise ValueError(
                f"--{flag}: wanted the address of each file, since web servers list"
                f" none, got {pattern!r}; join them by commas"
            )
        return [part.strip() for part in pattern.split(",") if part.strip()]
    return patterns.find(pattern)


def _no_files(pattern: str, flag: str) -> ValueError:
    got, cure = f"none for {pattern!r}", "correct the path"
    if not remote.is_on_web(pattern) and files.path(pattern).is_dir():
        got, cure = f"the folder {pattern!r}", "add a name, such as /*.gz"
    return ValueError(f"--{flag}: wanted files, got {got}; {cure}")
