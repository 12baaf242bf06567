"""Names of synsets out of WordNet: Princeton's files, or the Open Multilingual Wordnet.

English entries are as the paper counts them, one for each name of a synset: its first
lemma in lower case, with spaces. WordNet 3.0 has 86,571 of them and 3.1 86,648 (the
paper: 86,654). The entries of other languages are all lemmas of their synsets, in the
case in which they are written, since their first lemma does not name the synset.
The codes of OMW (ISO 639-3) are in the table of editions, for the 31 languages of the
paper: its als is Albanian (sq), but the Wikipedia als is Alemannic.

Both formats have a line for each synset or lemma, and are read here: nltk's reader
opens only what is installed as its data, with two files that Debian's WordNet lacks,
and wn's only its own database; both need a local disk.
"""

import re
from collections import Counter

from data_prep.metadata import editions
from data_prep.sources import compressed, remote
from metaclip_jax import patterns

PRINCETON = ("data.noun", "data.verb", "data.adj", "data.adv")
_MAX_LINE = 1 << 20  # bytes
_SYNSET = re.compile(rb"\d{8} \d\d [nvasr] [0-9a-f]{2} (\S+) [0-9a-f] ")
_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # of adjectives: their position
_LEMMA = re.compile(
    rb"\d{8}-[nvasr]\t(?:(?P<language>[A-Za-z]{3}):)?lemma\t(?P<lemma>[^\t\r\n]+)"
)
_OTHER_ROW = re.compile(rb"#|\d{8}-[nvasr]\t(?!\S*lemma\t)\S+\t|\s*$")
_GAPS = ("", "GAP!", "PSEUDOGAP!", "nolex")  # no word of the language is known
_PARTICLE = re.compile(r"\+[的地]$")  # of Chinese adjectives and adverbs
# Vowel signs, which Arabic and Hebrew texts leave out.
_VOWELS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652\u0670\u0640]"
)


def find(folder: str, code: str, *, user_agent: str = "") -> list[str]:
    """Returns the files of a language in a folder, [] if it has none.

    English: Princeton's data.noun, data.verb, data.adj and data.adv if the folder has
    them. Else wn-data-XXX.tab in the folder, or below it if the folder can be listed.

    Args:
      folder: local, gs:// or http(s)://.
      code: of a Wikipedia.
      user_agent: the header that a web server gets, see `remote.open_file`.
    """
    place = folder.rstrip("/")
    princeton = [f"{place}/{name}" for name in PRINCETON]
    if code == "en" and all(_exists(file, user_agent) for file in princeton):
        return princeton
    edition = editions.table().get(code)
    if not edition or not edition.wordnet:
        return []
    name = f"wn-data-{edition.wordnet}.tab"
    if remote.is_on_web(folder):
        file = f"{place}/{name}"
        return [file] if _exists(file, user_agent) else []
    return patterns.find(f"{place}/**/{name}")


def read_names(path: str, *, lost: Counter[str], user_agent: str = "") -> Counter[str]:
    """Reads a file of Princeton's WordNet or of OMW.

    Args:
      path: one of those that `find` returned.
      lost: gets the number of lines that are dropped: "malformed_line".
      user_agent: as in `find`.

    Returns:
      Names -> the number of synsets that have each.

    Raises:
      ValueError: no line is in the format, or the last line is truncated.
      OSError: the file cannot be opened or the storage fails.
    """
    name = path.rsplit("/", 1)[-1]
    is_princeton = name in PRINCETON
    language = name.removeprefix("wn-data-").removesuffix(".tab").encode()
    names = Counter[str]()
    with remote.open_file(path, user_agent=user_agent) as file:
        for line in compressed.lines(file, most=_MAX_LINE):
            if line and not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}: wanted a last line that ends, got a truncated file;"
                    " restore the file"
                )
            if line is None:
                lost["malformed_line"] += 1
            elif is_princeton:
                synset = _SYNSET.match(line)
                if synset:
                    lemma = _MARKER.sub("", synset[1].decode("latin-1"))
                    names[_name(lemma).lower()] += 1
                elif not line.startswith(b"  "):  # the licence
                    lost["malformed_line"] += 1
            elif (row := _LEMMA.match(line)) and (
                (row["language"] or language).lower() == language
            ):
                text = _VOWELS.sub("", row["lemma"].decode("utf-8", "replace"))
                names[_name(_PARTICLE.sub("", text))] += 1
            elif not _OTHER_ROW.match(line):
                lost["malformed_line"] += 1
    for gap in _GAPS:
        del names[gap]
    if not names:
        what = "synsets of Princeton's WordNet" if is_princeton else "lemmas of OMW"
        raise ValueError(
            f"{path}: wanted lines with {what}, got none; restore the file"
        )
    return names


def _name(written: str) -> str:
    return " ".join(written.replace("_", " ").split())


def _exists(path: str, user_agent: str) -> bool:
    try:
        remote.size(path, user_agent=user_agent)
    except FileNotFoundError:
        return False
    return True
