"""Every command: --help shows all flags, and what a user can cure is one line."""

import importlib
import json
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
from metaclip_jax.cli import command, errors

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for package in ("metaclip_jax", "data_prep", "examples")
    for path in (ROOT / package).rglob("*.py")
    if "command.run(main)" in path.read_text()
)
# A recipe of each command that takes one.
RECIPES = {
    "data_prep.build_metadata": "configs/metadata.py:en",
    "data_prep.curate": "configs/curate.py:400m",
    "metaclip_jax.data.inspect": "configs/quickstart.py",
    "metaclip_jax.plan": "configs/metaclip.py:vit_b32_400m",
    "metaclip_jax.train": "configs/metaclip.py:vit_b32_400m",
}
ARGUMENTS_ALONE = {"data_prep.verify"}  # these commands have no flags
# Runs command lines, each in a process of its own, that share the import of what they
# need. A mistake ends them before they start anything.
RUNNER = """
import importlib, json, os, runpy, sys, tempfile, traceback
commands = json.loads(sys.argv[1])
for imported, _, _ in commands:
    importlib.import_module(imported)
for _, module, lines in commands:
    for line in lines:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = [module, *line]
                code = 0
                try:
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                except SystemExit as end:
                    code = end.code
                except BaseException:
                    code = traceback.print_exc() or 1
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)  # tidying up takes seconds
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0), err.seek(0)
            found = status, out.read().decode(), err.read().decode()
            print(json.dumps([module, *found]), flush=True)
"""


def path_of(module):
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def imported_as(module):
    return f"{module}.__main__" if path_of(module).stem == "__main__" else module


def flags_of(module):
    """The names of the flags that its source defines."""
    source = path_of(module).read_text()
    if "model_flags.define" in source:
        source += (ROOT / "metaclip_jax/inference/model_flags.py").read_text()
    defined = re.findall(r"(?:DEFINE_\w+|text|number)\(\s*\"(\w+)\"", source)
    return defined + ["config"] * (module in RECIPES)


def swapped(name):
    """A name as it is mistyped: its last two different letters in the other order."""
    for i in range(len(name) - 2, -1, -1):
        if name[i] != name[i + 1] and "." not in name[i : i + 2]:
            return name[:i] + name[i + 1] + name[i] + name[i + 2 :]
    return name * 2


def mistakes_of(module):
    """Command lines with one mistake each, and what the answer has to name."""
    if flag := max(flags_of(module), key=len, default=""):
        yield [f"--{swapped(flag)}=1"], f"did you mean --{flag}?"
    yield ["--no_such_thing=1"], "--help lists them"
    if module not in RECIPES:
        return
    recipe = f"--config={RECIPES[module]}"
    file, _, variant = RECIPES[module].partition(":")
    key = "seed" if module == "data_prep.curate" else "pages.max_url_chars"
    key = key if module.startswith("data_prep") else "optimizer.peak_lr"
    group = key.partition(".")[0] if "." in key else "balance"
    yield [recipe, f"--config.{swapped(key)}=1"], f"did you mean --config.{key}?"
    yield [recipe, f"--config.{key}.x=1"], f"did you mean --config.{key}?"
    yield [recipe, f"--config.{group}=1"], f"{group}, which is a group; set one of"
    yield [recipe, f"--config.{key}=abc"], f"--config.{key}: wanted a"
    yield [recipe, f"--config.{key}"], f"--config.{key}"
    yield [f"--config={file.replace('.py', 's.py')}"], f"did you mean {file}?"
    yield [f"--config={file}:{variant}x"], f"{variant}x'"
    yield [f"--config.{swapped(key)}=1"], "--config"


WRONG = "--counts=/no/where --metadata=/no/where --t=20"
# Lines with a mistake that the command itself finds.
LINES = {
    "data_prep.explain": [
        WRONG,
        f"{WRONG} --verbosity=1",
        "--metadat=/no/where --verbosity=1",
        "counts --counts=c --metadata=m",
    ]
}
# Outputs that would replace files of another kind.
KINDS = [
    ("data_prep.report", "--dataset=x --output=x/features.json"),
    ("data_prep.report", "--dataset=x --output=x.png"),
    ("data_prep.explain", "--counts=x --metadata=x --t=2 --plot=x/card.json"),
    ("metaclip_jax.evaluate", "--workdir=x --output=x/manifest.json"),
    ("metaclip_jax.runs", "x --output=x/config.json"),
    ("metaclip_jax.runs", "x --output=LICENSE/x.html"),
]


def lines_of(module):
    """All command lines of it that are tried here."""
    yield ["--help"]
    yield from (line for line, _ in mistakes_of(module))
    yield from (line.split() for line in LINES.get(module, ()))
    yield from (line.split() for name, line in KINDS if name == module)


