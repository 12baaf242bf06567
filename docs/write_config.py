"""Writes docs/config.md: every config key with its default, range and comment.

    python docs/write_config.py

The keys, their defaults and comments come from metaclip_jax/config.py and
data_prep/config.py, the ranges from the tables below them.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from data_prep import config as curation
from metaclip_jax import config as training
from metaclip_jax.cli import ranges

PAGE = Path(__file__).with_name("config.md")
HEAD = """# Config keys

Every key of training, curation and metadata. Written by `python docs/write_config.py`
from [metaclip_jax/config.py](../metaclip_jax/config.py) and
[data_prep/config.py](../data_prep/config.py): edit those. A recipe in `configs/` says
which values differ from these defaults, and `--config.KEY=VALUE` on the command line
overrides both. A value outside its range ends a command before it starts anything.
"""


def comments(module: ModuleType, function: str) -> dict[str, str]:
    """Returns the comment of each key that a function of a config.py sets.

    A key's comment is on its line, or else on the lines above it.
    """
    text = Path(str(module.__file__)).read_text()
    functions = {
        node.name: node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }
    after: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            own_line = token.line.strip().startswith("#")
            words = token.string.lstrip("# ").strip()
            (alone if own_line else after)[token.start[0]] = words
    found = {}
    for key, first, last in _keys(functions, function):
        above: list[str] = []
        while first - len(above) - 1 in alone:
            above.insert(0, alone[first - len(above) - 1])
        found[key] = after.get(last, " ".join(above))
    return found


def _keys(
    functions: dict[str, ast.FunctionDef], name: str
) -> Iterator[tuple[str, int, int]]:
    """Yields (key path, first line, last line) of what a function sets.

    That is `config.KEY = value`, or `{"KEY": value}`; a value that another function of
    the module makes is a group of keys.
    """
    for node in ast.walk(functions[name]):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            key = ast.unparse(node.targets[0]).partition(".")[2]
            yield from _group(functions, key, node.value, node)
    for node in functions[name].body:
        if isinstance(node, ast.Return) and node.value is not None:
            yield from _members(functions, "", node.value)


def _members(
    functions: dict[str, ast.FunctionDef], path: str, value: ast.expr
) -> Iterator[tuple[str, int, int]]:
    if isinstance(value, ast.Call) and value.args:  # what locks the dict
        value = value.args[0]
    if isinstance(value, ast.Dict):
        for key, member in zip(value.keys, value.values, strict=True):
            assert isinstance(key, ast.Constant) and isinstance(key.value, str)
            yield from _group(functions, f"{path}{key.value}", member, member)


def _group(
    functions: dict[str, ast.FunctionDef],
    key: str,
    value: ast.expr,
    at: ast.stmt | ast.expr,
) -> Iterator[tuple[str, int, int]]:
    called = value.func if isinstance(value, ast.Call) else None
    if isinstance(called, ast.Name) and called.id in functions:
        for member, first, last in _keys(functions, called.id):
            yield f"{key}.{member}", first, last
    elif isinstance(value, ast.Dict):
        yield from _members(functions, f"{key}.", value)
    elif not (isinstance(called, ast.Name) and called.id == "ConfigDict"):
        yield key, at.lineno, at.end_lineno or at.lineno


def render(
    title: str, config: ConfigDict, table: ranges.Table, said: dict[str, str]
) -> str:
    """Returns a table in Markdown, a row per key.

    Raises:
      ValueError: a key has no comment.
    """
    rows = [f"## {title}", "", "| key | default | values | what it is |"]
    rows.append("|---|---|---|---|")
    defaults = dict(ranges.flat(config))
    for key, row in table.items():
        if not said.get(key):
            raise ValueError(
                f"{title}: wanted a comment beside {key}, got none; add it"
            )
        cells = (f"`{key}`", f"`{defaults[key]!r}`", row.wanted(), said[key])
        rows.append(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        )
    return "\n".join(rows)


def page() -> str:
    """Returns the whole page."""
    parts = (
        ("Training", training.default(), training.RANGES, training, "default"),
        ("Curation", curation.curate(), curation.CURATE_RANGES, curation, "curate"),
        (
            "Metadata",
            curation.metadata(),
            curation.METADATA_RANGES,
            curation,
            "metadata",
        ),
    )
    return (
        "\n\n".join(
            [
                HEAD.rstrip("\n"),
                *(
                    render(title, config, table, comments(module, function))
                    for title, config, table, module, function in parts
                ),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
