"""Records: identity, bytes, and reading a dataset by position."""

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xxhash
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from metaclip_jax import files
from metaclip_jax.data import record_files, records
from tests import small_records


def make_record(index=0, texts=("a cat", "кот"), entry_ids=((0, 5), (7,))):
    return small_records.record(
        f"http://images.example/{index}.jpg",
        texts,
        image=b"bytes of image %d" % index,
        entry_ids=entry_ids,
        width=64,
        height=48,
    )


def write_folder(folder, shard_lengths, promised=None):
    """A folder as open_dataset wants it, with records numbered through all shards."""
    total = len(shard_lengths)
    position = 0
    for index, length in enumerate(shard_lengths):
        path = folder / records.shard_name("tiny", index, total)
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(length):
            writer.write(records.encode(make_record(position)))
            position += 1
        writer.close()
    lengths = [str(n) for n in promised or shard_lengths]
    info = {"name": "tiny", "splits": [{"name": "train", "shardLengths": lengths}]}
    files.write_json(folder / records.DATASET_INFO, info)
    files.write_json(folder / records.DATA_CARD, {"records": sum(shard_lengths)})
    files.write_manifest(folder, inputs={})
    return str(folder)


def test_image_id_is_24_hex_digits_of_the_urls_sha224_without_fragment():
    url = "http://images.example/A b.jpg?q=1"
    wanted = hashlib.sha224(url.encode()).hexdigest()[:24]
    assert records.image_id(url) == wanted
    assert records.image_id(url + "#top") == wanted
    assert records.image_id(url + "/") != wanted


def test_text_key_is_xxh3_of_image_id_zero_byte_text():
    wanted = xxhash.xxh3_64_intdigest(b"0f\0caf\xc3\xa9")
    assert records.text_key("0f", "café") == wanted
    keys = records.text_keys(["0f", "0f", "1f"], ["café", "b", "b"])
    assert keys.dtype == np.uint64
    assert keys[0] == wanted
    assert len(set(keys.tolist())) == 3
    assert records.text_keys([], []).shape == (0,)


def test_text_keys_wants_as_many_ids_as_texts():
    with pytest.raises(ValueError, match="longer"):
        records.text_keys(["a"], ["b", "c"])


@pytest.mark.parametrize(
    "record",
    [
        make_record(),
        make_record(texts=(), entry_ids=()),
        make_record(texts=("",), entry_ids=((),)),
        make_record(texts=("a", "b", "c"), entry_ids=((2**31 - 1,), (), (0, 1))),
    ],
)
def test_decode_gives_back_what_was_encoded(record):
    found = records.decode(records.encode(record))
    for field in dataclasses.fields(records.Record):
        want, got = getattr(record, field.name), getattr(found, field.name)
        assert type(want) is type(got)
        np.testing.assert_array_equal(want, got)
    assert found.entry_ids.dtype == np.int32
    assert found.entry_offsets.dtype == np.int64


def test_a_record_has_the_same_bytes_in_every_process():
    code = (
        f"import sys; sys.path.insert(0, {str(__file__).rpartition('/')[0]!r})\n"
        "import hashlib, test_records as t\n"
        "from metaclip_jax.data import records\n"
        "print(hashlib.sha256(records.encode(t.make_record())).hexdigest())"
    )
    wanted = hashlib.sha256(records.encode(make_record())).hexdigest()
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == wanted


