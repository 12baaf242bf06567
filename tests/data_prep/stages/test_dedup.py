import random

import pyarrow as pa

from data_prep import schema
from data_prep.stages import dedup


def matches(rows):
    columns = ("image_id", "text", "text_source", "page_url")
    table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    n = len(rows)
    table |= {
        "image_url": [""] * n,
        "stored_at": [""] * n,
        "scores": [""] * n,
        "language": ["en"] * n,
        "metadata": ["en"] * n,
    }
    table["entry_ids"] = [[1]] * n
    return pa.table(table).select(schema.MATCHED.names).cast(schema.MATCHED)


def test_equal_pairs_leave_one_row_whatever_their_order():
    rows = [
        ("b", "cat", "alt", "p2"),
        ("b", "cat", "alt", "p1"),
        ("b", "cat", "title", "p0"),
        ("b", "dog", "alt", "p1"),
        ("a", "cat", "alt", "p9"),
    ]
    results = []
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        results.append(dedup.sort_and_drop_repeats(matches(rows)))
    assert all(r.equals(results[0]) for r in results)
    kept = results[0].select(["image_id", "text", "page_url"]).to_pylist()
    assert [tuple(row.values()) for row in kept] == [
        ("a", "cat", "p9"),
        ("b", "cat", "p1"),
        ("b", "dog", "p1"),
    ]


def test_no_rows_stay_no_rows():
    assert dedup.sort_and_drop_repeats(matches([])).num_rows == 0
    assert dedup.repeated_images(schema.IMAGES.empty_table()).num_rows == 0


def images(rows):
    columns = {name: [] for name in schema.IMAGES.names}
    for image_id, status, sha256 in rows:
        values = {"image_id": image_id, "status": status, "sha256": sha256}
        for name in columns:
            defaults = {pa.string(): "", pa.binary(): b""}
            default = defaults.get(schema.IMAGES.field(name).type, 1)
            columns[name].append(values.get(name, default))
    return pa.table(columns, schema=schema.IMAGES)


def test_of_equal_images_the_smallest_id_stays():
    table = images(
        [("c", "ok", "x"), ("a", "ok", "x"), ("b", "ok", "y"), ("d", "ok", "x")]
    )
    repeated = dedup.repeated_images(table)
    assert repeated["image_id"].to_pylist() == ["c", "d"]
    assert repeated["kept_as"].to_pylist() == ["a", "a"]
    assert repeated["status"].to_pylist() == ["repeated_image"] * 2


def test_images_without_bytes_are_not_compared():
    table = images([("a", "timeout", ""), ("b", "timeout", ""), ("c", "ok", "x")])
    assert dedup.repeated_images(table).num_rows == 0


def test_moved_texts_are_new_ones_of_the_smallest_ids_whatever_their_order():
    own = matches([("a", "cat", "alt", "p"), ("b", "dog", "alt", "p")])
    rows = [
        # image_id, text, the image that takes it over
        ("c", "cat", "a"),  # is there already
        ("c", "dog", "a"),
        ("d", "dog", "a"),  # of a larger id than c's
        ("d", "red", "a"),
        ("e", "sun", "a"),  # a third one
        ("f", "cat", "b"),
    ]
    lost = {"repeated_pair": 2, "too_many_texts": 1}
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        moved = matches([(image, text, "alt", "p") for image, text, _ in rows])
        kept_as = pa.array([row[2] for row in rows])
        moved = moved.append_column("kept_as", kept_as)
        new, dropped = dedup.moved_texts(moved, own, most=2)
        assert dropped == lost
        found = new.select(["image_id", "text", "kept_as"]).to_pylist()
        assert sorted(tuple(row.values()) for row in found) == [
            ("c", "dog", "a"),
            ("d", "red", "a"),
            ("f", "cat", "b"),
        ]
        together = dedup.by_kept_image(dedup.with_moved(own, new))
        assert together.schema == schema.MATCHED
        assert together.select(["image_id", "text"]).to_pylist() == [
            {"image_id": image, "text": text}
            for image, text in [
                ("a", "cat"),
                ("a", "dog"),
                ("a", "red"),
                ("b", "cat"),
                ("b", "dog"),
            ]
        ]
