"""Rules of the whole repository: imports, sizes, flags, README."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from data_prep import config as curation_keys
from metaclip_jax import config as training_keys
from metaclip_jax.cli import ranges

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("metaclip_jax", "data_prep")
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
RECIPES = sorted((ROOT / "configs").glob("*.py"))
# Modules that both programs share; they import neither side's heavy packages.
SHARED = {
    "metaclip_jax.cli.command",
    "metaclip_jax.cli.config_flag",
    "metaclip_jax.cli.errors",
    "metaclip_jax.data.balance",
    "metaclip_jax.data.colour",
    "metaclip_jax.data.containers",
    "metaclip_jax.data.decoding",
    "metaclip_jax.data.image_tags",
    "metaclip_jax.data.machine",
    "metaclip_jax.data.parquet_headers",
    "metaclip_jax.data.record_files",
    "metaclip_jax.data.records",
    "metaclip_jax.data.untrusted_parquet",
    "metaclip_jax.data.untrusted_tar",
    "metaclip_jax.files",
    "metaclip_jax.metric_rows",
    "metaclip_jax.pages.charts",
    "metaclip_jax.pages.numbers",
    "metaclip_jax.pages.page",
    "metaclip_jax.patterns",
    "metaclip_jax.cli.ranges",
}
# Modules that import no others of ours but these, so that they can be read alone.
LEAVES = {
    "metaclip_jax.cli.differences",
    "metaclip_jax.cli.ranges",
    "metaclip_jax.data.cloud_storage",
    "metaclip_jax.data.storage_errors",
    "metaclip_jax.files",
    "metaclip_jax.training.losses",
    "metaclip_jax.training.optimizer",
    "metaclip_jax.training.sharding",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def installed_with(requirement: str) -> set[str]:
    """Distributions that a requirement installs, as normalised names."""
    found, open_ = set(), [Requirement(requirement)]
    while open_:
        one = open_.pop()
        for extra in one.extras or {""}:
            key = (re.sub(r"[-_.]+", "-", one.name).lower(), extra)
            if key in found:
                continue
            found.add(key)
            try:
                needs = importlib.metadata.requires(one.name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # of another platform
            for need in map(Requirement, needs):
                if not need.marker or need.marker.evaluate({"extra": extra}):
                    open_.append(need)
    return {name for name, _ in found}


@pytest.mark.parametrize(
    "package, extra",
    [("metaclip_jax", "train"), ("metaclip_jax", "tpu"), ("data_prep", "data")],
)
def test_an_extra_installs_what_its_package_imports(package, extra):
    has = installed_with(f"metaclip-jax[{extra}]")
    homes = importlib.metadata.packages_distributions()
    for path in (p for p in SOURCES if inside(module_name(p), package)):
        for name in imports_of(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("torch", *PACKAGES):
                continue
            dists = {re.sub(r"[-_.]+", "-", d).lower() for d in homes.get(top, [])}
            assert dists & has, f"{path.name} imports {top}, which [{extra}] lacks"


def test_a_wheel_includes_the_files_that_are_not_modules():
    """setup.py names the patterns; a page without its template would fail."""
    text = (ROOT / "setup.py").read_text()
    call = next(
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup"
    )
    (data,) = [k.value for k in call.keywords if k.arg == "package_data"]
    packed = {
        path
        for package, patterns in ast.literal_eval(data).items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert packed == {ROOT / name for name in tracked if not name.endswith(".py")}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path):
    name = module_name(path)
    imports = imports_of(path)
    if inside(name, "data_prep"):
        ours = {i for i in imports if inside(i, "metaclip_jax")}
        assert all(any(inside(i, s) for s in SHARED) for i in ours), ours
        assert not {i for i in imports if inside(i, "jax") or inside(i, "flax")}
    else:
        assert not {i for i in imports if inside(i, "data_prep")}
        assert not {i for i in imports if inside(i, "apache_beam")}
        # Training, evaluation and inference import models and data, not vice versa.
        if name.split(".")[1:2] in (["models"], ["data"], ["conversion"]):
            for room in ("training.train_step", "evaluation", "inference"):
                assert not {i for i in imports if inside(i, f"metaclip_jax.{room}")}
        assert not {i for i in imports if inside(i, "examples")}
    if name in LEAVES:
        packages = {"metaclip_jax", "metaclip_jax.cli", "metaclip_jax.data"}
        ours = {i for i in imports if inside(i, "metaclip_jax")}
        assert ours <= LEAVES | packages
    assert not {i for i in imports if inside(i, "tensorflow")}
    if name != "metaclip_jax.conversion.weights":  # it reads torch's own files
        assert not {i for i in imports if inside(i, "torch")}


@pytest.mark.parametrize("module", sorted(SHARED))
def test_what_both_programs_share_loads_neither_jax_nor_beam(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"jax", "flax", "apache_beam", "tensorflow"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_import_only_the_config_of_their_side(path):
    allowed = {"ml_collections", "metaclip_jax.config", "data_prep.config"}
    assert all(any(inside(i, a) for a in allowed) for i in imports_of(path)), (
        imports_of(path)
    )


def test_a_package_has_at_most_12_top_level_modules():
    for package in PACKAGES:
        assert len(list((ROOT / package).glob("*.py"))) <= 12


@pytest.mark.parametrize("path", SOURCES + EXAMPLES + BENCHMARKS, ids=module_name)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 440
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 90, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES + RECIPES, ids=lambda p: p.stem)
def test_config_keys_are_read_by_attribute(path):
    # A locked ConfigDict still answers .get("typo", default).
    banned = re.compile(
        r"\b(config|cfg)(\.\w+)*\.get\(|(getattr|hasattr)\((config|cfg)\b"
    )
    assert not banned.search(path.read_text())


@pytest.mark.parametrize("path", SOURCES + EXAMPLES + BENCHMARKS, ids=module_name)
def test_flags_that_are_numbers_have_bounds(path):
    """A float needs a validator, since nan passes absl's bounds."""
    bounded, validated, floats = set(), set(), set()
    integers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        kind = node.func.attr
        if kind in ("DEFINE_integer", "DEFINE_float", "register_validator"):
            name = ast.literal_eval(node.args[0])
            if kind == "register_validator":
                validated.add(name)
            elif kind == "DEFINE_float":
                floats.add(name)
            else:
                integers.add(name)
                if len(node.args) > 3 or "lower_bound" in {
                    k.arg for k in node.keywords
                }:
                    bounded.add(name)
    assert integers <= bounded and floats <= validated


