"""Held-out data: a dataset folder, which may have a zero-shot task."""

import numpy as np

from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.examples import UNLABELLED, Examples

ZERO_SHOT = "zero_shot.json"
_ROWS = 256  # records read at a time


def load_held_out(folder: str, asked: prompts.Prompts | None = None) -> Examples:
    """Opens a held-out dataset; images are sorted by id, and ids are their names.

    Args:
        folder: the dataset, with a zero_shot.json if images have classes.
        asked: prompts that replace those of the zero_shot.json.

    Raises:
        FileNotFoundError: the folder is not a finished dataset.
        ValueError: it is empty, an image has no text or appears twice, or the task
            labels an unknown image.
    """
    dataset = records.open_dataset(folder)
    found = []
    for start in range(0, len(dataset), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(dataset)))
        for position, data in zip(rows, records.read(dataset, rows), strict=True):
            record = records.decode(data)
            if not record.texts:
                raise ValueError(
                    f"{folder}: wanted at least one text per held-out image, got none"
                    f" for {record.image_id}; remove the image"
                )
            found.append((record.image_id, int(position), record.texts))
    found.sort()
    row_of = {image_id: row for row, (image_id, _, _) in enumerate(found)}
    if len(row_of) < len(found) or not found:
        raise ValueError(
            f"{folder}: wanted at least one image and each once, got {len(found)}"
            f" records of {len(row_of)} images"
        )
    ids = [image_id for image_id, _, _ in found]
    positions = np.array([position for _, position, _ in found], np.int64)
    examples = Examples(
        source=folder,
        names=ids,
        read=lambda rows: [
            records.decode(data).image
            for data in records.read(dataset, positions[rows])
        ],
    ).with_texts([texts for _, _, texts in found])
    task_path = files.path(folder) / ZERO_SHOT
    if not task_path.exists():
        return examples
    own, label_of = prompts.load_task(str(task_path))
    missing = sorted(label_of.keys() - row_of.keys())
    if missing:
        raise ValueError(
            f"{task_path}: wanted labels of images in {folder}, got {len(missing)}"
            f" others, the first {missing[0]}"
        )
    labels = np.array([label_of.get(image_id, UNLABELLED) for image_id in ids])
    names = [first for first, *_ in own.class_names]
    return prompts.with_classes(examples, names, labels, asked or own)
