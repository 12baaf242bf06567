"""Faces are found and blurred; their boxes are beside the records."""

import hashlib
import importlib.util
import io

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep.images import face_detection, screening
from metaclip_jax.data import records
from tests import real_images
from tests.data_prep import tiny_web

LIMITS = {"min_side": 16, "max_side": 512, "max_aspect": 3.0, "max_pixels": 10**6}
# Of Eileen Collins, as seen by hand: x, y, width, height.
FACE = (175, 60, 95, 120)

needs_yuface = pytest.mark.skipif(
    importlib.util.find_spec("yuface") is None,
    reason="no yuface: pip install 'metaclip-jax[safety]' with Python 3.11",
)


class RedBoxes:
    """A detector: the box around what is red, and one of a low score."""

    name = "red boxes 1"

    def detect(self, pixels):
        red = (pixels[:, :, 0] > 200) & (pixels[:, :, 1:] < 60).all(axis=2)
        if not red.any():
            return []
        rows, columns = np.nonzero(red)
        x, y = columns.min() - 0.5, rows.min()
        return [
            (x, y, columns.max() + 1 - x, rows.max() + 1 - y, 0.9),
            (-5.0, -5.0, 10.0, 10.0, 0.2),
        ]


RED = f"{__name__}:RedBoxes"


