"""Renders the results of tasks as one self-contained HTML page."""

from collections.abc import Mapping
from typing import Any

from metaclip_jax.evaluation import suite
from metaclip_jax.pages import page


def render(found: Mapping[str, Any]) -> bytes:
    """Returns the page in UTF-8: results with intervals, averages, worst confusions.

    Args:
      found: from `suite.run`, with the names "model", and where they are compared
        "against", another model, and "paper", the paper's row.
    """
    confused = {
        name: task for name, task in found["tasks"].items() if task.get("confusions")
    }
    return page.render(
        __package__,
        "tasks.html",
        title=f"Evaluation of {found['model']}",
        has_charts=False,
        values={
            "against": "",
            "paper": "",
            "titles": suite.TITLES | {"mean": "mean of the tasks"},
            "confused": confused,
            **found,
        },
    )
