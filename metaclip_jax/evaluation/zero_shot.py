"""Class embeddings for zero-shot classification, and their cache.

A class embedding is the mean of its prompts' unit-norm embeddings, normalised again.
"""

import hashlib
import io
import json
from collections.abc import Callable

import numpy as np

from metaclip_jax import files
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.encoder import Encoder

_KEPT = 8  # tasks whose class embeddings stay in memory

EncodeTexts = Callable[[list[str]], np.ndarray]


def class_embeddings(encode_texts: EncodeTexts, task: prompts.Task) -> np.ndarray:
    """Returns one embedding per class, f32[K, E], unit norm.

    Args:
        encode_texts: maps n texts to f32[n, E].
        task: with class names and templates.
    """
    texts = [prompts.prompts(names, task.templates) for names in task.class_names]
    # One call for all classes fills the batches.
    embeddings = _unit(encode_texts([text for texts_ in texts for text in texts_]))
    starts = np.cumsum([0] + [len(texts_) for texts_ in texts])
    means = [
        embeddings[start:end].mean(axis=0)
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]
    return _unit(np.stack(means))


def encode_classes(encoder: Encoder, task: prompts.Task) -> np.ndarray:
    """Returns a model's class embeddings, f32[K, E], read-only.

    The last _KEPT results are cached in memory, and all in the encoder's class_cache if
    it has one. See `class_embeddings` and `cached_class_embeddings`.
    """
    key = (task.class_names, task.templates)
    if key in encoder.classes:
        return encoder.classes[key]
    if encoder.class_cache:
        classes = cached_class_embeddings(
            encoder.encode_texts,
            task,
            folder=encoder.class_cache,
            fingerprint=encoder.fingerprint,
        )
    else:
        classes = class_embeddings(encoder.encode_texts, task)
    classes.setflags(write=False)
    while len(encoder.classes) >= _KEPT:
        encoder.classes.pop(next(iter(encoder.classes)))
    encoder.classes[key] = classes
    return classes


def cached_class_embeddings(
    encode_texts: EncodeTexts, task: prompts.Task, *, folder: str, fingerprint: str
) -> np.ndarray:
    """Returns `class_embeddings`, f32[K, E], cached as a file in `folder`.

    The file's name is a hash of the model's fingerprint, the names and the templates.
    It is written atomically.

    Args:
        encode_texts: see `class_embeddings`; called only if there is no file.
        task: see `class_embeddings`.
        folder: local or gs://; created if it is missing.
        fingerprint: of everything that affects the results of `encode_texts`.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    facts = json.dumps([fingerprint, task.class_names, task.templates])
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    path = files.path(folder) / f"classes-{name}.npy"
    if path.exists():
        try:
            classes = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it") from error
        if classes.ndim != 2 or len(classes) != len(task.class_names):
            raise ValueError(
                f"{path} is damaged: wanted {len(task.class_names)} classes, got"
                f" {classes.shape}; remove it"
            )
        return classes
    classes = class_embeddings(encode_texts, task)
    written = io.BytesIO()
    np.save(written, classes)
    files.write_bytes(path, written.getvalue())
    return classes


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
