"""Which of some labels fit an image.

    python -m metaclip_jax.predict --model=RUN --image=cat.jpg --labels='cat,dog'
    python -m metaclip_jax.predict --model=facebook/metaclip-b32-400m --image=a.jpg \
        --image=b.jpg --labels=cat,dog --template='a photo of a {}.'
"""

from collections.abc import Sequence

import numpy as np
from absl import app, flags

from metaclip_jax import inference, runtime


def table(
    images: Sequence[str], labels: Sequence[str], probabilities: np.ndarray
) -> str:
    """Returns a line for each image and label, the most probable first.

    Args:
      images: N names.
      labels: K names.
      probabilities: f32[N, K].
    """
    lines = []
    for image, row in zip(images, probabilities, strict=True):
        lines.append(printable(image))
        for label in np.argsort(-row, kind="stable"):
            lines.append(f"  {row[label]:>7.2%}  {printable(labels[label])}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters are shown as such."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def main(argv: Sequence[str]) -> None:
    """Predicts from the command line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; use --flags")
    values = flags.FLAGS
    runtime.log_our_own_notes()
    model = inference.load(values.model, dtype=values.dtype, step=values.step)
    answers = model.classify(
        values.image, values.labels, templates=values.template or ["{}"]
    )
    print(table(values.image, values.labels, answers.probabilities))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Folder, hub name or run.")
    flags.DEFINE_multi_string("image", None, "Image file; may be repeated.")
    flags.DEFINE_list("labels", None, "Labels, comma-separated.")
    flags.DEFINE_multi_string("template", [], "Prompt with {} for the label; repeated.")
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the towers.")
    flags.DEFINE_integer("step", None, "Checkpoint of a run; default: the newest.")
    flags.mark_flags_as_required(["model", "image", "labels"])
    app.run(main)
