"""Every command: --help shows all flags, and what a user can cure is one line."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from absl import app

from data_prep.stages import parts
from metaclip_jax import files
from metaclip_jax.cli import command

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("metaclip_jax", "data_prep")
    for path in (ROOT / package).rglob("*.py")
    if "command.run(main)" in path.read_text()
)


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def helped():
    with ThreadPoolExecutor(2) as pool:
        return dict(
            zip(COMMANDS, pool.map(lambda m: run(m, "--help"), COMMANDS), strict=True)
        )


def path_of(module):
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def test_there_are_commands():
    assert {"metaclip_jax.train", "data_prep.curate"} <= set(COMMANDS)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_shows_the_docstring_and_all_flags(helped, module):
    source = path_of(module).read_text()
    if "model_flags" in source:
        source += (ROOT / "metaclip_jax" / "model_flags.py").read_text()
    defined = re.findall(r"(?:DEFINE_\w+|text|number)\(\s*\"(\w+)\"", source)
    assert defined
    shown = helped[module].stdout
    assert not [
        name for name in defined if not re.search(rf"--(\[no\])?{name}:", shown)
    ]
    # An example of several lines is several lines, to be copied as it is.
    for line in re.findall(r"^    .*\\\\$", source.split('"""')[1], re.MULTILINE):
        assert line.replace("\\\\", "\\") in shown.splitlines()
    assert not re.search(r"[^\\]\\\n", source.split('"""')[1])


def test_a_wrong_value_is_one_line_and_a_traceback_only_on_request():
    wrong = ["--counts=/no/where", "--metadata=/no/where", "--t=20"]
    done = run("data_prep.explain", *wrong)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ") and "/no/where" in line
    done = run("data_prep.explain", *wrong, "--verbosity=1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "/no/where" in done.stderr


def test_words_that_are_no_flags_are_refused():
    done = run("data_prep.explain", "counts", "--counts=c", "--metadata=m")
    assert done.returncode == 1
    assert done.stderr == "Error: wanted flags alone, got 'counts'; --help shows them\n"


def test_only_what_our_own_code_raises_is_meant_for_users():
    """Whatever a library or Python itself raises in it is a fault to be traced."""
    with pytest.raises(app.UsageError) as ours:
        command.refuse_arguments(["program", "word"])
    assert command.is_raised_by_us(ours.value)
    with pytest.raises(ValueError) as of_python:
        parts.partition_of(pa.array(["no digits"]), 1)
    assert not command.is_raised_by_us(of_python.value)
    with pytest.raises(OSError) as of_a_library:
        files.write_bytes("/proc/no/such/file", b"")
    assert not command.is_raised_by_us(of_a_library.value)
    assert not command.is_raised_by_us(ValueError("never raised"))
