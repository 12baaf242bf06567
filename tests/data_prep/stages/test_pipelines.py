"""How a run is divided to fit the memory and the cores of a machine."""

import os
import re
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.runners.portability.fn_api_runner import fn_runner

from data_prep import schema
from data_prep.stages import pipelines, sums


def workers(asked, source_bytes, *arguments):
    options = pipelines.options(arguments)
    return pipelines.worker_count(
        pipelines.with_workers(options, asked, source_bytes=source_bytes)
    )


def test_auto_starts_no_workers_for_what_one_has_done_sooner():
    assert workers("auto", 1e6) == 1
    assert workers("auto", 1e12) == len(os.sched_getaffinity(0))
    assert workers("3", 1e6) == 3


def test_options_of_beam_are_left_as_they_are():
    given = ("--runner=FnApiRunner", "--direct_num_workers=5")
    assert workers("auto", 1e12, *given) == 5
    with pytest.raises(ValueError, match="direct_num_workers"):
        workers("2", 1e12, *given)
    options = pipelines.options(["--runner=PrismRunner"])
    pipelines.with_workers(options, "auto", source_bytes=1e12)
    assert options.view_as(DirectOptions).direct_num_workers == 1
    with pytest.raises(ValueError, match="--workers=2 with FnApiRunner"):
        pipelines.with_workers(options, "2", source_bytes=1e12)


def test_pipelines_are_waited_for():
    with pytest.raises(ValueError, match="reads what the last one wrote"):
        pipelines.options(["--no_wait_until_finish"])


def test_only_dataflow_refuses_files_of_this_machine():
    places = [("--workdir", "gs://bucket/work"), ("--output", "/dataset")]
    dataflow = pipelines.options(["--runner=DataflowRunner"])
    with pytest.raises(ValueError, match="wanted --output .* got /dataset"):
        pipelines.refuse_local(dataflow, places)
    pipelines.refuse_local(dataflow, places[:1])
    pipelines.refuse_local(pipelines.options(["--runner=PrismRunner"]), places)


@pytest.mark.parametrize("partitions", [1, 2, 7, 100])
@pytest.mark.parametrize("gib", [0, 1, 30])
@pytest.mark.parametrize("count", [1, 4])
def test_ranges_cover_the_partitions_and_fit_the_memory(partitions, gib, count):
    options = pipelines.with_workers(pipelines.options([]), str(count), source_bytes=0)
    found = pipelines.ranges(
        partitions, size=gib << 30, memory_gib=3.0, options=options
    )
    covered = [i for start, stop in found for i in range(start, stop)]
    assert covered == list(range(partitions))
    assert len(found) >= min(count, partitions)
    # Three times the rows of a range per worker, up to rounding to a partition.
    widest = max(stop - start for start, stop in found)
    assert (widest - 1) / partitions * 3 * gib * count <= 3.0


def test_the_least_memory_gives_a_range_to_each_partition():
    options = pipelines.with_workers(pipelines.options([]), "1", source_bytes=0)
    found = pipelines.ranges(3, size=1 << 30, memory_gib=1e-30, options=options)
    assert found == [(i, i + 1) for i in range(3)]


def test_no_stage_is_fused_with_the_list_of_the_work():
    """Else one worker of a cluster would do all of it."""
    pipeline = beam.Pipeline(options=pipelines.options([]))
    work = pipelines.start(pipeline, range(3))
    work | "stage" >> beam.ParDo(beam.DoFn()).with_output_types(pa.RecordBatch)
    every = pipeline.to_runner_api().components.transforms.values()
    found = {each.unique_name: each for each in every}
    assert found["Reshuffle"].spec.urn == common_urns.composites.RESHUFFLE.urn
    assert list(found["stage"].inputs.values()) == list(
        found["Reshuffle"].outputs.values()
    )


def test_the_stage_that_makes_rows_sums_them():
    """Else all of them would pass through the runner."""
    pipeline = beam.Pipeline(options=pipelines.options([]))
    work = pipelines.start(pipeline, range(3))
    rows = work | "stage" >> beam.ParDo(beam.DoFn()).with_output_types(pa.RecordBatch)
    sums.write_sum(rows, schema.COUNTS, "unused", "counts.parquet")
    _, fused = fn_runner.FnApiRunner().create_stages(pipeline.to_runner_api())
    (made,) = [
        {each.spec.urn for each in stage.transforms}
        for stage in fused
        if any(each.unique_name == "stage" for each in stage.transforms)
    ]
    assert common_urns.combine_components.COMBINE_PER_KEY_PRECOMBINE.urn in made


def test_the_page_on_clusters_has_options_and_the_image_of_the_pinned_beam():
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs/cluster.md").read_text()
    (pinned,) = re.findall(
        r"^apache-beam==(.*)$", (root / "constraints.txt").read_text(), re.MULTILINE
    )
    assert re.findall(r"beam_python3.11_sdk:(.*)", page) == [pinned]
    commands = re.findall(r"-- ((?:\\\n|[^\n#])*)", "".join(page.split("```text")[1:]))
    assert len(commands) == 4
    for command in commands:
        words = re.findall(r"--(\w+)=(\S+)", command)
        given = [f"--{name}={re.sub('WORKERS', '4', value)}" for name, value in words]
        kept = PipelineOptions(given).get_all_options(drop_default=True)
        assert {name for name, _ in words} <= kept.keys()
