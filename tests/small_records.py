"""Records for tests, which name only what matters to them."""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from metaclip_jax.data import records


def record(
    url: str,
    texts: Sequence[str],
    *,
    image: bytes,
    entry_ids: Sequence[Collection[int]] = (),
    **changes: Any,
) -> records.Record:
    """Returns a record of an image with English alt texts.

    `entry_ids` has the entries of each text, by default none; `changes` replace fields.
    """
    count = len(texts)
    ids = entry_ids or [()] * count
    values: dict[str, Any] = {
        "image": image,
        "image_id": records.image_id(url),
        "image_url": url,
        "page_url": "http://pages.example/",
        "sha256": hashlib.sha256(image).hexdigest(),
        "width": 16,
        "height": 16,
        "texts": tuple(texts),
        "text_sources": ("alt",) * count,
        "languages": ("en",) * count,
        "metadata": ("en",) * count,
        "entry_ids": np.array([entry for row in ids for entry in row], np.int32),
        "entry_offsets": np.cumsum([0, *map(len, ids)]).astype(np.int64),
    }
    return records.Record(**values | changes)
