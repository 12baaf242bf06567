"""Near duplicates and images of evaluation sets are found by embeddings."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.images import cosine
from data_prep.stages import embedded
from metaclip_jax.data import embeddings, records
from tests.data_prep import tiny_web
from tests.data_prep.images.test_cosine import unit
from tests.data_prep.stages.test_image_dedup import images_of, rows_of

COUNT = 16
# The larger of two alike is kept.
SIDES = [40 + (n * 7) % COUNT for n in range(COUNT)]
PATHS = [f"/{n}.jpg" for n in range(COUNT)]
BODIES = {p: tiny_web.picture(n, SIDES[n]) for n, p in enumerate(PATHS)}
ALTS = [(path, f"a cat at {path[1:-4]}") for path in PATHS]
IDS = [records.image_id(f"http://{tiny_web.IMAGES}{path}") for path in PATHS]
WIDTH = 24


def vectors():
    """Four groups of four around a direction each; the groups are far apart."""
    rng = np.random.default_rng(0)
    middle = unit(rng.normal(size=(4, WIDTH)))
    return unit(middle.repeat(4, axis=0) + 0.03 * rng.normal(size=(COUNT, WIDTH)))


VECTORS = vectors()


def write(folder, ids, found, status=None, part=0, count=1):
    """Writes embeddings as metaclip_jax.embed does; returns their path."""
    folder.mkdir(exist_ok=True)
    n = len(ids)
    table = pa.table(
        {
            "image_id": ids,
            "embedding": list(np.asarray(found, np.float32)),
            "text_keys": [[]] * n,
            "text_scores": [[]] * n,
            "status": status or ["ok"] * n,
        },
        schema=embeddings.schema(len(found[0])),
    )
    path = embeddings.part_path(str(folder), part, count)
    embeddings.write_part(path, table, inputs={})
    return path


def all_of(folder):
    """Two parts, in another order than the ids; image 3 has no embedding."""
    status = ["ok"] * COUNT
    status[3] = "damaged_image"
    given = np.where(np.arange(COUNT)[:, None] == 3, 0, VECTORS)
    for part in range(2):
        rows = range(part, COUNT, 2)
        more = {"part": part, "count": 2, "status": [status[n] for n in rows]}
        write(folder, [IDS[n] for n in rows], given[rows.start :: 2], **more)
    return f"{folder}/part-*.parquet"


def run(folder, partitions=1, **values):
    named = {f"duplicates.{key}": value for key, value in values.items()}
    more = {"balance.rule": "online", "partitions": partitions}
    return tiny_web.run(folder, ALTS, BODIES, **more, **named)


def dropped(run, status):
    """Number of the image -> `kept_as`."""
    rows = images_of(run).to_pylist()
    return {
        IDS.index(row["image_id"]): row["kept_as"]
        for row in rows
        if row["status"] == status
    }


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    folder = tmp_path_factory.mktemp("near")
    paths = (all_of(folder / "embedded"),)
    return run(folder, 1, embeddings=paths, near_cosine=0.9), paths


def test_of_alike_images_the_largest_is_kept(near):
    found = dropped(near[0], "near_duplicate")
    wanted = {}
    for first in range(0, COUNT, 4):
        group = [n for n in range(first, first + 4) if n != 3]
        best = max(group, key=lambda n: SIDES[n])
        wanted |= {n: IDS[best] for n in group if n != best}
    assert found == wanted
    card = records.open_dataset(near[0].output).data_card
    assert rows_of(card, "images") == {"near_duplicate": 11, "repeated_image": 0}
    urls = pq.read_table(f"{near[0].output}/urls-00000-of-00001.parquet").to_pylist()
    listed = {row["image_id"]: row["kept_as"] for row in urls if row["kept_as"]}
    assert listed == {IDS[n]: kept for n, kept in wanted.items()}


@pytest.mark.slow
def test_partitions_and_cells_do_not_show(near, tmp_path, monkeypatch):
    monkeypatch.setattr(cosine, "_FEW", 2)
    monkeypatch.setattr(embedded, "_PARTITIONS_TOGETHER", 1)
    again = run(tmp_path, 3, embeddings=near[1], near_cosine=0.9)
    pivots = pq.read_table(f"{again.workdir}/embeddings/pivots.parquet")
    assert pivots.num_rows > cosine.NEAREST
    assert dropped(again, "near_duplicate") == dropped(near[0], "near_duplicate")


def test_images_of_an_evaluation_set_are_dropped_and_listed(tmp_path):
    own = all_of(tmp_path / "embedded")
    turned = unit(VECTORS[[5]] + 0.02 * VECTORS[[9]])
    write(tmp_path / "sets", ["f" * 24, "e" * 24], np.concatenate([turned, -turned]))
    path = str(tmp_path / "sets" / "part-00000-of-00001.parquet")
    found = run(
        *(tmp_path / "run", 2),
        embeddings=(own,),
        evaluation_embeddings=(path,),
        evaluation_cosine=0.99,
    )
    name = f"{path}:{'f' * 24}"
    assert dropped(found, "in_evaluation_set") == {5: name}
    listed = pq.read_table(f"{found.output}/evaluation_images.parquet").to_pylist()
    (row,) = listed
    assert row["image_id"] == IDS[5] and row["picture"] == name
    assert row["bits"] is None
    assert row["cosine"] == pytest.approx(float(VECTORS[5] @ turned[0]), abs=1e-3)


def test_other_files_are_another_run_and_those_of_other_models_are_refused(tmp_path):
    paths = (write(tmp_path / "one", IDS, VECTORS),)
    values = {"duplicates.embeddings": paths, "duplicates.near_cosine": 0.9}
    first = tiny_web.plan(tmp_path, ALTS, **values)
    write(tmp_path / "one", IDS[:-1], VECTORS[:-1])
    assert tiny_web.plan(tmp_path, ALTS, **values).inputs != first.inputs
    other = write(tmp_path / "two", IDS[:1], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="wanted embeddings of one model, got widths"):
        run(tmp_path / "run", embeddings=(*paths, other), near_cosine=0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embeddings": ("no.parquet",), "near_cosine": 0.9}, "wanted Parquet files"),
        ({"near_cosine": 0.9}, "embeddings=.*: wanted files, with"),
        ({"embeddings": ("a",)}, "embeddings=.*: wanted files, with"),
        (
            {"embeddings": ("a",), "evaluation_cosine": 0.9},
            "evaluation_embeddings=.*: wanted files, with",
        ),
    ],
)
def test_embeddings_and_their_cosines_belong_together(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **values)
