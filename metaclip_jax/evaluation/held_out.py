"""What a model is measured on: a dataset folder and, in it, a zero-shot task."""

from typing import NamedTuple

import numpy as np

from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.evaluation import prompts

ZERO_SHOT = "zero_shot.json"
_ROWS = 256  # records read at a time


class HeldOut(NamedTuple):
    """Texts in memory, images on disk; images in the order of their ids.

    positions: int64[N], the images' records in the dataset. image_of_text: int64[M],
    the row of each text's image. labels: int64[L] and labelled: int64[L], the classes
    and rows of the images that the task labels.
    """

    dataset: records.Dataset
    positions: np.ndarray
    image_ids: list[str]
    texts: list[str]
    image_of_text: np.ndarray
    task: prompts.Task | None
    labels: np.ndarray
    labelled: np.ndarray


def load_held_out(folder: str) -> HeldOut:
    """Opens a held-out dataset and reads its texts and its task.

    Raises:
        FileNotFoundError: the folder is no finished dataset.
        ValueError: it is empty, an image has no text, an image appears twice, or the
            task labels an image that is not there.
    """
    dataset = records.open_dataset(folder)
    found = []
    for start in range(0, len(dataset), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(dataset)))
        for position, data in zip(rows, records.read(dataset, rows), strict=True):
            record = records.decode(data)
            if not record.texts:
                raise ValueError(
                    f"{folder}: the held-out image {record.image_id} has no text; each"
                    " needs at least one to be found by"
                )
            found.append((record.image_id, int(position), record.texts))
    found.sort()
    row_of = {image_id: row for row, (image_id, _, _) in enumerate(found)}
    if len(row_of) < len(found) or not found:
        raise ValueError(
            f"{folder}: want at least one image and each once, got {len(found)} records"
            f" of {len(row_of)} images"
        )
    task, labels, labelled = None, np.zeros(0, np.int64), np.zeros(0, np.int64)
    task_path = files.path(folder) / ZERO_SHOT
    if task_path.exists():
        task = prompts.load_task(str(task_path))
        missing = sorted(task.labels.keys() - row_of.keys())
        if missing:
            raise ValueError(
                f"{task_path}: want labels of images in {folder}, got {len(missing)}"
                f" others, the first {missing[0]}"
            )
        rows_and_labels = sorted((row_of[i], label) for i, label in task.labels.items())
        labelled, labels = np.array(rows_and_labels, np.int64).T
    return HeldOut(
        dataset=dataset,
        positions=np.array([position for _, position, _ in found], np.int64),
        image_ids=[image_id for image_id, _, _ in found],
        texts=[text for _, _, texts in found for text in texts],
        image_of_text=np.repeat(
            np.arange(len(found)), [len(texts) for _, _, texts in found]
        ),
        task=task,
        labels=labels,
        labelled=labelled,
    )
