"""What Dataflow would run: the pipeline that its template has, without the service."""

import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2 as api

from data_prep import curate
from tests.data_prep import tiny_web
from tests.data_prep.test_curate_failures import planned

pytest.importorskip(
    "google.cloud.dataflow", reason="needs google-cloud-dataflow-client"
)

ROOT = Path(__file__).resolve().parents[2]
ALTS = [(f"/{n}.jpg", f"a red cat and dog number {n}") for n in range(30)]
IMAGE = "registry.example/metaclip:1"

# Makes the template, then runs the pipeline that it names, in this process.
RUN = r"""
import sys

from absl import app
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as api
from apache_beam.runners.portability.fn_api_runner import fn_runner

from data_prep import curate
from metaclip_jax import files

curate.define_flags()
try:
    app.run(curate.main)
except SystemExit as end:
    assert not end.code, end.code
assert not list(files.path("gs://bucket1/work/matched").glob("part-*"))
(found,) = files.path("gs://bucket1/staging").glob("*/pipeline.pb")
pipeline = api.Pipeline.FromString(found.read_bytes())
for environment in pipeline.components.environments.values():
    environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
options = PipelineOptions([])
fn_runner.FnApiRunner().run_via_runner_api(pipeline, options).wait_until_finish()
"""


def test_the_pipeline_of_a_template_writes_the_same_parts(tmp_path, cloud_storage):
    flags = tiny_web.write(tmp_path / "web", ALTS, warcs=3) | {
        "config.download.user_agent": "a test, me@my.example"
    }
    here = planned(flags, tmp_path)
    curate.run_stages(here, stop_after="match")
    with cloud_storage(tmp_path / "buckets") as storage:
        storage.upload(*(tmp_path / "web").glob("pages-*"))
        places = {
            "config.source.paths": "gs://bucket1/pages-*.warc.gz",
            "workdir": "gs://bucket1/work",
            "output": "gs://bucket1/dataset",
        }
        engine = [
            *("--runner=DataflowRunner", "--project=some-project", "--no_auth"),
            *("--region=us-central1", "--temp_location=gs://bucket1/staging"),
            f"--sdk_container_image={IMAGE}",
            "--template_location=gs://bucket1/template/some.json",
        ]
        named = [f"--{name}={value}" for name, value in (flags | places).items()]
        done = subprocess.run(
            [sys.executable, "-c", RUN, *named, "--", *engine],
            cwd=ROOT,
            env=storage.environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "built, and not run: --template_location" in done.stderr
    bucket = tmp_path / "buckets/bucket1"
    assert (bucket / "template/some.json").exists()
    (staged,) = bucket.glob("staging/*/pipeline.pb")
    components = api.Pipeline.FromString(staged.read_bytes()).components
    (environment,) = components.environments.values()
    docker = api.DockerPayload.FromString(environment.payload)
    assert docker.container_image == IMAGE
    parts = [f"part-0000{n}-of-00003.parquet" for n in range(3)]
    for name in (*parts, "flow.parquet", "sizes.parquet"):
        made = (bucket / "work/matched" / name).read_bytes()
        assert made == (tmp_path / "work/matched" / name).read_bytes(), name
