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


def render(model: str, found: Mapping[str, Any]) -> bytes:
    """Returns the page in UTF-8: results with intervals, averages, worst confusions.

    Args:
      model: its name.
      found: from `suite.run`.
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
        title=f"Evaluation of {model}",
        has_charts=False,
        values={
            "model": model,
            "tasks": tasks,
            "averages": averages,
            "missing": found["missing"],
            "has_paper": any("paper" in task for task in tasks),
            "has_other": any("against" in task for task in tasks),
            "confused": [task for task in tasks if task.get("confusions")],
        },
    )
