"""Says which label an image has, with probabilities, without training on the labels.

    python -m metaclip_jax.predict --model=NAME_OR_PATH --image=photo.jpg \\
        --labels="cat,dog,a red car"

--image may be given several times; --template too, and then a label is the mean of all.
"""

import unicodedata
from collections.abc import Sequence

from absl import app, flags

from metaclip_jax.cli import command
from metaclip_jax.inference import model as inference
from metaclip_jax.inference import model_flags


def table(images: Sequence[str], found: inference.Classification, *, top: int) -> str:
    """The `top` most probable labels of each image, a line each, best first.

    Args:
      images: N names.
      found: their labels' probabilities [N, K].
      top: how many labels at most.
    """
    shown = [[printable(label) for label in found.labels]] * len(images)
    width = max(len(label) for label in shown[0])
    lines = []
    for image, labels, row in zip(images, shown, found.probabilities, strict=True):
        lines.append(printable(image))
        best = sorted(range(len(row)), key=lambda k: -row[k])[:top]
        lines += [f"  {labels[k]:<{width}} {row[k]:>7.2%}" for k in best]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Without what a terminal would take as a command."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def main(argv: Sequence[str]) -> None:
    """Classifies images from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    labels = [label.strip() for label in values.labels if label.strip()]
    if not labels:
        raise app.UsageError('want at least one label, like --labels="cat,dog"')
    model = model_flags.load(values)
    found = model.classify(
        values.image,
        labels,
        templates=values.template or inference.DEFAULT_TEMPLATES,
    )
    print(table(values.image, found, top=values.top))


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_multi_string("image", None, "Image file.", required=True)
    flags.DEFINE_list("labels", None, "Labels, separated by commas.", required=True)
    flags.DEFINE_multi_string(
        "template", [], 'Text with {} for the label; default: "a photo of a {}."'
    )
    flags.DEFINE_integer("top", 10, "Labels to show for each image.", lower_bound=1)
    command.run(main)
