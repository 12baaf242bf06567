"""Renders HTML pages that load nothing and run only their own scripts.

A page is a Jinja2 template of the package that shows it, and extends `base.html`. All
inserted values are escaped. Texts from strangers need the filter `stranger`, which also
shortens them and isolates their writing direction.
"""

import base64
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from metaclip_jax.pages import charts, numbers

# The browser must not fetch or run anything, even if escaping failed.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
# Characters that change the direction of the text after them; pages use <bdi> instead.
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e") | {
    chr(code) for code in range(0x2066, 0x206A)
}
# Real scripts need at most three marks on a letter; a hundred would cover other lines.
_MAX_MARKS = 3


def render(
    package: str,
    template: str,
    *,
    title: str,
    has_charts: bool,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]] | None = None,
    scripts: Sequence[str] = (),
) -> bytes:
    """Renders a template of `package`/templates to a page in UTF-8.

    A page that `has_charts` contains the chart scripts (0.9 MB), and `scripts` are
    further files of the templates' folder. The page's content security policy allows
    only these, by their hashes.
    """
    loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader(package), jinja2.PackageLoader(__package__)]
    )
    environment = jinja2.Environment(
        loader=loader,
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
    own = [loader.get_source(environment, name)[0] for name in scripts]
    contents = (_scripts() if has_charts else []) + own
    allowed = " ".join(f"'sha256-{_digest(script)}'" for script in contents)
    page = environment.get_template(template).render(
        title=title,
        policy=Markup(_POLICY + (f"; script-src {allowed}" if allowed else "")),
        scripts=[Markup(script) for script in contents],
        font=Markup(charts.FONT),
        **values,
    )
    return page.encode("utf-8")


@functools.cache
def _scripts() -> list[str]:
    """Returns the scripts of charts: vega-embed's bundle, and charts.js."""
    loader = jinja2.PackageLoader(__package__)
    start, _, _ = loader.get_source(jinja2.Environment(), "charts.js")
    bundle: Any = vl_convert.javascript_bundle  # its type stub is wrong
    return [bundle(), start]


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def clean(text: str, limit: int = 160) -> str:
    """Returns a stranger's text as one printable line of at most `limit` characters.

    Control and direction characters are removed, lone surrogates become U+FFFD, and
    runs of combining marks and of spaces are shortened. The result is not escaped.
    """
    kept: list[str] = []
    marks = 0
    # Limit the loop too: a text may be megabytes long.
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
    """Returns a stranger's text, cleaned, escaped and in a <bdi>."""
    return Markup('<bdi dir="auto">{}</bdi>').format(clean(text, limit))
