"""Writes docs/tasks.md: every task of evaluation, its licence, and how to get it.

    python docs/write_tasks.py

The tasks come from the tables in metaclip_jax/evaluation/texts.
"""

from collections.abc import Iterable
from pathlib import Path

from metaclip_jax.evaluation import downloads, tasks

PAGE = Path(__file__).with_name("tasks.md")
HEAD = """# Tasks of evaluation

Written by `python docs/write_tasks.py` from the tables in
[metaclip_jax/evaluation/texts](../metaclip_jax/evaluation/texts): edit those. How tasks
are run, and what was proven, is in [evaluation.md](evaluation.md).

Data sets are not ours. A licence here is what a data set's makers state, "none stated"
where we found nothing: read it before you download. `DIR` is what `--data_dir` names.
Sizes are those of the test files in the hub's listings, or of the archive that is
fetched. After "~" it is the size of another copy of the same images, which may differ
(Country211 takes 3.8 GB in clip-benchmark's repository and 4.5 GB here). Where we found
neither, it is estimated from images of the same kind, and says so.
[sizes.tsv](../metaclip_jax/evaluation/texts/sizes.tsv) has the source of each.
No image of these tasks was at hand where this project was made.
"""
PAPER = """
## clip26

"same" says whether the test set is the paper's. Where there is no official split, the
paper's own is not published, and the number is near the paper's but not comparable.
"proven" says what was compared with other sources: the prompts with the paper's, by
fingerprint, and the order of labels with clip_benchmark's lists, by name.
"""
DATACOMP = """
## datacomp38

Class names and templates come with the data. `acc_worst_region` of FMoW is DataComp's,
which counts the region "Other" of a few images and is 0 for many models; the number as
WILDS means it, without that region, is given beside it as `worst_group_without_other`.
Flickr and MSCOCO are the Karpathy test sets, which DataComp takes from `nlphuji/NAME`,
in Parquet with the columns `image` and `caption`: that can be read, too.
"""
LANGUAGES = """
## By language

`--tasks=xm3600` is the mean over 36 languages, `--tasks=babel` over the 90 that have
both class names and prompts; a single one is `xm3600/de`. Images are embedded once.
"""
# Tasks of the paper whose labels were matched with clip_benchmark's lists.
ORDERED = (
    "flowers102 gtsrb country211 eurosat fer2013 caltech101 imagenet clevr_counts mnist"
    " kitti_distance oxford_pets pcam"
).split()


def _rows(header: str, rows: Iterable[tuple[object, ...]]) -> list[str]:
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|" + "---|" * columns]
    for row in rows:
        cells = (str(cell).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _count(number: int) -> str:
    return f"{number:,}" if number else "varies"


def paper() -> list[str]:
    """The paper's 26."""
    rows = (
        (
            f"`{task.id}`",
            task.classes,
            _count(task.images),
            task.metric,
            downloads.size(task),
            task.licence,
            f"`{downloads.how(task, 'DIR')}`",
            "yes" if task.same else "no",
            "prompts, order of labels" if task.id in ORDERED else "prompts",
            task.note,
        )
        for task in tasks.table("clip26")
    )
    return [
        PAPER,
        *_rows(
            "id | classes | images | metric | size | licence | how to get it | same"
            " | proven | note",
            rows,
        ),
    ]


def datacomp() -> list[str]:
    """DataComp's 38."""
    rows = (
        (
            f"`{task.id}`",
            _count(task.images),
            task.metric,
            downloads.size(task),
            task.licence,
            f"`{downloads.how(task, 'DIR')}`",
        )
        for task in tasks.table("datacomp38")
    )
    return [
        DATACOMP,
        *_rows("id | images | metric | size | licence | how to get it", rows),
    ]


def languages() -> list[str]:
    """XM3600 and Babel-ImageNet, whose tasks are languages."""
    rows = []
    for suite in tasks.BY_LANGUAGE:
        found = tasks.table(suite)
        codes = " ".join(task.id for task in found)
        how = downloads.how(found[0], "DIR")
        size = downloads.size(found[0])
        row = f"`{suite}/CODE`", found[0].metric, size, found[0].licence, how, codes
        rows.append(row)
    return [
        LANGUAGES,
        *_rows("id | metric | size | licence | how to get it | codes", rows),
    ]


def page() -> str:
    """Returns the whole page."""
    return HEAD + "\n".join([*paper(), *datacomp(), *languages()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