def striped(red):
    """A PNG of stripes; `red` is the box in it (x, y, width, height), or None."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, ::2] = (0, 90, 200)
    if red:
        x, y, width, height = red
        pixels[y : y + height, x : x + width] = (255, 0, 0)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def overlap(one, other):
    """Intersection over union."""
    edges = [(max(a, b), min(a + w, b + v)) for a, w, b, v in sides(one, other)]
    shared = np.prod([max(0, end - start) for start, end in edges])
    areas = one[2] * one[3] + other[2] * other[3]
    return shared / (areas - shared)


def sides(one, other):
    return [(one[i], one[i + 2], other[i], other[i + 2]) for i in (0, 1)]


@needs_yuface
@pytest.mark.parametrize("side", [512, 200, 1600])
def test_the_face_of_a_portrait_is_found_at_any_size(side):
    pixels = np.asarray(real_images.astronaut().resize((side, side)).convert("RGB"))
    wanted = face_detection.Choice("yuface", 0.8, True)
    (face,) = face_detection.find(pixels, wanted)
    assert overlap([edge * 512 / side for edge in face[:4]], FACE) > 0.7
    assert face.score > 0.8
    assert face_detection.load("yuface").name.startswith("yuface 20")


@needs_yuface
def test_photos_without_people_have_no_face():
    wanted = face_detection.Choice("yuface", 0.5, True)
    for photo in real_images.whole_photos():
        assert face_detection.find(np.asarray(photo), wanted) == ()


@needs_yuface
def test_a_blurred_face_has_no_features_and_the_rest_is_untouched():
    pixels = np.asarray(real_images.astronaut().convert("RGB"))
    faces = face_detection.find(pixels, face_detection.Choice("yuface", 0.8, True))
    blurred = face_detection.blurred(pixels, faces)
    x, y, width, height = FACE

    def detail(image):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        features = grey[y + height // 4 : y + height, x + 15 : x + width - 15]
        return cv2.Laplacian(features, cv2.CV_64F).std()

    assert detail(blurred) < 0.1 * detail(pixels)
    far = np.ones(pixels.shape[:2], bool)
    far[: y + height + 80, x - 80 : x + width + 80] = False
    assert np.array_equal(blurred[far], pixels[far])


def test_boxes_are_cut_at_the_edges_and_low_scores_dropped():
    pixels = np.asarray(Image.open(io.BytesIO(striped((80, 40, 16, 24)))))
    found = [
        face_detection.find(pixels, face_detection.Choice(RED, least, False))
        for least in (0.5, 0.1, 0.95)
    ]
    face = (79, 40, 17, 24, 0.9)
    assert found == [(face,), ((0, 0, 5, 5, 0.2), face), ()]


@pytest.mark.parametrize("box", [(0, 0, 96, 64), (0, 0, 3, 2), (40, 20, 1, 1)])
def test_a_box_of_any_size_and_place_is_blurred(box):
    pixels = np.asarray(Image.open(io.BytesIO(striped(None))))
    blurred = face_detection.blurred(pixels, [face_detection.Face(*box, 1.0)])
    assert blurred.shape == pixels.shape and blurred.dtype == np.uint8
    wide = box[2] > 90
    assert (np.abs(np.diff(blurred[:, :, 2].astype(int), axis=1)).max() < 40) == wide


def test_an_image_without_a_face_keeps_its_bytes():
    body = striped(None)
    plain = screening.screen(body, **LIMITS)
    wanted = face_detection.Choice(RED, 0.5, True)
    assert plain.faces is None
    found = screening.screen(body, **LIMITS, of_faces=wanted)
    assert found.faces == () and found.image == plain.image


def test_a_blurred_image_is_encoded_again_with_the_fingerprint_of_before():
    body = striped((30, 20, 20, 24))
    plain = screening.screen(body, **LIMITS)
    listed, blurred = (
        screening.screen(body, **LIMITS, of_faces=face_detection.Choice(RED, 0.5, blur))
        for blur in (False, True)
    )
    assert listed.image == plain.image and listed.faces == blurred.faces
    assert blurred.image != plain.image
    assert blurred.sha256 == hashlib.sha256(blurred.image).hexdigest()
    assert blurred.fingerprint == plain.fingerprint
    sizes = {(s.width, s.height) for s in (plain, blurred)}
    assert sizes == {Image.open(io.BytesIO(blurred.image)).size}


@pytest.mark.parametrize("blur", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_boxes_are_beside_the_records_and_the_card_names_the_detector(tmp_path, blur):
    boxes = [(30, 20, 20, 24), None, (8, 6, 20, 20), (60, 30, 16, 30)]
    bodies = {f"/{n}.png": striped(box) for n, box in enumerate(boxes)}
    bodies["/9.png"] = b"no picture"
    run = tiny_web.run(
        tmp_path,
        [(path, f"a cat {path}") for path in bodies],
        bodies,
        **{"balance.rule": "online", "partitions": 2, "safety.face_detector": RED},
        **{"safety.blur_faces": blur},
    )
    dataset = records.open_dataset(run.output)
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    number = {record.image_id: int(record.image_url[-5]) for record in found}
    assert sorted(number.values()) == [0, 1, 2, 3]
    paths = sorted(tmp_path.glob("dataset/faces-*.parquet"))
    assert len(paths) == 2
    rows = pa.concat_tables(map(pq.read_table, paths)).to_pylist()
    listed = {number[row.pop("image_id")]: tuple(row.values()) for row in rows}
    assert listed.keys() == {0, 2, 3} and len(rows) == 3
    for n, (*box, score) in listed.items():
        assert overlap(box, boxes[n]) > 0.75 and score == 0.9
    for record in found:
        pixels = np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))
        box = boxes[number[record.image_id]]
        if box:
            x, y, width, height = box
            inside = pixels[y : y + height, x : x + width].reshape(-1, 3).mean(axis=0)
            assert (inside[2] > 20) == blur  # blue from around it
    assert dataset.data_card["models"] == {
        "face_detector": {"name": "red boxes 1", "least_score": 0.5, "blurred": blur}
    }


@pytest.mark.parametrize("spec", ["no_such.module:name", f"{__name__}:no_such"])
def test_a_detector_that_is_not_installed_is_refused_before_anything_is_read(
    tmp_path, spec
):
    with pytest.raises(ValueError, match="config.safety.face_detector: wanted yuface"):
        tiny_web.run(tmp_path, [], {}, **{"safety.face_detector": spec})