def test_importing_a_command_defines_no_flag():
    """Commands may share flag names, and absl allows each name once per process."""
    modules = [module_name(path) for path in SOURCES + EXAMPLES + BENCHMARKS]
    if importlib.util.find_spec("torch") is None:  # which these two import
        modules = [name for name in modules if "benchmarks.loader" not in name]
    code = "import importlib, sys\nfrom absl import flags\n"
    code += "for name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "ours = flags.FLAGS.flags_by_module_dict()\n"
    code += "print(sorted(set(ours) & set(sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_file_sizes_are_read_through_the_files_module(path):
    # epath's stat looks up the owner's name, which users of containers do not have.
    asks = re.compile(r"\.stat\(\)\.(length|mtime|owner|group)\b")
    assert module_name(path) == "metaclip_jax.files" or not asks.search(
        path.read_text()
    )


def test_no_file_has_the_marks_of_an_unfinished_merge():
    marks = ["git", "grep", "-nE", "^(<{7}|={7}|>{7})( |$)"]
    assert subprocess.run(marks, cwd=ROOT, capture_output=True, text=True).stdout == ""


def readme_tree() -> list[str]:
    """Paths in the README's tree: a block that starts with the project's name."""
    block = re.search(r"```text\nmetaclip-jax/\n(.*?)```", README, re.DOTALL).group(1)
    paths, stack = [], []
    for line in block.splitlines():
        entry = line.split("#")[0].rstrip()
        if not entry:  # a comment of several lines
            continue
        depth = (len(entry) - len(entry.lstrip())) // 2
        del stack[depth - 1 :]
        stack.append(entry.strip().rstrip("/"))
        paths.append("/".join(stack))
    return paths


README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""


def test_every_path_in_the_readme_tree_exists():
    assert readme_tree()
    missing = [p for p in readme_tree() if not (ROOT / p).exists()]
    assert not missing


def test_every_module_is_in_the_readme_tree():
    tree = set(readme_tree())
    files = {str(p.relative_to(ROOT)) for p in SOURCES if p.name != "__init__.py"}
    missing = {f for f in files if f not in tree and str(Path(f).parent) not in tree}
    assert not missing


def test_every_top_level_module_is_in_the_readme_tree_by_name():
    tree = set(readme_tree())
    for package in PACKAGES:
        files = {f"{package}/{p.name}" for p in (ROOT / package).glob("*.py")}
        assert files - {f"{package}/__init__.py"} <= tree


# Each question, and the file of the tree that answers it.
ANSWERS = {
    "where is the loss?": "metaclip_jax/training/losses.py",
    "when is a checkpoint written?": "metaclip_jax/train.py",
    "how is the MLP kernel sharded?": "metaclip_jax/training/sharding.py",
    "where is the default learning rate?": "metaclip_jax/config.py",
    "what are the bytes of a record?": "metaclip_jax/data/records.py",
    "why was this crawl record dropped?": "data_prep/sources/warc.py",
    "which weight is HF's text_projection?": "metaclip_jax/conversion/huggingface.py",
    "how is a class embedded?": "metaclip_jax/evaluation/zero_shot.py",
    "where do I add a source?": "data_prep/sources/kinds.py",
    "where do I add an evaluation?": "metaclip_jax/evaluation/evaluator.py",
    "where do I add a task?": "metaclip_jax/evaluation/texts",
    "where do I add a data key?": "metaclip_jax/config.py",
    "where do I add a model?": "metaclip_jax/models/presets.py",
}


def test_the_tree_names_the_file_that_answers_a_question():
    assert set(ANSWERS.values()) <= set(readme_tree())


def test_every_command_in_the_readme_exists():
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    ours = {m for m in modules if m.split(".")[0] in (*PACKAGES, "examples")}
    assert ours
    for module in ours:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
    targets = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(f"\n{t}:" in makefile for t in targets)


def names_in(path):
    """Returns the names that a module reads, takes or passes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg | ast.keyword):
            yield node.arg
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # values["key"]


@pytest.mark.parametrize(
    ("package", "configs"),
    [
        ("metaclip_jax", [training_keys.default]),
        ("data_prep", [curation_keys.curate, curation_keys.metadata]),
    ],
)
def test_every_config_key_is_named_where_it_is_used(package, configs):
    lists = {ROOT / package / name for name in ("config.py", "config_ranges.py")}
    modules = [p for p in SOURCES if inside(module_name(p), package) and p not in lists]
    named = set().union(*map(names_in, modules))
    wanted = {key for make in configs for key, _ in ranges.flat(make())}
    assert not {key for key in wanted if key.rpartition(".")[2] not in named}
