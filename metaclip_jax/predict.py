"""Classifies images zero-shot: the probability of each label.

    python -m metaclip_jax.predict --model=NAME_OR_PATH --image=photo.jpg \\
        --labels="cat,dog,a red car"

--image and --template may be repeated; a label's embedding is the mean over templates.
"""

import unicodedata
from collections.abc import Sequence

from absl import app, flags

from metaclip_jax.cli import command
from metaclip_jax.inference import model as inference
from metaclip_jax.inference import model_flags


def table(images: Sequence[str], result: inference.Classification, *, top: int) -> str:
    """Formats the most probable labels of each image, one per line, best first.

    Args:
      images: N names.
      result: the labels' probabilities [N, K].
      top: most labels per image.
    """
    shown = [[printable(label) for label in result.labels]] * len(images)
    width = max(len(label) for label in shown[0])
    lines = []
    for image, labels, row in zip(images, shown, result.probabilities, strict=True):
        lines.append(printable(image))
        best = sorted(range(len(row)), key=lambda k: -row[k])[:top]
        lines += [f"  {labels[k]:<{width}} {row[k]:>7.2%}" for k in best]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Replaces control characters, which a terminal would interpret, by spaces."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def main(argv: Sequence[str]) -> None:
    """Classifies images from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    labels = [label.strip() for label in values.labels if label.strip()]
    if not labels:
        raise app.UsageError(
            'wanted at least one label, got none; for example --labels="cat,dog"'
        )
    model = model_flags.load(values)
    result = model.classify(
        values.image,
        labels,
        templates=values.template or inference.DEFAULT_TEMPLATES,
    )
    print(table(values.image, result, top=values.top))


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_multi_string("image", None, "Image file.", required=True)
    flags.DEFINE_list("labels", None, "Labels, separated by commas.", required=True)
    flags.DEFINE_multi_string(
        "template", [], 'Text with {} for the label; default: "a photo of a {}."'
    )
    flags.DEFINE_integer("top", 10, "Most labels to show per image.", lower_bound=1)
    command.run(main)
