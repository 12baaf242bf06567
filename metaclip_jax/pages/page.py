"""The frame of every HTML page: it loads nothing and runs only the script it brings.

Pages are Jinja2 templates of the package that shows them, over `base.html` here. All
that a template inserts is escaped. What strangers wrote goes through the filter
`stranger`, which also bounds it and keeps its direction from leaking into the page.
"""

import base64
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from metaclip_jax.pages import charts, numbers

# Nothing may be fetched or run, whatever a text in a page tries.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
# Characters that steer the layout of what follows them; <bdi> does that job here.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e") | {
    chr(code) for code in range(0x2066, 0x206A)
}
# Honest scripts need three marks on a letter; a hundred would cover other lines.
_MAX_MARKS = 3


def render(
    package: str,
    template: str,
    *,
    title: str,
    has_charts: bool,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> bytes:
    """Returns a page in UTF-8: a template of `package`/templates over the frame.

    The script that draws charts (0.9 MB) comes with the page if it `has_charts`. Then
    the page's policy names that script by its hash, and no other runs.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package), jinja2.PackageLoader(__package__)]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "clean": clean,
        "stranger": stranger,
        "count": numbers.count,
        "percent": numbers.percent,
        "short": numbers.short,
        **(filters or {}),
    }
    environment.globals |= {"ratio": numbers.ratio, "times": numbers.times}
    scripts = _scripts() if has_charts else []
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    page = environment.get_template(template).render(
        title=title,
        policy=Markup(_POLICY + (f"; script-src {allowed}" if allowed else "")),
        scripts=[Markup(script) for script in scripts],
        font=Markup(charts.FONT),
        **values,
    )
    return page.encode("utf-8")


@functools.cache
def _scripts() -> list[str]:
    """Vega with its embedding, and the lines that start it on each chart."""
    loader = jinja2.PackageLoader(__package__)
    start, _, _ = loader.get_source(jinja2.Environment(), "charts.js")
    bundle: Any = vl_convert.javascript_bundle  # its stub wants a needless argument
    return [bundle(), start]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def clean(text: str, limit: int = 160) -> str:
    """Returns strangers' text as one printable line of at most `limit` characters.

    Control and direction characters go, lone surrogates become U+FFFD, runs of
    combining marks and of spaces are shortened. It is not escaped yet.
    """
    kept: list[str] = []
    marks = 0
    # Bounded before the loop too: a text may be megabytes long.
    for character in text[: 8 * limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Cs":
            kept.append("\ufffd")
        elif category in ("Cc", "Zl", "Zp"):
            kept.append(" ")
        elif character not in _BIDI_CONTROLS and marks <= _MAX_MARKS:
            kept.append(character)
    line = re.sub(r"\s+", " ", "".join(kept)).strip()
    shortened = len(line) > limit or len(text) > 8 * limit
    return line[: limit - 1].rstrip() + "\u2026" if shortened else line


def stranger(text: str, limit: int = 160) -> Markup:
    """Text from outside, isolated in a <bdi> of its own direction."""
    return Markup('<bdi dir="auto">{}</bdi>').format(clean(text, limit))
