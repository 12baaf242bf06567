"""Finished files and folders: whole or absent, one writer, one run a folder."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metaclip_jax import files
from tests import waiting


def test_equal_objects_give_equal_bytes(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2], "a": "é"})
    files.write_json(tmp_path / "b.json", {"a": "é", "b": (1, 2)})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")
    assert files.read_json(tmp_path / "a.json") == {"a": "é", "b": [1, 2]}


def test_write_bytes_makes_folders_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    files.write_bytes(target, b"old")
    files.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["file"]


def test_a_published_file_can_be_read_by_others_as_any_file_can(tmp_path):
    files.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_block_that_raises_publishes_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"):
        with files.staged(tmp_path / "file") as local:
            local.write_bytes(b"ne")
            raise RuntimeError("half way")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_staged_file_lies_beside_its_final_name(tmp_path):
    with files.staged(tmp_path / "file") as local:
        assert local.parent == tmp_path
        assert local.name.startswith(files.TEMPORARY_PREFIX)
        local.write_bytes(b"data")
    assert not local.exists()


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json should be JSON"):
        files.read_json(tmp_path / "bad.json")


def test_a_folder_without_manifest_is_unfinished(tmp_path):
    assert files.finished(tmp_path, {}) is None
    assert files.finished(tmp_path / "missing", {}) is None


def test_a_folder_of_the_same_inputs_is_finished(tmp_path):
    files.write_manifest(tmp_path, inputs={"t": (1, 2), "seed": 0}, records=3)
    manifest = files.finished(tmp_path, {"seed": 0, "t": [1, 2]})
    assert manifest is not None
    assert manifest["records"] == 3
    assert manifest["version"] == files.version()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"config": {"t": 7}, "seed": 0}, "config.t: wanted 7, found 300"),
        ({"config": {"t": 300}}, 'seed: wanted "nothing", found 0'),
        ({"config": {"t": 300}, "seed": False}, "seed: wanted false, found 0"),
        ({"config": 1, "seed": 0}, "config: wanted 1, found {"),
    ],
)
def test_a_folder_of_another_run_is_refused_saying_what_differs(
    tmp_path, inputs, message
):
    files.write_manifest(tmp_path, inputs={"config": {"t": 300}, "seed": 0})
    with pytest.raises(ValueError, match=message) as error:
        files.finished(tmp_path, inputs)
    assert str(error.value).endswith("Choose another folder, or remove this one")


OUTPUTS = {
    "a dataset": {"config": {"seed": 0}, "source": [], "metadata": {"en": "f"}},
    "metadata": {"config": {"max_titles": 9}, "files": [[["a.warc.gz", 1]]]},
    "an export": {"form": "parquet", "shards": ["0f" * 32]},
    "embeddings": {"dataset": "0f" * 32, "model": "0e" * 32},
    "a training run": {"dataset": "0f" * 32, "tokenizer": "0d" * 32},
    "a crawl": {"start_url": "http://site.example"},
    "the output of another command": {"pictures": 9},
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("other", OUTPUTS)
def test_the_output_of_another_command_is_named_without_its_keys(tmp_path, name, other):
    files.write_manifest(tmp_path, inputs=OUTPUTS[other])
    if name == other:
        assert files.finished(tmp_path, OUTPUTS[name])
        return
    with pytest.raises(ValueError) as error:
        files.finished(tmp_path, OUTPUTS[name])
    assert str(error.value) == f"{tmp_path} holds {other}; choose another folder"


def test_of_long_lists_what_each_has_alone_is_shown(tmp_path):
    known = [["dump", f"file-{i}.xml", i] for i in range(1_000)]
    folder = tmp_path / "out"
    files.write_manifest(folder, inputs={"files": [*known, ["dump", "last.xml", 1]]})
    with pytest.raises(ValueError) as error:
        files.finished(folder, {"files": [["pageviews", "new.gz", 5], *known]})
    assert (
        'files: wanted [["pageviews", "new.gz", 5]], found [["dump", "last.xml", 1]]'
        in str(error.value)
    )


def test_differences_are_short_however_many_and_long(tmp_path):
    files.write_manifest(tmp_path, inputs={f"key{i}": "0f" * 32 for i in range(99)})
    with pytest.raises(ValueError) as error:
        files.finished(tmp_path, {f"key{i}": list(range(999)) for i in range(99)})
    text = str(error.value).removeprefix(str(tmp_path))
    assert 'found "0f0f0f0f…"; key1: ' in text and "; and 94 more. Choose" in text
    assert len(text) < 700


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / files.MANIFEST).write_text(json.dumps(["not", "ours"]))
    with pytest.raises(ValueError, match="should be a manifest of ours"):
        files.finished(tmp_path, {})


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    with files.lock(tmp_path):
        with pytest.raises(RuntimeError, match=f"written by process {os.getpid()} on"):
            with files.lock(tmp_path):
                pass
    with files.lock(tmp_path):  # and free again afterwards
        pass


def test_a_lock_dies_with_its_process_and_its_leftovers_go(tmp_path):
    held = tmp_path / "held"
    code = (
        "import signal, sys; from metaclip_jax import files\n"
        "with files.lock(sys.argv[1]):\n"
        "  with files.staged(sys.argv[1] + '/inner/file') as local:\n"
        "    local.write_bytes(b'part'); open(sys.argv[2], 'w').close()\n"
        "    signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path, held])
    try:
        waiting.until(held.exists, process)
        with pytest.raises(RuntimeError, match=f"process {process.pid} on"):
            with files.lock(tmp_path):
                pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(os.listdir(tmp_path / "inner")) == 1
    with files.lock(tmp_path):
        assert os.listdir(tmp_path / "inner") == []


def test_a_lock_leaves_no_file_whatever_ends_it(tmp_path):
    with files.lock(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError), files.lock(tmp_path):
        raise KeyError
    assert os.listdir(tmp_path) == []


def _lock_often(folder, times, together):
    together.wait()
    while times:
        try:
            with files.lock(folder):
                os.mkdir(f"{folder}/alone")  # raises where another one is inside
                os.rmdir(f"{folder}/alone")
                times -= 1
        except RuntimeError as error:
            assert "is being written by" in str(error)


def test_a_lock_that_is_removed_lets_no_second_one_in(tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = tmp_path, 100, context.Barrier(4)
    racing = [context.Process(target=_lock_often, args=arguments) for _ in range(4)]
    for process in racing:
        process.start()
    for process in racing:
        process.join()
        assert process.exitcode == 0
    assert os.listdir(tmp_path) == []


def test_temporary_files_of_another_lock_holder_are_left_alone(tmp_path):
    with files.lock(tmp_path / "inner"):
        (tmp_path / "inner" / ".tmp-x").write_bytes(b"")
        (tmp_path / ".tmp-y").mkdir()
        (tmp_path / ".tmp-y" / "file").write_bytes(b"")
        with files.lock(tmp_path):
            assert (tmp_path / "inner" / ".tmp-x").exists()
            assert not (tmp_path / ".tmp-y").exists()


def _write_often(target):
    for index in range(200):
        files.write_bytes(target, bytes([index]) * 100_000)


def test_a_reader_never_sees_half_a_file(tmp_path):
    target = tmp_path / "file"
    files.write_bytes(target, b"\0" * 100_000)
    writer = multiprocessing.get_context("spawn").Process(
        target=_write_often, args=(target,)
    )
    writer.start()
    while writer.is_alive():
        data = target.read_bytes()
        assert len(data) == 100_000
        assert len(set(data)) == 1
    assert writer.exitcode == 0


def test_parquet_is_read_whole_or_by_column(tmp_path):
    table = pa.table({"a": range(10_000), "b": ["x"] * 10_000, "c": [0.5] * 10_000})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1_000)
    assert files.read_parquet(tmp_path / "t.parquet").equals(table)
    found = files.read_parquet(tmp_path / "t.parquet", ["c", "a"])
    assert found.equals(table.select(["c", "a"]))
    with pytest.raises(ValueError, match=r"t.parquet should have .* lacks \['d'\]"):
        files.read_parquet(tmp_path / "t.parquet", ["a", "d"])
    (tmp_path / "other").write_bytes(b"no Parquet at all")
    with pytest.raises(ValueError, match="Parquet"):
        files.read_parquet(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        files.read_parquet(tmp_path / "none")


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(ValueError, match="got an empty path"):
        files.path("")
