"""Writes the held-out compositions as a dataset: pictures, names, zero-shot tasks."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.sinks import array_record
from examples.quickstart import held_out as held_out_lib
from examples.quickstart import pictures
from examples.quickstart.held_out import HeldOut
from examples.quickstart.names import Picture
from examples.quickstart.pictures import Drawing
from examples.quickstart.tags import HOST, IMAGE_HOST
from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.data.records import Record

NAME = "held_out"


def write(
    folder: str,
    held_out: HeldOut,
    drawings: Mapping[str, Drawing],
    *,
    inputs: Mapping[str, Any],
) -> None:
    """Writes the dataset folder with zero_shot.json and skin_tone.json; manifest last.

    `drawings`: by code. One record per picture; its only text is the name.
    """
    made = [_record(picture, drawings[picture.code]) for picture in held_out.chosen]
    facts = array_record.write_shard(f"{folder}/{records.shard_name(NAME, 0, 1)}", made)
    ids = [record.image_id for record in made]
    root = files.path(folder)
    tasks = {
        "zero_shot.json": held_out_lib.zero_shot(held_out.chosen, ids),
        "skin_tone.json": held_out_lib.skin_tone(held_out.chosen, ids),
    }
    for name, task in tasks.items():
        files.write_json(root / name, task)
    card = {
        "name": NAME,
        "version": files.version(),
        "records": len(made),
        "texts": len(made),
        "balanced": None,
        "about": "Compositions of role, gender and skin tone that the sample web "
        "never shows, although it shows their parts.",
        "license": "Drawings: OpenMoji, CC BY-SA 4.0",
    }
    array_record.write_dataset(
        folder,
        name=NAME,
        shard_facts=[facts],
        data_card=card,
        counts=None,
        inputs=inputs,
    )


def _record(picture: Picture, drawing: Drawing) -> Record:
    image = drawing.jpg
    # A URL that the site does not have.
    url = f"http://{IMAGE_HOST}/held-out/{picture.code.lower()}.jpg"
    return Record(
        image=image,
        image_id=records.image_id(url),
        image_url=url,
        page_url=f"http://{HOST}/held-out/",
        sha256=hashlib.sha256(image).hexdigest(),
        width=pictures.SIDE,
        height=pictures.SIDE,
        texts=(picture.name,),
        text_sources=("alt",),
        languages=("en",),
        metadata=("en",),
        entry_ids=np.zeros(0, np.int32),
        entry_offsets=np.zeros(2, np.int64),
    )
