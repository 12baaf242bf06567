"""Pages that are made from the code are up to date."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from metaclip_jax.models import clip, presets

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def write_config():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "docs/write_config.py")))


def test_the_page_of_config_keys_is_up_to_date(write_config):
    assert write_config.PAGE.read_text() == write_config.page(), "run `make docs`"


def test_the_page_of_tasks_is_up_to_date():
    written = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/write_tasks.py")))
    assert written.PAGE.read_text() == written.page(), "run `make docs`"


def test_the_page_of_languages_is_up_to_date():
    written = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/write_languages.py")))
    assert written.PAGE.read_text() == written.page(), "run `make docs`"


@pytest.mark.parametrize(
    "text",
    [
        "# Of all.\n\ndef f():\n    # The first\n    # key.\n    config.a.b = 1\n"
        "    # A heading.\n    config.c = (\n        2\n    )  # the second\n"
        "    config.d = g()\n\ndef g():\n    d.e = 3  # the third\n",
        'def f():\n    return lock({"a": {\n        # The first\n        # key.\n'
        '        "b": 1},\n        # A heading.\n        "c": 2,  # the second\n'
        '        "d": g()})\n\ndef g():\n    return {"e": 3}  # the third\n',
    ],
    ids=["attributes", "dict"],
)
def test_comments_beside_and_above_keys_are_found(write_config, tmp_path, text):
    (tmp_path / "config.py").write_text(text)
    module = SimpleNamespace(__file__=str(tmp_path / "config.py"))
    assert write_config.comments(module, "f") == {
        "a.b": "The first key.",
        "c": "the second",
        "d.e": "the third",
    }


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_table_of_architectures_has_each_preset_with_its_parameters(name):
    count = clip.parameter_count(presets.architecture(name))
    millions = (f"{count[part] / 1e6:.2f}" for part in ("image", "text", "total"))
    row = f"| `{name}` | {', '.join(millions)} |"
    assert row in (ROOT / "docs/models.md").read_text()
