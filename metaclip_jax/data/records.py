"""The format of records, and reading of dataset folders.

A dataset is a folder that TFDS can open: NAME-train.array_record-00000-of-000NN files
of tf.train.Example, features.json, dataset_info.json, and our manifest.json, which is
written last. Curation writes such folders (data_prep.sinks.array_record) and training
reads them through this module; neither needs the other's dependencies.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
import xxhash
from google.protobuf.message import DecodeError

# At the top: two threads that import TFDS at once wait for each other forever.
from tensorflow_datasets.proto import tf_example_pb2

from metaclip_jax import files
from metaclip_jax.data import record_files

DATASET_INFO = "dataset_info.json"
DATA_CARD = record_files.DATA_CARD

# The sidecar of a file shard, an Arrow IPC file, which can be memory-mapped. It has one
# row per record, in the same order, so that balancing need not read the images.
ENTRIES = pa.schema(
    [
        ("image_id", pa.string()),
        ("text_keys", pa.list_(pa.uint64())),  # one per text
        ("metadata", pa.list_(pa.string())),  # one code per text
        ("entry_ids", pa.list_(pa.list_(pa.int32()))),  # one list per text
        ("text_sources", pa.list_(pa.string())),  # one per text
    ]
)

_CURE = "use a dataset that data_prep wrote"
_READ_TOGETHER = 1_000  # records, if many are read


def image_id(url: str) -> str:
    """Returns an image's id: the first 24 hex digits of its absolute URL's sha224.

    The URL's fragment is removed; otherwise the URL is not normalised.
    """
    return hashlib.sha224(url.partition("#")[0].encode()).hexdigest()[:24]


def text_key(image_id: str, text: str) -> int:
    """Returns the key of a text of an image, a 64-bit unsigned integer."""
    return xxhash.xxh3_64_intdigest(f"{image_id}\0{text}".encode())


def text_keys(image_ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Returns uint64[n], the text keys of n (image id, text) pairs."""
    digest = xxhash.xxh3_64_intdigest
    pairs = zip(image_ids, texts, strict=True)
    return np.fromiter(
        (digest(f"{image}\0{text}".encode()) for image, text in pairs),
        np.uint64,
        len(texts),
    )


@dataclass(frozen=True, eq=False)
class Record:
    """One image with its texts.

    `image` is JPEG or WebP as stored, `sha256` its hash in hex, `width` and `height`
    in pixels. The four tuples hold one string per text. Text i matched the entries
    `entry_ids[entry_offsets[i] : entry_offsets[i + 1]]` of the metadata `metadata[i]`:
    `entry_ids` int32, ascending inside a text; `entry_offsets` int64[texts + 1].
    """

    image: bytes
    image_id: str
    image_url: str
    page_url: str
    sha256: str
    width: int
    height: int
    texts: tuple[str, ...]
    text_sources: tuple[str, ...]
    languages: tuple[str, ...]
    metadata: tuple[str, ...]
    entry_ids: np.ndarray
    entry_offsets: np.ndarray


# The kinds of fields of a record, in one place for encode, decode and features.
_STRINGS = ("image_id", "image_url", "page_url", "sha256")
_INTEGERS = ("width", "height")
_STRING_LISTS = ("texts", "text_sources", "languages", "metadata")
_INTEGER_LISTS = {"entry_ids": np.int32, "entry_offsets": np.int64}
_FIELDS = {"image", *_STRINGS, *_INTEGERS, *_STRING_LISTS, *_INTEGER_LISTS}


def encode(record: Record) -> bytes:
    """Serialises a record as a tf.train.Example; equal records give equal bytes.

    Raises ValueError if the lengths of the record's lists contradict each other.
    """
    _check(record)
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(record.image)
    for name in _STRINGS:
        feature[name].bytes_list.value.append(getattr(record, name).encode())
    for name in _INTEGERS:
        feature[name].int64_list.value.append(getattr(record, name))
    for name in _STRING_LISTS:
        # TFDS refuses an empty list without a kind, which SetInParent sets.
        feature[name].bytes_list.SetInParent()
        feature[name].bytes_list.value.extend(
            text.encode() for text in getattr(record, name)
        )
    for name in _INTEGER_LISTS:
        feature[name].int64_list.SetInParent()
        feature[name].int64_list.value.extend(getattr(record, name).tolist())
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """Parses the bytes from `encode`. Raises ValueError if they are not a record."""
    if not data:
        raise ValueError("a record has no bytes: its chunk of the file is damaged")
    example = tf_example_pb2.Example()
    try:
        example.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(
            "a record must be a tf.train.Example, got other bytes"
        ) from error
    feature = dict(example.features.feature.items())  # one protobuf look-up each
    if missing := _FIELDS - feature.keys():
        raise ValueError(f"a record lacks {sorted(missing)}; {_CURE}")
    fields: dict[str, Any] = {}
    for name in ("image", *_STRINGS, *_INTEGERS):
        one = feature[name]
        values = (one.int64_list if name in _INTEGERS else one.bytes_list).value
        if len(values) != 1:
            raise ValueError(f"a record must have one {name}; {_CURE}")
        fields[name] = values[0]
    for name in _STRINGS:
        fields[name] = fields[name].decode()
    for name in _STRING_LISTS:
        fields[name] = tuple(b.decode() for b in feature[name].bytes_list.value)
    for name, dtype in _INTEGER_LISTS.items():
        fields[name] = np.array(feature[name].int64_list.value, dtype)
    return Record(**fields)


