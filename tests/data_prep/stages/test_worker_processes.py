"""Worker processes: their results, their errors, and one that is killed."""

import os
import signal

import apache_beam as beam
import pyarrow as pa
import pytest

from data_prep.stages import pipelines


def note(value, folder):
    """Notes the process in a folder; one value raises, another kills the process."""
    (folder / str(value)).write_text(str(os.getpid()))
    if value == 7:
        raise ValueError("a seven")
    if value == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return pa.RecordBatch.from_pydict({"value": [value]})


def work(values, folder):
    """Runs on two workers; returns the processes that had some of the values."""
    options = pipelines.with_workers(pipelines.options([]), "2", source_bytes=0)
    with pipelines.new(options) as pipeline:
        pieces = pipelines.start(pipeline, values)
        pieces | beam.Map(note, folder).with_output_types(pa.RecordBatch)
    return {path.read_text() for path in folder.iterdir()}


def test_workers_share_the_work_and_their_errors_end_the_pipeline(tmp_path):
    found = work(range(6), tmp_path)
    assert len(found) == 2 and str(os.getpid()) not in found
    with pytest.raises(RuntimeError, match="a seven"):
        work(range(8), tmp_path)


def test_a_killed_worker_is_one_error_that_says_how_to_go_on(tmp_path, capfd):
    with pytest.raises(RuntimeError, match=r"one ended with SIGKILL; .*continues"):
        work(range(10, 16), tmp_path)
    assert "Traceback" not in capfd.readouterr().err
