import random

import pyarrow as pa

from data_prep import dedup, schema


def matches(rows):
    columns = ("image_id", "text", "text_source", "page_url")
    table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    n = len(rows)
    table |= {"image_url": [""] * n, "language": ["en"] * n, "metadata": ["en"] * n}
    table["entry_ids"] = [[1]] * n
    return pa.table(table).select(schema.MATCHES.names).cast(schema.MATCHES)


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
            default = "" if schema.IMAGES.field(name).type == pa.string() else 1
            columns[name].append(values.get(name, default))
    return pa.table(columns, schema=schema.IMAGES)


def test_of_equal_images_the_smallest_id_stays():
    table = images(
        [("c", "ok", "x"), ("a", "ok", "x"), ("b", "ok", "y"), ("d", "ok", "x")]
    )
    assert dedup.repeated_images(table)["image_id"].to_pylist() == ["c", "d"]


def test_images_without_bytes_are_not_compared():
    table = images([("a", "timeout", ""), ("b", "timeout", ""), ("c", "ok", "x")])
    assert dedup.repeated_images(table).num_rows == 0