def features() -> tfds.features.FeaturesDict:
    """Returns TFDS's description of a record (features.json)."""
    return tfds.features.FeaturesDict(
        {
            # Without a fixed format, TFDS decodes both JPEG and WebP.
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format=None),
            **{name: tfds.features.Text() for name in _STRINGS},
            **{name: tfds.features.Scalar(np.int32) for name in _INTEGERS},
            **{
                name: tfds.features.Sequence(tfds.features.Text())
                for name in _STRING_LISTS
            },
            **{
                name: tfds.features.Sequence(tfds.features.Scalar(dtype))
                for name, dtype in _INTEGER_LISTS.items()
            },
        }
    )


def shard_name(name: str, index: int, total: int) -> str:
    """Returns the file name of a dataset's shard `index` of `total`."""
    return f"{name}-train.array_record-{index:05d}-of-{total:05d}"


def entries_path(shard_path: str) -> str:
    """Returns the path of a shard's sidecar (schema ENTRIES)."""
    folder, slash, file_name = shard_path.rpartition("/")
    if ".array_record-" not in file_name:
        raise ValueError(
            f"{shard_path} should be named like {shard_name('NAME', 0, 1)}"
        )
    return folder + slash + file_name.replace(".array_record-", ".entries-") + ".arrow"


@dataclass(eq=False)
class Dataset:
    """A finished dataset folder, from `open_dataset`.

    A position is a record's index over all shards in order. A dataset can be pickled;
    each process opens its own files.
    """

    folder: str
    name: str
    shards: tuple[str, ...]  # paths
    shard_lengths: tuple[int, ...]  # records in each
    data_card: dict[str, Any]
    _readers: record_files.Readers = field(
        default_factory=record_files.Readers, repr=False
    )

    def __len__(self) -> int:
        return sum(self.shard_lengths)


def open_dataset(folder: str, *, verify: bool = True) -> Dataset:
    """Opens a dataset folder.

    `verify` opens all files and counts their records. This finds truncated files, which
    otherwise read as empty without an error.

    Raises:
      FileNotFoundError: the folder is not a finished dataset.
      ValueError: a file's number of records is not the one in dataset_info.json.
    """
    _check_finished(folder)
    root = files.path(folder)
    with files.naming(root / DATASET_INFO, "what TFDS reads of a dataset"):
        info = files.read_json(root / DATASET_INFO)
        lengths = tuple(int(length) for length in info["splits"][0]["shardLengths"])
        if not all(0 <= length < 1 << 48 for length in lengths):
            raise ValueError(f"wanted numbers of records, got {lengths}")
        names = [shard_name(info["name"], n, len(lengths)) for n in range(len(lengths))]
    with files.naming(root / DATA_CARD, "a data card"):
        data_card = dict(files.read_json(root / DATA_CARD))
    dataset = Dataset(
        folder=str(root),
        name=info["name"],
        shards=tuple(str(root / name) for name in names),
        shard_lengths=lengths,
        data_card=data_card,
    )
    if verify:
        with ThreadPoolExecutor(16) as pool:
            counts = list(pool.map(record_files.count_records, dataset.shards))
        for shard, count, length in zip(dataset.shards, counts, lengths, strict=True):
            if count != length:
                raise ValueError(
                    f"{shard} should hold {length} records but {count} can be read: it "
                    f"is missing, truncated or damaged; remove {folder} and write it "
                    "again"
                )
    return dataset


