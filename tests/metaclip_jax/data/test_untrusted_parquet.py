"""Untrusted Parquet: the values of pyarrow, in bounded memory, and named refusals."""

import io
import itertools
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metaclip_jax.data import untrusted_parquet

STRINGS = (None, "", "a cat", "Łódź", "東京" * 40, "x" * 3_000)
TYPES = {
    "string": (pa.string(), STRINGS),
    "large": (pa.large_string(), STRINGS),
    "bytes": (pa.binary(), (None, b"", b"\xff\xd8", b"\0" * 500)),
    "fixed": (pa.binary(3), (None, b"abc", b"\0\0\xff")),
    "number": (pa.int32(), (None, 0, -7, 2**31 - 1)),
    "score": (pa.float64(), (None, 0.0, -1.5)),
    "flag": (pa.bool_(), (None, True, False)),
    "time": (pa.timestamp("us"), (None, 0, 10**15)),
}
ENCODINGS = {
    "string": ("PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"),
    "large": ("PLAIN", "DELTA_BYTE_ARRAY"),
    "bytes": ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY"),
}


def column(rng, name, rows):
    """Returns a column of some type: flat, a list, a list of lists or a struct."""
    kind, values = TYPES[name]

    def one(depth):
        if depth == 0:
            return rng.choice(values)
        count = rng.choice((0, 1, 3))
        return None if rng.random() < 0.2 else [one(depth - 1) for _ in range(count)]

    depth = rng.choice((0, 0, 1, 2))
    nested = kind
    for _ in range(depth):
        nested = pa.list_(nested)
    found = pa.array([one(depth) for _ in range(rows)], nested)
    if rng.random() < 0.3:
        missing = pa.array([rng.random() < 0.2 for _ in range(rows)], pa.bool_())
        return pa.StructArray.from_arrays([found, found], ["a", "b.c"], mask=missing)
    if depth == 0 and name == "string" and rng.random() < 0.3:
        return found.dictionary_encode()
    return found


def written(rng, table):
    encoding = {
        name: rng.choice(ENCODINGS[name])
        for name in table.column_names
        if table[name].type == TYPES[name][0] and name in ENCODINGS
    }
    plain = rng.random() < 0.4
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=rng.choice((1, 7, 64, 1_000)),
        data_page_size=rng.choice((500, 1 << 20)),
        write_batch_size=rng.choice((1, 3, 1_024)),
        dictionary_pagesize_limit=rng.choice((1, 1 << 20)),
        compression=rng.choice(("none", "snappy", "zstd", "gzip")),
        data_page_version=rng.choice(("1.0", "2.0")),
        use_dictionary=not plain,
        column_encoding=encoding if plain else None,
        write_statistics=rng.random() < 0.5,
        store_schema=rng.random() < 0.7,
    )
    return out.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_that_were_written(tmp_path, seed, tables=25):
    rng = random.Random(seed)
    path = tmp_path / "a.parquet"
    for _ in range(tables):
        names = rng.sample(sorted(TYPES), 4)
        rows = rng.choice((0, 1, 5, 200))
        table = pa.table({name: column(rng, name, rows) for name in names})
        path.write_bytes(written(rng, table))
        wanted = rng.sample(names, 3)
        for shared in (True, False):
            found = {name: [] for name in wanted}
            for _, batch in untrusted_parquet.batches(path, wanted, shared=shared):
                for name in wanted:
                    found[name] += untrusted_parquet.to_python(batch[name])
            assert found == table.select(wanted).to_pydict()


def test_equal_values_are_one_object(tmp_path):
    table = pa.table({"a": ["x" * 1_000] * 50, "b": [["y" * 1_000] * 2] * 50})
    pq.write_table(table, tmp_path / "a.parquet")
    ((_, batch),) = untrusted_parquet.batches(tmp_path / "a.parquet", ["a", "b"])
    texts = untrusted_parquet.to_python(batch["a"])
    lists = untrusted_parquet.to_python(batch["b"])
    assert len({id(text) for text in texts}) == 1
    assert len({id(text) for text in itertools.chain(*lists)}) == 1


def test_damage_is_an_arrow_error_or_a_refusal(tmp_path, mutations=300):
    rng = random.Random(0)
    path = tmp_path / "a.parquet"
    tables = [
        written(rng, pa.table({name: column(rng, name, 20) for name in TYPES}))
        for _ in range(10)
    ]
    for _ in range(mutations):
        data = bytearray(rng.choice(tables))
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            for _, batch in untrusted_parquet.batches(path, list(TYPES)):
                list(map(untrusted_parquet.to_python, batch.columns))
        except (pa.ArrowException, untrusted_parquet.TooLargeError):
            pass
        except OSError as error:
            assert error.errno is None
        except (ArithmeticError, LookupError, ValueError):
            pass  # of a date or time that Python has not
