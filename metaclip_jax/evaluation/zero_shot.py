"""Class embeddings for zero-shot classification, and their cache.

A class embedding is the mean of its prompts' unit-norm embeddings, normalised again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from metaclip_jax import files
from metaclip_jax.evaluation import prompts
from metaclip_jax.evaluation.encoder import Encoder

_KEPT = 8  # tasks whose class embeddings stay in memory

EncodeTexts = Callable[[list[str]], np.ndarray]


def class_embeddings(
    encode_texts: EncodeTexts,
    class_names: Sequence[tuple[str, ...]],
    templates: tuple[str, ...],
) -> np.ndarray:
    """Returns one embedding per class, f32[K, E], unit norm.

    Args:
        encode_texts: maps n texts to f32[n, E].
        class_names: the names of each of K classes.
        templates: prompts with {} for the name.
    """
    texts = [prompts.prompts(names, templates) for names in class_names]
    # One call for all classes fills the batches.
    embeddings = _unit(encode_texts([text for texts_ in texts for text in texts_]))
    starts = np.cumsum([0] + [len(texts_) for texts_ in texts])
    means = [
        embeddings[start:end].mean(axis=0)
        for start, end in zip(starts[:-1], starts[1:], strict=True)
    ]
    return _unit(np.stack(means))


def encode_classes(
    encoder: Encoder,
    class_names: tuple[tuple[str, ...], ...],
    templates: tuple[str, ...],
) -> np.ndarray:
    """Returns a model's `class_embeddings`, f32[K, E], read-only.

    The last _KEPT results are cached in memory, and all as files in the encoder's
    class_cache if it has one. A file's name is a hash of the model's fingerprint, the
    names and the templates.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    key = (class_names, templates)
    if key in encoder.classes:
        return encoder.classes[key]
    path = None
    if encoder.class_cache:
        facts = json.dumps([encoder.fingerprint, class_names, templates])
        name = hashlib.sha256(facts.encode()).hexdigest()[:32]
        path = files.path(encoder.class_cache) / f"classes-{name}.npy"
    if path is not None and path.exists():
        classes = _read(path, len(class_names))
    else:
        classes = class_embeddings(encoder.encode_texts, class_names, templates)
        if path is not None:
            written = io.BytesIO()
            np.save(written, classes)
            files.write_bytes(path, written.getvalue())
    classes.setflags(write=False)
    while len(encoder.classes) >= _KEPT:
        encoder.classes.pop(next(iter(encoder.classes)))
    encoder.classes[key] = classes
    return classes


def _read(path: epath.Path, count: int) -> np.ndarray:
    try:
        classes = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from error
    if classes.ndim != 2 or len(classes) != count:
        raise ValueError(
            f"{path} is damaged: wanted {count} classes, got {classes.shape}; remove it"
        )
    return classes


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