def test_lists_that_do_not_fit_together_are_refused():
    record = make_record()
    with pytest.raises(ValueError, match="2 texts but 1 languages"):
        records.encode(dataclasses.replace(record, languages=("en",)))
    for offsets in ([0, 3], [0, 2, 4], [0, 4, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="entry_offsets must rise from 0 to 3"):
            records.encode(dataclasses.replace(record, entry_offsets=np.array(offsets)))


def test_other_bytes_are_no_record():
    with pytest.raises(ValueError, match=r"must be a tf\.train\.Example"):
        records.decode(b"\xff\xff\xff")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(b"image")
    with pytest.raises(ValueError, match="lacks .*'entry_ids'"):
        records.decode(example.SerializeToString())
    with pytest.raises(ValueError, match="its chunk of the file is damaged"):
        records.decode(b"")
    example.ParseFromString(records.encode(make_record(0)))
    example.features.feature["width"].int64_list.Clear()
    with pytest.raises(ValueError, match="must have one width"):
        records.decode(example.SerializeToString())


def test_positions_run_through_the_shards_and_come_back_in_order(tmp_path):
    dataset = records.open_dataset(write_folder(tmp_path, [3, 0, 5, 1]))
    assert len(dataset) == 9
    assert dataset.data_card == {"records": 9}
    everything = records.read(dataset, np.arange(9))
    assert [records.decode(data).image_url for data in everything] == [
        make_record(position).image_url for position in range(9)
    ]
    positions = [8, 0, 3, 3, 7, 2, 0]
    assert records.read(dataset, positions) == [everything[p] for p in positions]
    assert records.read(dataset, []) == []


def test_positions_outside_the_dataset_are_refused(tmp_path):
    dataset = records.open_dataset(write_folder(tmp_path, [3]))
    for position in (-1, 3):
        with pytest.raises(IndexError, match="holds positions 0 to 2"):
            records.read(dataset, [0, position])


def test_threads_and_pickled_copies_read_the_same(tmp_path):
    dataset = records.open_dataset(write_folder(tmp_path, [40, 60]))
    wanted = records.read(dataset, np.arange(100))
    copy = pickle.loads(pickle.dumps(dataset))
    orders = [np.random.default_rng(seed).permutation(100) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda order: records.read(copy, order), orders))
    assert found == [[wanted[p] for p in order] for order in orders]


def test_more_shards_than_open_files_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_OPEN_FILES", 2)
    dataset = records.open_dataset(write_folder(tmp_path, [1] * 5))
    for positions in ([0, 1, 2, 3, 4], [4, 0, 4, 2, 0]):
        found = [records.decode(data) for data in records.read(dataset, positions)]
        assert [r.image_id for r in found] == [
            make_record(position).image_id for position in positions
        ]
    assert len(dataset._readers._open) == 2


def test_a_folder_without_manifest_is_no_dataset(tmp_path):
    folder = write_folder(tmp_path, [1])
    (tmp_path / files.MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        records.open_dataset(folder)


def test_a_truncated_shard_is_named(tmp_path):
    folder = write_folder(tmp_path, [3, 4])
    shard = tmp_path / records.shard_name("tiny", 1, 2)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="00001-of-00002 should hold 4 records but 0"):
        records.open_dataset(folder)


def test_a_missing_shard_and_a_wrong_count_are_named(tmp_path):
    folder = write_folder(tmp_path, [3, 4], promised=[3, 5])
    with pytest.raises(ValueError, match="should hold 5 records but 4"):
        records.open_dataset(folder)
    (tmp_path / records.shard_name("tiny", 0, 2)).unlink()
    with pytest.raises(ValueError, match="should hold 3 records but 0"):
        records.open_dataset(folder)


def test_damaged_records_come_as_no_bytes_and_others_whole(tmp_path):
    folder = write_folder(tmp_path, [4, 2])
    whole = records.read(records.open_dataset(folder), np.arange(6))
    shard = tmp_path / records.shard_name("tiny", 0, 2)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1  # in the first record: the file's first 64 bytes are a header
    shard.write_bytes(data)
    dataset = records.open_dataset(folder)
    for _ in range(2):
        assert records.read(dataset, [0]) == [b""]
        assert records.read(dataset, [5, 1, 0, 3, 0]) == [
            *(whole[5], whole[1], b"", whole[3], b"")
        ]
    with record_files.Readers().borrow(dataset.shards[0]) as reader:
        for wanted in ([0], [0, 1, 3], [1, 3], [2]):
            found = record_files.read_run(reader, wanted)
            assert found == [whole[n] if n else b"" for n in wanted]


def test_a_file_that_goes_missing_is_an_error_that_names_it(tmp_path):
    folder = write_folder(tmp_path, [3, 2])
    dataset = records.open_dataset(folder)
    (tmp_path / records.shard_name("tiny", 1, 2)).unlink()
    assert all(records.read(dataset, [0, 1, 2]))
    with pytest.raises(ValueError, match="00001-of-00002 cannot be read"):
        records.read(dataset, [0, 4])


def test_shards_may_be_read_by_any_map(tmp_path):
    dataset = records.open_dataset(write_folder(tmp_path, [40, 60, 9]))
    positions = np.random.default_rng(0).permutation(109)
    with ThreadPoolExecutor(4) as pool:
        found = records.read(dataset, positions, run=pool.map)
    assert found == records.read(dataset, positions)


def test_records_need_neither_jax_nor_beam_nor_tensorflow():
    code = (
        "import sys; from metaclip_jax.data import records; records.features()\n"
        "heavy = {'jax', 'apache_beam', 'tensorflow', 'torch'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
