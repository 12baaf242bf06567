"""Untrusted tars: files as tarfile lists them, and named refusals in bounded memory."""

import io
import random
import tarfile
import tracemalloc

import pytest

from metaclip_jax.data import untrusted_tar
from metaclip_jax.evaluation import webdataset


def tar_of(rng, form):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for i in range(rng.randrange(1, 8)):
            member = tarfile.TarInfo("ä" * rng.choice((0, 1, 150)) + f"{i}.jpg")
            member.type = rng.choice((b"0", b"0", b"0", b"2", b"5"))
            member.size = rng.choice((0, 1, 512, 2_000)) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(rng.randbytes(member.size)))
    return out.getvalue()


def read(data):
    file = io.BytesIO(data)
    found = []
    for member in untrusted_tar.members(file, len(data)):
        file.seek(member.offset_data)
        found.append((member.name, file.read(member.size)))
    return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_are_those_that_tarfile_lists(form):
    rng = random.Random(form)
    for _ in range(100):
        data = tar_of(rng, form)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = [member for member in tar if member.isreg()]
            assert read(data) == [(m.name, tar.extractfile(m).read()) for m in files]


def test_damage_is_an_error_of_tars(mutations=2_000):
    rng = random.Random(0)
    forms = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    tars = [tar_of(rng, rng.choice(forms)) for _ in range(50)]
    for _ in range(mutations):
        data = bytearray(rng.choice(tars))
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read(bytes(data[: rng.choice((len(data), rng.randrange(len(data))))]))
        except tarfile.TarError:
            pass


def test_a_sparse_file_of_a_terabyte_is_passed_over(tmp_path):
    size = 1 << 40
    name = tarfile.TarInfo("a.txt")
    name.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(size),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(name)
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        assert tar.getmember("a.txt").size == size
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "0.tar").write_bytes(out.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="wanted a"):
            webdataset.open_folder(str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
