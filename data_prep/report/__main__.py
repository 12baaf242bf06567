"""Writes the report of a dataset, and of a run trained on it if there is one.

    python -m data_prep.report --dataset=DIR --held_out=DIR --workdir=RUN \\
        --output=report.html

The report is one self-contained HTML file. Without --workdir and --held_out it is about
curation only, and says so. With --curation, the workdir of `data_prep.curate`, it shows
some of what each reason dropped.
"""

from collections.abc import Sequence

from absl import flags, logging

from data_prep.report import page
from metaclip_jax import files
from metaclip_jax.cli import command


def main(argv: Sequence[str]) -> None:
    """Builds the page and writes it atomically."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    command.check_output("--output", values.output, ".html")
    content = page.build(
        values.dataset,
        held_out=values.held_out,
        workdir=values.workdir,
        curation_workdir=values.curation,
    )
    files.write_bytes(values.output, content)
    logging.info("wrote %s, %d kB", values.output, len(content) // 1000)


if __name__ == "__main__":
    flags.DEFINE_string(
        "dataset", None, "Folder of the curated dataset.", required=True
    )
    flags.DEFINE_string("held_out", None, "Folder of the held-out dataset.")
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string(
        "curation", None, "Workdir of the curation, with a sample of what was dropped."
    )
    flags.DEFINE_string("output", None, "HTML file to write.", required=True)
    command.run(main)
