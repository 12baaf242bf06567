"""The Wikipedia editions that metadata is built from, and which metadata each joins.

The table is editions.tsv; docs/languages.md shows it with the rules behind it. A
metadata's code is that of its main edition, or "other" for editions of languages
without metadata of their own. A metadata is the union of its editions' entries.
"""

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

OTHER = "other"
# Metadata of an edition that is not read.
UNREAD = ""
# Scripts without spaces between words, as in the names of Unicode's letters.
UNSPACED = frozenset(("CJK", "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN"))

_TABLE = Path(__file__).with_name("editions.tsv")
_NOTHING = "-"
_DOMAINS = {"be_x_old": "be-tarask"}  # renamed without its database


class Edition(NamedTuple):
    """A line of the table; "" where it has nothing.

    `code` is that of its dumps' names ("zh_yue"), `metadata` the code of the metadata
    that it is part of, or UNREAD. `scripts` are those that it is written in, the most
    used first. `wordnet` is the code of its Open Multilingual Wordnet, and `lid` that
    of lid.176 whose texts are matched with `metadata`.
    """

    code: str
    name: str
    metadata: str
    scripts: tuple[str, ...]
    wordnet: str
    lid: str
    note: str

    @property
    def needs_segmentation(self) -> bool:
        """Whether its texts must be segmented, since no spaces separate words."""
        return self.scripts[0] in UNSPACED

    @property
    def domain(self) -> str:
        """The code in its address and in page view files ("zh-yue")."""
        return _DOMAINS.get(self.code, self.code.replace("_", "-"))


@cache
def table() -> dict[str, Edition]:
    """Returns all editions by code, in alphabetical order."""
    lines = _TABLE.read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    editions = {}
    for row in rows[1:]:
        code, name, metadata, scripts, *rest = (
            "" if cell == _NOTHING else cell for cell in row
        )
        editions[code] = Edition(code, name, metadata, tuple(scripts.split()), *rest)
    return editions


def languages() -> tuple[str, ...]:
    """Returns the codes of all metadata: the editions with their own, then "other"."""
    return (*(e.code for e in table().values() if e.metadata == e.code), OTHER)


def members(languages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the editions that each metadata is built from, its main edition first.

    That of "other" is "other" itself: pages in languages without metadata.

    Args:
      languages: codes of metadata. An edition among them has its own metadata, whatever
        the table says, and is part of no other.

    Raises:
      ValueError: there is none, one is unknown, or one is given twice.
    """
    _check(languages)
    rest = [e for e in table().values() if e.code not in languages]
    return {
        code: (code, *(edition.code for edition in rest if edition.metadata == code))
        for code in languages
    }


def _check(languages: Sequence[str]) -> None:
    known = [*table(), OTHER]
    if not languages or len(set(languages)) < len(languages):
        raise ValueError(
            "config.languages: wanted one or more, each once, as codes of Wikipedia "
            f"such as en or zh_yue, got {tuple(languages)}"
        )
    unknown = [code for code in languages if code not in known]
    if unknown:
        renamed = {e.lid: e.code for e in table().values()}
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        meant = renamed.get(unknown[0]) or unknown[0].replace("-", "_")
        if meant not in known:
            meant = close[0] if close else ""
        raise ValueError(
            "config.languages: wanted Wikipedias of docs/languages.md, or "
            f"{OTHER!r}, got {', '.join(map(repr, unknown))}; "
            + (f"did you mean {meant!r}?" if meant else "correct them")
        )
