"""Images of evaluation sets, in each form of these, are dropped and listed."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.sources import pictures
from metaclip_jax.data import records
from tests import image_layouts, real_images
from tests.data_prep import tiny_web


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photos(count):
    """Pictures of 120 x 90, cut out of two photographs at different places."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        whole = real_images.whole_photos()[number % 2]
        left, top = rng.integers(0, whole.width - 300), rng.integers(0, 100)
        found.append(whole.crop((left, top, left + 300, top + 225)).resize((120, 90)))
    return found


PHOTOS = photos(5)
FLAT = Image.new("RGB", (60, 60), (3, 90, 200))
# The first two and the flat one are in the evaluation set, the second with other bytes.
EVALUATION = [
    encoded(PHOTOS[0], quality=90),
    encoded(PHOTOS[1].resize((160, 120)), "PNG"),
    encoded(FLAT, "PNG"),
]
WEB = {f"/{n}.jpg": encoded(image, quality=90) for n, image in enumerate(PHOTOS)}
WEB |= {"/0-again.jpg": WEB["/0.jpg"], "/flat.png": EVALUATION[2]}
WEB["/other_flat.png"] = encoded(Image.new("RGB", (60, 60), (3, 91, 200)), "PNG")


def folder(root):
    (root / "val" / "cat").mkdir(parents=True)
    for number, body in enumerate(EVALUATION):
        name = f"{number}.{'JPEG' if number == 0 else 'png'}"
        (root / "val" / "cat" / name).write_bytes(body)
    (root / "val" / "labels.csv").write_text("not a picture")
    return str(root / "val")


def tar(root):
    named = {f"a/{n}.{'jpg' if n == 0 else 'png'}": b for n, b in enumerate(EVALUATION)}
    image_layouts.write_tar(root / "test.tar", named | {"a/0.cls": b"3"})
    return str(root / "*.tar")


def parquet(root):
    column = [{"bytes": body, "path": ""} for body in EVALUATION]
    pq.write_table(pa.table({"image": column, "label": [1, 2, 3]}), root / "x.parquet")
    return str(root)


def tfds(root):
    pixels = [np.asarray(Image.open(io.BytesIO(b)).convert("L")) for b in EVALUATION]
    pixels = [each[:, :, None] for each in pixels]
    return image_layouts.write_tfds(root, pixels, [0, 1, 0], ["a", "b"])


def curated(root, sets, **values):
    alts = [(path, f"a cat of {path[1:-4]}") for path in WEB]
    values |= {"balance.rule": "online", "duplicates.evaluation_sets": sets}
    return tiny_web.run(root, alts, WEB, **values)


def dropped(run):
    """Address -> picture and bits."""
    table = pq.read_table(f"{run.output}/evaluation_images.parquet").to_pylist()
    return {
        row["image_url"].removeprefix(f"http://{tiny_web.IMAGES}"): (
            row["picture"],
            row["bits"],
        )
        for row in table
    }


@pytest.mark.parametrize("layout", [folder, tar, parquet])
def test_the_pictures_of_a_set_are_read_from_each_form(tmp_path, layout):
    (path, *more) = pictures.find([layout(tmp_path)])
    found = [body for one in (path, *more) for _, body in pictures.read(one)]
    assert found == EVALUATION


@pytest.mark.parametrize(
    "layout",
    [folder, *(pytest.param(f, marks=pytest.mark.slow) for f in (tar, parquet))],
)
def test_images_of_an_evaluation_set_are_dropped_with_the_picture_they_equal(
    tmp_path, layout
):
    (tmp_path / "sets").mkdir()
    run = curated(tmp_path, (layout(tmp_path / "sets"),), partitions=2)
    found = dropped(run)
    assert set(found) == {"/0.jpg", "/0-again.jpg", "/1.jpg", "/flat.png"}
    assert all(picture.startswith(str(tmp_path)) for picture, _ in found.values())
    assert len({picture for picture, _ in found.values()}) == 3
    assert found["/0.jpg"] == found["/0-again.jpg"]
    assert [found[path][1] for path in ("/0.jpg", "/flat.png")] == [0, 0]
    assert found["/1.jpg"][1] > 0
    dataset = records.open_dataset(run.output)
    urls = {records.decode(r).image_url for r in records.read(dataset, range(4))}
    assert {url.rpartition("/")[2] for url in urls} == {
        *("2.jpg", "3.jpg", "4.jpg"),
        "other_flat.png",
    }
    (row,) = [
        row
        for row in dataset.data_card["funnel"]
        if (row["stage"], row["unit"]) == ("image_dedup", "texts")
    ]
    assert row["drops"]["in_evaluation_set"] == 4


def test_pictures_of_tfds_are_read(tmp_path):
    names = [name for name, _ in pictures.read(pictures.find([tfds(tmp_path)])[0])]
    assert len(names) == 3


@pytest.mark.slow
def test_pictures_of_our_own_datasets_are_read(tmp_path):
    run = curated(tmp_path / "own", (), partitions=2)
    own = pictures.find([run.output])
    bodies = [body for path in own for _, body in pictures.read(path)]
    assert len(bodies) == len(records.open_dataset(run.output))
    assert not (tmp_path / "own/dataset/evaluation_images.parquet").exists()


def test_a_set_without_pictures_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for path in (tmp_path, tmp_path / "*.txt", tmp_path / "nothing"):
        with pytest.raises(ValueError, match="wanted pictures, tars, Parquet"):
            pictures.find([str(path)])


def test_other_pictures_in_a_set_are_another_run(tmp_path):
    (tmp_path / "sets").mkdir()
    alts = [(path, "a cat") for path in WEB]
    values = {"duplicates.evaluation_sets": (folder(tmp_path / "sets"),)}
    run = tiny_web.plan(tmp_path, alts, **values)
    (tmp_path / "sets" / "val" / "new.png").write_bytes(EVALUATION[1])
    again = tiny_web.plan(tmp_path, alts, **values)
    assert again.match_inputs == run.match_inputs
    assert again.inputs != run.inputs
