"""Images are the same by whatever number of cores they were screened."""

import dataclasses
import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_prep import config
from data_prep.images import download
from data_prep.sources import kinds, pairs
from data_prep.stages import downloads, parts

SCREEN = {"min_side": 16, "max_side": 128, "max_aspect": 3.0, "max_pixels": 10**6}
LIMITS = download.Limits(
    host_map="",
    concurrency=1,
    per_host=1,
    timeout_seconds=1.0,
    max_bytes=1 << 16,
    max_held_bytes=1 << 20,
    retries=0,
    user_agent="",
)
COUNT = 60


def body(number):
    """Large JPEGs, small ones, PNGs, and every tenth is none."""
    if number % 10 == 0:
        return b"not an image"
    side = (100, 200, 170)[number % 3]
    noise = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((side, side)).save(
        out, "PNG" if number % 3 == 2 else "JPEG"
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        (folder / str(number)).write_bytes(body(number))
    names = [str(number) for number in range(COUNT + 1)]  # the last is missing
    return pa.table(
        {
            "image_id": [f"{number:024x}" for number in range(COUNT + 1)],
            "image_url": [f"source:{name}" for name in names],
            "stored_at": [pairs.reference(f"{folder}/{name}") for name in names],
            "texts": [1] * (COUNT + 1),
            "text_hash": pa.array([0] * (COUNT + 1), pa.uint64()),
        }
    )


@pytest.mark.parametrize("max_held_bytes", [1 << 20, 1 << 17])
def test_any_number_of_cores_gives_the_same_images(tmp_path, wanted, max_held_bytes):
    keys = config.curate()
    keys.source.kind = "folder"
    found = []
    for cores in (1, 2, 5):
        blobs = str(tmp_path), f"images-{cores}"
        images, dropped = downloads.download_and_screen(
            wanted,
            blobs=blobs,
            fetch=dataclasses.replace(LIMITS, max_held_bytes=max_held_bytes),
            screen=SCREEN,
            source=kinds.spec_of(keys),
            cores=cores,
        )
        kept = [row for row in images.to_pylist() if row["status"] == "ok"]
        positions = [row["position"] for row in kept]
        assert sorted(positions) == list(range(len(kept)))
        blob = list(parts.read_blobs(*blobs, positions))
        assert [hashlib.sha256(x).hexdigest() for x in blob] == [
            row["sha256"] for row in kept
        ]
        found.append((images.drop_columns(["position"]), dropped))
    assert found[0] == found[1] == found[2]
    images, _ = found[0]
    assert images["status"].to_pylist().count("ok") == COUNT * 9 // 10
    assert images["status"].to_pylist()[-1] == "missing_file"
