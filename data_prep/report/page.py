"""Builds the report page from its files and template.

The same files give the same bytes.
"""

import re

from markupsafe import Markup

from data_prep.matching import spacing
from data_prep.report import curation, examples, load, training
from metaclip_jax.pages import page


def build(
    dataset: str,
    *,
    held_out: str | None = None,
    workdir: str | None = None,
    curation_workdir: str | None = None,
) -> bytes:
    """Returns the report as UTF-8 HTML.

    The page says what `workdir` does not have yet; without `held_out` the cards of
    held-out images have no pictures, and without `curation_workdir` the page has no
    sample of what was dropped. Raises ValueError or FileNotFoundError, with the
    file's name, if the dataset is unfinished or a file is malformed.
    """
    card = load.card(dataset)
    counts = load.entry_counts(dataset, load.thresholds(card))
    run = load.run(workdir) if workdir else None
    evaluation = load.evaluation(workdir) if workdir else None
    top5 = evaluation.top5 if evaluation else []
    pictures = {}
    if held_out and top5:
        ids = [str(item["image_id"]) for item in top5]
        pictures = examples.thumbnails(held_out, ids)
    groups = [
        curation.group(entry_counts, card)
        | {"examples": examples.head_and_tail(dataset, entry_counts)}
        for entry_counts in counts[: curation.MAX_METADATA]
    ]
    dropped = None
    if curation_workdir:
        rows = load.rejects(curation_workdir)
        dropped = examples.dropped(rows, load.funnel(card))
    return page.render(
        __package__,
        "report.html",
        title=f"From web pages to a model: {card['name']}",
        has_charts=True,
        filters={"marked": marked},
        values={
            "card": card,
            "balanced": card.get("balanced"),
            "funnel": curation.funnel(load.funnel(card)),
            "shares": curation.shares(card),
            "dropped": dropped,
            "groups": groups,
            "codes": len(counts),
            "run": training.curves(run) if run else None,
            "scores": training.scores(evaluation) if evaluation else None,
            "cards": training.cards(top5, pictures),
            "licence": load.licence(held_out) if held_out else "",
        },
    )


def marked(text: str, entry: str, limit: int) -> Markup:
    """Returns an escaped text in which the first occurrence of an entry is marked.

    Ignores case, and skips parts of words, except in scripts without spaces.
    """
    line, wanted = page.clean(text, limit), page.clean(entry, limit)
    for match in re.finditer(re.escape(wanted), line, re.IGNORECASE) if wanted else ():
        start, end = match.span()
        if not (_in_word(line, start) or _in_word(line, end)):
            form = Markup('<bdi dir="auto">{}<mark>{}</mark>{}</bdi>')
            return form.format(line[:start], match.group(), line[end:])
    return page.stranger(text, limit)


def _in_word(line: str, place: int) -> bool:
    """Whether the characters on both sides of this place belong to one word."""
    around = line[max(place - 1, 0) : place + 1]
    return 0 < place < len(line) and all(map(spacing.is_in_words, around))
