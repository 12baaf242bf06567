"""Writes the report of a dataset and, where there is one, of the run trained on it.

    python -m data_prep.report --dataset=DIR --held_out=DIR --workdir=RUN \\
        --output=report.html

The report is one file that opens from disk and loads nothing. Before there is a run,
leave out --workdir and --held_out: it is then about curation only, and says so.
"""

from collections.abc import Sequence

from absl import flags, logging

from data_prep.report import page
from metaclip_jax import files
from metaclip_jax.cli import command

_DATASET = flags.DEFINE_string(
    "dataset", None, "Folder of the curated dataset.", required=True
)
_HELD_OUT = flags.DEFINE_string("held_out", None, "Folder of the held-out dataset.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the training run.")
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.", required=True)


def main(argv: Sequence[str]) -> None:
    """Builds the page and writes it whole or not at all."""
    command.refuse_arguments(argv)
    content = page.build(
        _DATASET.value, held_out=_HELD_OUT.value, workdir=_WORKDIR.value
    )
    files.write_bytes(_OUTPUT.value, content)
    logging.info("wrote %s, %d kB", _OUTPUT.value, len(content) // 1000)


if __name__ == "__main__":
    command.run(main)
