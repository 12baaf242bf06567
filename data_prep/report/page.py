"""The whole page: what it reads, the order of its sections, its head.

Everything shown comes from finished files, so the same inputs give the same bytes.
"""

from collections.abc import Sequence

from data_prep.report import curation, examples, load, overview, training
from data_prep.report.markup import Markup, element, join
from data_prep.report.style import STYLE

# Nothing may be fetched or run, whatever a text in here tries.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PICTURE_SIDE = 176  # px, twice what a card shows


def build(
    dataset: str, *, held_out: str | None = None, workdir: str | None = None
) -> bytes:
    """Returns the report as UTF-8 HTML.

    What `workdir` does not hold yet is named as missing; without `held_out` the cards
    of held-out images have no pictures. Raises ValueError or FileNotFoundError naming
    the file if the dataset is unfinished or a file is not in its format.
    """
    card = load.card(dataset)
    stages = load.funnel(card)
    counts = load.entry_counts(dataset, load.thresholds(card))
    run = load.run(workdir) if workdir else None
    evaluation = load.evaluation(workdir) if workdir else None
    picked = [
        (each.code, *examples.head_and_tail(dataset, each))
        for each in counts[: curation.MAX_METADATA]
    ]
    sections = [
        overview.header(card, stages, run, evaluation),
        curation.funnel_section(stages, card),
        curation.balance_section(counts, card),
        curation.examples_section(picked),
        training.training_section(run),
    ]
    if run is not None or evaluation is not None:
        sections.append(training.evaluation_section(evaluation))
    if evaluation is not None and evaluation.top5:
        ids = [str(item["image_id"]) for item in evaluation.top5]
        pictures = (
            examples.thumbnails(held_out, ids, side=_PICTURE_SIDE) if held_out else {}
        )
        sections.append(training.held_out_section(evaluation.top5, pictures))
    licence = load.licence(held_out) if held_out else ""
    sections.append(overview.footer(card, licence=licence))
    title = f"From web pages to a model: {card['name']}"
    return render(title=title, sections=sections)


def render(*, title: str, sections: Sequence[Markup]) -> bytes:
    """Returns the sections as one page in UTF-8."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        # Our own words, never a stranger's: they go in as they are.
        element("style", Markup(STYLE)),
    )
    body = element("body", element("main", *sections))
    page = join([Markup("<!doctype html>\n"), element("html", head, body, lang="en")])
    return page.encode("utf-8")