def run_all(modules):
    """Yields (module, status, stdout, stderr) of each of `lines_of`."""
    commands = [
        (imported_as(module), module, list(lines_of(module))) for module in modules
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER, json.dumps(commands)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


@pytest.fixture(scope="module")
def results():
    """(status, stdout, stderr) by module and line."""
    ours = [module for module in COMMANDS if module.startswith("metaclip_jax")]
    others = [module for module in COMMANDS if module not in ours]
    with ThreadPoolExecutor(2) as pool:
        rows = [row for some in pool.map(run_all, (ours, others)) for row in some]
    asked = [
        (module, " ".join(line))
        for module in (*ours, *others)
        for line in lines_of(module)
    ]
    assert [row[0] for row in rows] == [module for module, _ in asked]
    return {at: row[1:] for at, row in zip(asked, rows, strict=True)}


def test_there_are_commands():
    assert RECIPES.keys() < set(COMMANDS)
    with_config = {
        m for m in COMMANDS if "config_flag.define" in path_of(m).read_text()
    }
    assert with_config == RECIPES.keys()


@pytest.mark.parametrize("module", COMMANDS)
def test_help_shows_the_docstring_and_all_flags(results, module):
    status, shown, _ = results[module, "--help"]
    assert status == 0
    assert flags_of(module) or module in ARGUMENTS_ALONE
    for name in flags_of(module):
        assert re.search(rf"--(\[no\])?{name}:", shown), name
    docstring = importlib.import_module(imported_as(module)).__doc__
    assert docstring.strip() in shown  # also its line breaks
    # An example of several lines is several lines, to be copied as it is.
    assert not re.search(r"[^\\]\\\n", path_of(module).read_text().split('"""')[1])


@pytest.mark.parametrize("module", COMMANDS)
def test_a_mistake_on_the_command_line_is_one_line_that_names_the_cure(results, module):
    for line, cure in mistakes_of(module):
        status, shown, said = results[module, " ".join(line)]
        assert status == 1, line
        assert re.fullmatch(r"Error: .+\n", said), (line, said)
        assert cure in said, line
        assert not shown


def test_a_wrong_value_is_one_line_and_a_traceback_only_on_request(results):
    status, _, said = results["data_prep.explain", WRONG]
    assert status == 1
    (line,) = said.strip().splitlines()
    assert line.startswith("Error: ") and "/no/where" in line
    for wrong in (WRONG, "--metadat=/no/where"):
        status, _, said = results["data_prep.explain", f"{wrong} --verbosity=1"]
        assert status == 1
        named = "/no/where" if wrong == WRONG else "metadat"
        assert "Traceback" in said and named in said


@pytest.mark.parametrize(("module", "line"), KINDS)
def test_a_file_of_another_kind_is_not_replaced(results, module, line):
    status, _, said = results[module, line]
    assert status == 1
    cure = "give another path" if "LICENSE" in line else "rename it"
    assert re.fullmatch(rf"Error: wanted --(output|plot) to .*; {cure}\n", said)


def test_ctrl_c_ends_a_command_with_one_line():
    code = (
        "import signal, time\n"
        "from metaclip_jax.cli import command\n"
        "def main(argv):\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "command.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "Interrupted. The same command continues or starts again.\n"


def test_words_that_are_no_flags_are_refused(results):
    line = "counts --counts=c --metadata=m"
    status, _, said = results["data_prep.explain", line]
    assert status == 1
    assert said == "Error: wanted only flags, got 'counts'; --help lists them\n"


def test_only_what_our_own_code_raises_is_meant_for_users():
    """Whatever a library or Python itself raises in it is a fault to be traced."""
    with pytest.raises(app.UsageError) as ours:
        command.refuse_arguments(["program", "word"])
    assert errors.is_raised_by_us(ours.value)
    with pytest.raises(ValueError) as of_python:
        parts.partition_of(pa.array(["no digits"]), 1)
    assert not errors.is_raised_by_us(of_python.value)
    with pytest.raises(OSError) as of_a_library:
        files.write_bytes("/proc/no/such/file", b"")
    assert not errors.is_raised_by_us(of_a_library.value)
    assert not errors.is_raised_by_us(ValueError("never raised"))


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/proc/1", "/proc/1"),
        ("/proc/1", "/proc"),
        ("/proc/1/", "/proc/1"),
        ("/proc/1", "/proc/12"),
        ("/proc/1", "/proc/1/file"),
        ("", ""),
    ],
)
def test_a_path_of_the_command_line_that_cannot_be_used_is_named(path, named):
    """A file inside the folder only where it may not be written."""
    error = PermissionError(13, "Permission denied", named)
    said = errors.of_given_path(error, ["program", "word", f"--workdir={path}"])
    inside = named.startswith("/proc") and f"{path}/".startswith(f"{named}/")
    assert bool(said) == inside or named == "/proc/1/file"
    missing = FileNotFoundError(2, "No such file or directory", named)
    assert bool(errors.of_given_path(missing, ["program", f"--x={path}"])) == inside
    if said:
        assert said.startswith(f"--workdir={path}: Permission denied: {named}")
    assert not errors.of_given_path(OSError(5, "I/O error", named), ["p", path])
    assert not errors.of_given_path(ValueError(path), ["p", path])


def test_what_is_missing_is_named():
    command.refuse_missing({"--a": "x", "--b": 1})
    with pytest.raises(app.UsageError, match="^wanted --a, --c, got no value"):
        command.refuse_missing({"--a": "", "--b": 1, "--c": None})


def test_a_missing_or_a_second_argument_is_named():
    assert command.only_argument(["verify", "a"], "dataset folder") == "a"
    for given, got in ([], "none"), (["a", "b"], "a b"):
        with pytest.raises(
            app.UsageError, match=f"wanted one dataset folder after .*, got {got};"
        ):
            command.only_argument(["verify", *given], "dataset folder")


def test_a_name_of_a_file_cannot_control_the_terminal(capsys):
    with pytest.raises(SystemExit):
        errors.fail("a/\x1b[31m\u202e.png is damaged\nsee é 漢字")
    assert capsys.readouterr().err == (
        "Error: a/\\x1b[31m\\u202e.png is damaged\nsee é 漢字\n"
    )