def read(
    dataset: Dataset,
    positions: np.ndarray | Sequence[int],
    *,
    ahead: bool = False,
    run: Callable[[Callable[[int], None], Sequence[int]], Iterable[None]] = map,
) -> list[bytes]:
    """Reads records (for `decode`) in the order of `positions`.

    A record whose chunk of the file is damaged gives b"". Threads may read the same
    dataset concurrently.

    Args:
      dataset: from `open_dataset`.
      positions: int64[n]; they may repeat.
      ahead: whether the positions are ascending and close together, so that those of
        a gs:// file share a request.
      run: maps a function over the shards, for instance with threads.

    Raises:
      IndexError: a position is outside the dataset.
      StorageError: Cloud Storage refuses a file.
      ValueError: a file cannot be read.
    """
    positions = np.asarray(positions, np.int64).reshape(-1)
    if positions.size and not (0 <= positions.min() and positions.max() < len(dataset)):
        raise IndexError(
            f"{dataset.folder} holds positions 0 to {len(dataset) - 1}, got "
            f"{positions.min()} to {positions.max()}"
        )
    starts = np.concatenate([[0], np.cumsum(dataset.shard_lengths)])
    shard_of = np.searchsorted(starts, positions, side="right") - 1
    result: list[bytes] = [b""] * len(positions)

    def read_shard(shard: int) -> None:
        places = np.flatnonzero(shard_of == shard)
        shard_path = dataset.shards[shard]
        wanted = (positions[places] - starts[shard]).tolist()
        try:
            if ahead and not files.is_local(shard_path):
                with dataset._readers.borrow(shard_path) as reader:
                    found = record_files.read_run(reader, wanted)
            else:
                found = record_files.read_sound(
                    dataset._readers.get(shard_path), wanted
                )
        except (IndexError, RuntimeError) as error:  # without a file: no record 0
            if not files.is_local(shard_path):
                files.size(shard_path)  # says more about a request that is refused
            raise ValueError(f"{shard_path} cannot be read: {error}") from error
        for place, data in zip(places.tolist(), found, strict=True):
            result[place] = data

    for _ in run(read_shard, np.unique(shard_of).tolist()):
        pass
    return result


def evenly_spaced(dataset: Dataset, most: int) -> Iterator[Record]:
    """Returns at most so many records, spaced evenly over the dataset."""
    count = min(most, len(dataset))
    return decoded(dataset, np.arange(count) * len(dataset) // max(count, 1))


def decoded(
    dataset: Dataset, positions: np.ndarray | Sequence[int]
) -> Iterator[Record]:
    """Yields the records at these positions, decoded; see `read`."""
    for start in range(0, len(positions), _READ_TOGETHER):
        yield from map(decode, read(dataset, positions[start : start + _READ_TOGETHER]))


def read_entries(dataset: Dataset, shard: int) -> pa.Table:
    """Returns the sidecar of a shard (schema ENTRIES), memory-mapped if it is local.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is damaged.
    """
    sidecar = entries_path(dataset.shards[shard])
    with files.naming(sidecar, "the entries of a file of records"):
        if files.is_local(sidecar):
            source = pa.memory_map(sidecar)
        else:
            source = pa.BufferReader(files.path(sidecar).read_bytes())
        table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
    return table


def read_shards(folder: str) -> list[dict[str, Any]]:
    """Returns the manifest's entry of each file of a dataset.

    Raises:
      FileNotFoundError: the folder is not a finished dataset.
      ValueError: the manifest is damaged.
    """
    path = files.path(folder) / files.MANIFEST
    with files.naming(path, "the manifest of a dataset"):
        return [dict(shard) for shard in files.read_json(path)["shards"]]


def fingerprint(folder: str) -> str:
    """Returns the sha256 over the file list in a dataset's manifest.

    Raises:
      FileNotFoundError: the folder is not a finished dataset.
      ValueError: the manifest is damaged.
    """
    _check_finished(folder)
    shards = json.dumps(read_shards(folder), sort_keys=True)
    return hashlib.sha256(shards.encode()).hexdigest()


def _check_finished(folder: str) -> None:
    if not (files.path(folder) / files.MANIFEST).exists():
        raise FileNotFoundError(
            f"{folder!r} is not a finished dataset: it has no {files.MANIFEST}; finish"
            " data_prep.curate, or correct the path"
        )


def _check(record: Record) -> None:
    """Raises ValueError if the lengths of a record's lists contradict each other."""
    count = len(record.texts)
    for name in _STRING_LISTS:
        if len(getattr(record, name)) != count:
            raise ValueError(
                f"record {record.image_id} has {count} texts but "
                f"{len(getattr(record, name))} {name}; there must be one per text"
            )
    offsets = record.entry_offsets
    if (
        len(offsets) != count + 1
        or offsets[0] != 0
        or offsets[-1] != len(record.entry_ids)
        or (np.diff(offsets) < 0).any()
    ):
        raise ValueError(
            f"record {record.image_id}: entry_offsets must rise from 0 to "
            f"{len(record.entry_ids)} (entry ids) in {count + 1} steps (texts + 1), "
            f"got {offsets}"
        )
