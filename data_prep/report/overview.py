"""The top and the foot of the page: the whole way in one line, and what made it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.report import numbers
from data_prep.report.load import Evaluation, Run, Stage
from data_prep.report.markup import Markup, element, join, stranger


def header(
    card: Mapping[str, Any],
    stages: Sequence[Stage],
    run: Run | None,
    evaluation: Evaluation | None,
) -> Markup:
    """Title, a line of facts, and texts seen -> pairs -> examples seen -> R@1."""
    steps = [
        _texts_seen(stages),
        _pairs_kept(card, stages),
        _examples_seen(run),
        _score(evaluation),
    ]
    return element(
        "header",
        element("p", "MetaCLIP in JAX", class_="kicker"),
        element("h1", "From web pages to a model: ", stranger(str(card["name"]))),
        element("p", _facts(card), class_="facts"),
        element("ol", *steps, class_="headline"),
    )


def footer(card: Mapping[str, Any], *, licence: str) -> Markup:
    """The version and the metadata's fingerprints: what this page was made from.

    `licence` is what the held-out pictures' dataset says of them; "" = nothing.
    """
    metadata = join(
        element(
            "span",
            " \u00b7 metadata ",
            stranger(code, limit=20),
            f": {numbers.count(facts['entries'])} entries, sha256 ",
            stranger(str(facts["fingerprint"])[:12]),
        )
        for code, facts in sorted(card["metadata"].items())[:8]
    )
    version = stranger(str(card["version"]), limit=40)
    rights = [element("p", "Held-out pictures: ", stranger(licence))] if licence else []
    return element("footer", "Dataset version ", version, metadata, *rights)


def _item(value: str, name: str, detail: str, *, there: bool = True) -> Markup:
    return element(
        "li",
        element("b", value),
        element("div", element("span", name), element("small", detail)),
        class_=None if there else "none",
    )


def _texts_seen(stages: Sequence[Stage]) -> Markup:
    texts = [stage for stage in stages if stage.unit == "texts"]
    if not texts:
        return _item("\u2013", "texts seen", "not counted", there=False)
    pages = [stage for stage in stages if stage.unit == "pages"]
    where = f"on {numbers.count(pages[0].received)} pages" if pages else "on all pages"
    return _item(numbers.count(texts[0].received), "texts seen", where)


def _pairs_kept(card: Mapping[str, Any], stages: Sequence[Stage]) -> Markup:
    texts = [stage for stage in stages if stage.unit == "texts"]
    detail = f"on {numbers.count(card['records'])} images"
    if texts:
        share = numbers.ratio(card["texts"], texts[0].received)
        detail = f"{share} of the texts, {detail}"
    return _item(numbers.count(card["texts"]), "pairs kept", detail)


def _examples_seen(run: Run | None) -> Markup:
    if run is None:
        return _item("\u2013", "examples seen", "not trained yet", there=False)
    batch, steps = int(run.config["global_batch"]), int(run.steps[-1])
    detail = f"{numbers.count(steps)} steps of {numbers.count(batch)}"
    if "examples_per_second" in run.metrics:
        rates = run.metrics["examples_per_second"]
        median = np.median(rates[np.isfinite(rates)])
        detail += f", {numbers.count(median)} a second"
    return _item(numbers.count(steps * batch), "examples seen", detail)


def _score(evaluation: Evaluation | None) -> Markup:
    name = "image \u2192 text R@1"
    if evaluation is None:
        return _item("\u2013", name, "not evaluated yet", there=False)
    best = evaluation.scores["model"]["image_to_text"]["R@1"]
    among = numbers.count(evaluation.scores["candidates"])
    detail = (
        f"{numbers.times(best['value'], best['chance'])} chance, among {among} "
        "held-out images"
    )
    return _item(numbers.percent(best["value"]), name, detail)


def _facts(card: Mapping[str, Any]) -> Markup:
    """How the dataset was balanced, and against which metadata."""
    entries = sum(facts["entries"] for facts in card["metadata"].values())
    languages = len(card["metadata"])
    among = f" in {languages} languages" if languages > 1 else ""
    parts: list[object] = [f"{numbers.count(entries)} metadata entries{among}"]
    balanced = card["balanced"] if "balanced" in card else None
    if balanced:
        t = sorted({numbers.count(value) for value in balanced["t"].values()})
        parts.append(f"t = {t[0]}" if len(t) == 1 else f"t of {len(t)} sizes")
        parts.append(join(["rule ", stranger(str(balanced["rule"]), limit=30)]))
        parts.append(f"seed {balanced['seed']}")
    else:
        parts.append("not balanced")
    middle = Markup(" \u00b7 ")
    return join(
        piece
        for index, part in enumerate(parts)
        for piece in ([middle] * (index > 0) + [part])
    )
