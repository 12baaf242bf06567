"""Near duplicates and placeholders, from a web of real photographs."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data_prep import schema
from data_prep.stages import arrow_coder, image_dedup, parts
from metaclip_jax.data import records
from tests import real_images
from tests.data_prep import tiny_web


def jpeg(image, quality=90):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def photos():
    """Four pictures of 120 x 90, cut out of two photographs."""
    china, flower = real_images.whole_photos()
    boxes = [(0, 0, 480, 360), (240, 90, 600, 360)]
    return [
        whole.crop(box).resize((120, 90)) for whole in (china, flower) for box in boxes
    ]


# Of each picture: as it is, recompressed, smaller, and its bytes at a second address.
PATHS = {}
for number, image in enumerate(photos()):
    PATHS[f"/{number}-large.jpg"] = jpeg(image)
    PATHS[f"/{number}-again.jpg"] = jpeg(image)
    PATHS[f"/{number}-poor.jpg"] = jpeg(image, 40)
    PATHS[f"/{number}-small.jpg"] = jpeg(image.resize((80, 60)))
ALTS = [(path, f"a cat at {path[1:-4]}") for path in PATHS]
IDS = {records.image_id(f"http://{tiny_web.IMAGES}{path}"): path for path in PATHS}


def run(folder, partitions, alts=ALTS, **values):
    values = {"balance.rule": "online", "partitions": partitions} | values
    return tiny_web.run(folder, alts, PATHS, **values)


def images_of(run):
    n = run.config.partitions
    names = [parts.name(i, n) for i in range(n)]
    table = pa.concat_tables([parts.read(f"{run.workdir}/images", x) for x in names])
    return table.sort_by("image_id")


def rows_of(card, unit):
    (row,) = [
        row
        for row in card["funnel"]
        if (row["stage"], row["unit"]) == ("image_dedup", unit)
    ]
    return row["drops"]


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    return run(tmp_path_factory.mktemp("near"), 3, **{"duplicates.near_bits": 40})


def test_of_near_duplicates_one_of_the_largest_stays_with_the_texts_of_its_bytes(near):
    dataset = records.open_dataset(near.output)
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    assert len(found) == 4
    by_bytes = {}
    for path, body in PATHS.items():
        by_bytes.setdefault(body, set()).add(f"a cat at {path[1:-4]}")
    for record in found:
        assert record.width == 120
        assert set(record.texts) in by_bytes.values()
    numbers = {IDS[record.image_id][1] for record in found}
    assert numbers == {"0", "1", "2", "3"}


def test_each_near_duplicate_names_a_better_one_and_is_counted(near):
    images = images_of(near).to_pylist()
    size = {row["image_id"]: row["width"] for row in images}
    dropped = [row for row in images if row["status"] == "near_duplicate"]
    repeated = [row for row in images if row["status"] == "repeated_image"]
    assert len(dropped) + len(repeated) == len(PATHS) - 4
    for row in dropped:
        assert IDS[row["kept_as"]][1] == IDS[row["image_id"]][1]
        assert (-size[row["kept_as"]], row["kept_as"]) < (
            -row["width"],
            row["image_id"],
        )
    card = records.open_dataset(near.output).data_card
    counts = {"near_duplicate": len(dropped), "repeated_image": len(repeated)}
    assert rows_of(card, "images") == counts
    assert rows_of(card, "texts") == {"near_duplicate": len(dropped)}


@pytest.mark.slow
def test_partitions_do_not_change_which_near_duplicates_are_dropped(near, tmp_path):
    again = run(tmp_path, 1, **{"duplicates.near_bits": 40})
    columns = ["image_id", "status", "kept_as"]
    assert images_of(again).select(columns) == images_of(near).select(columns)


@pytest.mark.slow
def test_no_near_duplicate_is_dropped_where_none_is_asked_for(tmp_path):
    images = images_of(run(tmp_path, 2))
    assert pc.sum(pc.equal(images["status"], "ok")).as_py() == 12


def test_an_image_of_many_unrelated_texts_is_a_placeholder_and_a_logo_is_not(
    tmp_path,
):
    placeholder, logo, other = (jpeg(image) for image in photos()[:3])
    bodies = {f"/p{n}.jpg": placeholder for n in range(6)}
    bodies |= {f"/l{n}.jpg": logo for n in range(6)} | {"/o.jpg": other}
    alts = [(path, f"cat {path}") for path in bodies if path[1] != "l"]
    alts += [(path, "the red Cat Ltd") for path in bodies if path[1] == "l"]
    values = {"balance.rule": "online", "duplicates.placeholder_texts": 5}
    found = tiny_web.run(tmp_path, alts, bodies, **values)
    assert len(records.open_dataset(found.output)) == 2
    card = records.open_dataset(found.output).data_card
    assert rows_of(card, "texts") == {"placeholder": 6, "repeated_pair": 5}
    assert rows_of(card, "images") == {"placeholder": 6, "repeated_image": 5}


def test_some_70_bytes_of_an_image_pass_through_a_runner_that_groups_them():
    """docs/scale.md multiplies them by a billion images."""
    n = 20_000  # of a partition
    rng = np.random.default_rng(0)
    columns = {field.name: [None] * n for field in schema.IMAGES} | {
        "image_id": sorted(rng.bytes(12).hex() for _ in range(n)),
        "image_url": [f"https://images.example/{i}.jpg" for i in range(n)],
        "status": ["ok"] * n,
        "text_hash": rng.integers(0, 2**64, n, dtype=np.uint64),
        "sha256": [rng.bytes(32).hex() for _ in range(n)],
        "kept_as": [""] * n,
    }
    images = schema.from_columns(columns, schema.IMAGES)
    coder = arrow_coder.RecordBatchCoder()
    keyed = [batch for _, batch in image_dedup.key_by_bytes(images)]
    assert sum(len(coder.encode(batch)) for batch in keyed) / n < 75
