"""Runs all benchmarks, one after another, and writes docs/benchmarks.md.

    python -m benchmarks.run_all                            # about half an hour
    python -m benchmarks.run_all --only=matching,loader     # keeps the page's others

Each benchmark prints lines of figures. A line `NAME: 4.2x what` is a ratio and goes
into the table at the top of the page, which is written after each benchmark. Nothing
else should run on the machine meanwhile.

benchmarks.crawl reads pages of Debian's gimp-help-en and python3.11-doc, or of others.
The others, benchmarks.accelerator, .bigrams, .language and those of `make plans`, write
pages of their own; benchmarks.loss_curves and .wikitext write none.
"""

import ast
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from metaclip_jax.cli import command

_ROOT = Path(__file__).resolve().parents[1]
_ELSEWHERE = {
    *("accelerator", "bigrams", "language", "loss_curves", "wikitext"),
    *("run_all", "tpu_plans", "tpu_step"),
}
# Libraries that the benchmarks use or compare with.
_LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "libtpu",
    "torch",
    "torchvision",
    "transformers",
    "webdataset",
    "numpy",
    "numba",
    "pyarrow",
    "pyahocorasick",
    "duckdb",
    "nltk",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "tokenizers",
    "array_record",
    "fastwarc",
    "selectolax",
)
RATIO = re.compile(r"(?P<name>[^:]+): (?P<ratio>\d[\d.,]*x) (?P<what>.+)")


class Result(NamedTuple):
    """What one benchmark printed, and its exit status."""

    name: str
    lines: list[str]
    seconds: float
    status: int


def names() -> list[str]:
    """Returns the benchmarks that have no separate page."""
    benchmarks = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _ELSEWHERE and "command.run(main)" in path.read_text():
            benchmarks.append(path.stem)
    return benchmarks


def run(name: str) -> Result:
    """Runs a benchmark, and prints its lines as they arrive."""
    start, lines = time.monotonic(), []
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    status = process.wait()
    return Result(name, lines, time.monotonic() - start, status)


def machine() -> str:
    """Returns the CPU, the cores of this process, the memory and the system."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = re.search(r"model name\s*: (.+)", info.read_text())
        cpu = model[1] if model else cpu
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory,"
        f" {platform.system()}"
    )


def versions() -> str:
    """Returns Python's version and those of the libraries that are installed."""
    parts = [f"Python {platform.python_version()}"]
    for library in _LIBRARIES:
        try:
            parts.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {library}")
    return ", ".join(parts)


def section(result: Result, *, date: str, where: str) -> str:
    """Returns what the page says of one benchmark: its purpose and all its output."""
    source = Path(__file__).with_name(f"{result.name}.py").read_text()
    headline = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    out = [f"## benchmarks.{result.name}", "", headline, "", "```text"]
    out += [line for line in result.lines if line]
    if result.status:
        out.append(f"It failed with status {result.status}.")
    out += ["```", "", f"It took {result.seconds:,.0f} s on {date}: {where}."]
    return "\n".join(out) + "\n"


def sections(page: str) -> dict[str, str]:
    """Returns the sections of a page that was written before, by benchmark."""
    _, *texts = re.split(r"^## benchmarks\.", page, flags=re.MULTILINE)
    return {
        text.split("\n", 1)[0]: f"## benchmarks.{text.rstrip()}\n" for text in texts
    }


def page(sections_by_name: Mapping[str, str], *, libraries: str) -> str:
    """Returns docs/benchmarks.md: a table of ratios, then the sections by name."""
    out = [
        "# Benchmarks",
        "",
        "Written by `make bench`. The docstring of each script in `benchmarks/` says",
        "what it measures, and how. Figures differ between machines; ratios differ",
        "less, since their two sides alternate in one run.",
        "",
        f"Versions of the newest section: {libraries}.",
        "",
        "| benchmark | ratio | of what |",
        "|---|---|---|",
    ]
    texts = [text for _, text in sorted(sections_by_name.items())]
    for line in "".join(texts).splitlines():
        if ratio := RATIO.fullmatch(line):
            cells = (cell.replace("|", "\\|") for cell in ratio.groups())
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, "", *texts])


def main(argv: Sequence[str]) -> int:
    """Runs the benchmarks and writes the page; returns 1 if one of them failed."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if unknown := sorted(set(values.only) - set(names())):
        raise app.UsageError(
            f"--only: wanted names among {', '.join(names())}, got"
            f" {', '.join(unknown)}; correct them"
        )
    output, failed = Path(values.output), False
    by_name = sections(output.read_text()) if output.exists() else {}
    by_name = {name: text for name, text in by_name.items() if name in names()}
    for name in values.only or names():
        result = run(name)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        by_name[name] = section(result, date=date, where=machine())
        output.write_text(page(by_name, libraries=versions()))
        print(f"wrote {name} to {output}")
        failed |= result.status != 0
    return int(failed)


if __name__ == "__main__":
    flags.DEFINE_list("only", [], "Benchmarks to run; empty = all.")
    flags.DEFINE_string("output", str(_ROOT / "docs/benchmarks.md"), "Page to write.")
    command.run(main)
