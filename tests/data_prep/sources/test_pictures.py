"""Pictures of sets that are the user's own: damage is an error that names the file."""

import io
import tarfile

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data_prep.sources import pictures
from tests.data_prep import tiny_web


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            body = tiny_web.picture(number)
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))


def write_records(path):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number in range(50):
        writer.write(b"%d" % number * 2_000)
    writer.close()


@pytest.mark.parametrize(
    ("name", "write", "damage"),
    [
        ("a.tar", write_tar, lambda data: data[: 512 + 100]),
        ("a.array_record-00000-of-00001", write_records, lambda data: data[::-1]),
        (
            "b.array_record-00000-of-00001",
            write_records,
            lambda data: data[:1000] + bytes(1000) + data[2000:],
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, write, damage):
    path = tmp_path / name
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((ValueError, OSError)) as error:
        list(pictures.read(str(path)))
    assert str(path) in str(error.value)
