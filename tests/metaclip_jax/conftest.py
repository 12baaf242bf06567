"""Small datasets, written by the real sink, for the tests of what reads them."""

import os
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import simplejpeg

from data_prep.sinks import array_record
from metaclip_jax.data import records
from tests import small_records


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., str]:
    """Returns a function that writes a dataset folder of random pictures.

    Record i has 1 + i % 3 texts, "picture i told as 0" and so on. `images` replaces
    the bytes of single records, `texts` their texts; `text_sources` are dealt to each
    record's texts in turn.
    """

    def write(
        folder: object,
        *,
        record_count: int,
        shard_count: int = 2,
        images: Mapping[int, bytes] | None = None,
        texts: Mapping[int, tuple[str, ...]] | None = None,
        text_sources: tuple[str, ...] = ("alt",),
        name: str = "tiny",
    ) -> str:
        rng = np.random.default_rng(0)

        def record(number: int) -> records.Record:
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            image = (images or {}).get(number, simplejpeg.encode_jpeg(pixels))
            made = tuple(f"picture {number} told as {n}" for n in range(1 + number % 3))
            made = (texts or {}).get(number, made)
            return small_records.record(
                f"http://images.example/{number}.jpg",
                made,
                image=image,
                width=50,
                height=40,
                text_sources=(text_sources * len(made))[: len(made)],
            )

        bounds = [record_count * n // shard_count for n in range(shard_count + 1)]
        facts = [
            array_record.write_shard(
                f"{folder}/{records.shard_name(name, shard, shard_count)}",
                map(record, range(bounds[shard], bounds[shard + 1])),
            )
            for shard in range(shard_count)
        ]
        array_record.write_dataset(
            str(folder),
            name=name,
            shard_facts=facts,
            data_card={"name": name, "balanced": None},
            counts=None,
            inputs={"records": record_count},
        )
        return str(folder)

    return write


@pytest.fixture(scope="session")
def members() -> Callable[[int], list[int]]:
    """Returns a function that lists the living processes of a process group."""

    def members(group: int) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, _, process_group = file.read().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(process_group) == group and state != "Z":
                found.append(int(name))
        return found

    return members
