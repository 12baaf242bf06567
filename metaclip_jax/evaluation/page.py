"""Renders the results of tasks as one self-contained HTML page."""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.pages import page

_TITLES = {
    "mean": "mean of the tasks",
    "mean_by_images": "mean weighted by images",
    "mean_above_chance": "mean above chance",
    "mean_difference": "mean difference to the other model",
}


def render(found: Mapping[str, Any]) -> bytes:
    """Returns the page in UTF-8: results with intervals, averages, worst confusions.

    Args:
      found: from `suite.run`, with the names "model", and where they are compared
        "against", another model, and "paper", the paper's row.
    """
    tasks = [{"id": name, **number} for name, number in found["tasks"].items()]
    averages = [
        {
            "suite": suite,
            "tasks": means["tasks"],
            "of": means["of"],
            "other_images": means["other_images"],
            "rows": [(title, means[k]) for k, title in _TITLES.items() if k in means],
        }
        for suite, means in found["averages"].items()
    ]
    return page.render(
        __package__,
        "tasks.html",
        title=f"Evaluation of {found['model']}",
        has_charts=False,
        values={
            "model": found["model"],
            "against": found.get("against", ""),
            "paper": found.get("paper", ""),
            "tasks": tasks,
            "averages": averages,
            "missing": found["missing"],
            "confused": [task for task in tasks if task.get("confusions")],
        },
    )
