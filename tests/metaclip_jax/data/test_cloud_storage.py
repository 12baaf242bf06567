"""Every refusal of Cloud Storage, over real HTTP: the bucket's name says which."""

import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent import futures

import pytest

from metaclip_jax.data import storage_errors
from tests import storage, waiting
from tests.metaclip_jax.cli.test_command import COMMANDS, ROOT

SAID = {
    401: "Anonymous caller does not have storage.objects.get access",
    403: "you@example.com does not have storage.objects.get access",
    404: "The specified bucket does not exist.",
    429: "The rate limit of the bucket is exceeded.",
    503: "Backend error",
}
GOT = {
    "401": ("got no valid login", "gcloud auth application-default login"),
    "403": ("got no permission", "grant it to this account"),
    "404": ("got no such bucket", "correct the path"),
    "quota": ("got too many requests", "fewer workers"),
    "429": ("got too many requests", "fewer workers"),
    "503": ("got status 503 of the service", "later"),
}
# What is done to gs://BUCKET/folder/file.
DONE = {
    "exists": "p.exists()",
    "is_dir": "p.is_dir()",
    "list": "list(p.parent.iterdir())",
    "glob": "list(p.parent.glob('*'))",
    "read": "p.read_bytes()",
    "size": "files.size(p)",
    "json": "files.read_json(p)",
    "parquet": "files.read_parquet(p)",
    "write": "files.write_bytes(p, b'1')",
    "finished": "files.finished(p, {})",
    "claim": "files.claim(p, {})",
    "copy": "files.local_copy(p).__enter__()",
    "count": "record_files.count_records(str(p))",
    "open": "records.open_dataset(str(p.parent))",
    "record": "records.read("
    "records.Dataset(str(p.parent), 'n', (str(p),), (3,), {}), [0], ahead=True)",
    "steps": "checkpoint.steps(str(p.parent))",
    "meta": "checkpoint.read_meta(str(p.parent), 5)",
}
SCRIPT = """
import json, sys
from metaclip_jax import files
from metaclip_jax.data import record_files, records, storage_errors
from metaclip_jax.training import checkpoint
for bucket in sys.argv[2:]:
    p = files.path(f"gs://{bucket}/folder/file")
    for name, code in json.loads(sys.argv[1]).items():
        try:
            said = repr(eval(code))
        except storage_errors.StorageError as error:
            said = f"StorageError: {error}"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([bucket, name, said]))
"""


class Refusal(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        (bucket,) = (name for name in GOT if f"/b/{name}" in self.path)
        status = 403 if bucket == "quota" else int(bucket)
        said = "Quota exceeded for your project" if bucket == "quota" else SAID[status]
        body = json.dumps({"error": {"code": status, "message": said}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def refused():
    """The environment in which gs:// is a server that refuses all."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        names = ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "STORAGE_EMULATOR_HOST")
        names += ("TENSORSTORE_GCS_HTTP_URL",)
        url = f"http://127.0.0.1:{server.server_port}"
        yield {**os.environ, **dict.fromkeys(names, url)}
        server.shutdown()


def outcomes(environment, done, *buckets):
    """What each of `done` said, by bucket and name."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(done), *buckets],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert run.returncode == 0, run.stderr
    rows = map(json.loads, run.stdout.splitlines())
    return {(bucket, name): said for bucket, name, said in rows}


def assert_named(bucket, said):
    got, cure = GOT[bucket]
    assert said.startswith(f"StorageError: wanted gs://{bucket}"), said
    assert got in said and cure in said


def test_a_refusal_is_never_absence_and_never_damage(refused):
    found = outcomes(refused, DONE, "401", "403", "404")
    assert len(found) == 3 * len(DONE)
    for (bucket, _), said in found.items():
        assert_named(bucket, said)
        assert "remove" not in said


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["429", "503", "quota"])
def test_what_may_pass_is_tried_again_for_half_a_minute(refused, bucket):
    (said,) = outcomes(refused, {"read": DONE["read"]}, bucket).values()
    assert_named(bucket, said)


@pytest.mark.slow
def test_a_network_that_is_down_is_named(refused):
    names = [name for name in refused if refused[name].startswith("http://127.0.0.1")]
    nobody = {**refused, **dict.fromkeys(names, "http://127.0.0.1:9")}
    (said,) = outcomes(nobody, {"read": DONE["read"]}, "403").values()
    assert "wanted gs://403/folder/file, got no connection: " in said
    assert "network" in said


def test_a_missing_object_of_a_bucket_is_missing(cloud_storage):
    with cloud_storage() as storage:
        reads = {name: DONE[name] for name in ("exists", "is_dir", "count", "read")}
        found = outcomes(storage.environment, reads, "bucket1")
        assert found.pop(("bucket1", "read")).startswith("FileNotFoundError")
        assert set(found.values()) == {"False", "0"}
        (said,) = outcomes(
            storage.environment, {"glob": DONE["glob"]}, "bukcet1"
        ).values()
    assert "wanted gs://bukcet1, got no such bucket" in said


SILENT = """
import os, tensorstore
from metaclip_jax import files
from metaclip_jax.data import cloud_storage

assert 0 < cloud_storage.CONNECT_SECONDS <= cloud_storage.SILENT_SECONDS <= 60
cloud_storage.SILENT_SECONDS = 0.5
files.write_bytes("gs://bucket1/one", b"1")
for _ in range(2):
    assert files.path("gs://bucket1/one").read_bytes() == b"1"
with files.staged("gs://bucket1/folder/three") as local:
    local.write_bytes(b"123")
with files.local_copy("gs://bucket1/folder/three") as local:
    assert local.read_bytes() == b"123"
assert not files.path("gs://bucket1/folder/four").exists()
assert files.path("gs://bucket1/folder").is_dir()
assert 0 < int(os.environ.pop("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS")) <= 60
os.environ["TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS"] = "1"
checkpoint = {"driver": "gcs", "bucket": "bucket1", "path": "folder/"}
tensorstore.KvStore.open(checkpoint).result()["two"] = b"2"
"""


def test_a_connection_that_says_nothing_is_given_up_and_made_anew(cloud_storage):
    """Of files and of checkpoints; array_record does so by itself."""
    with (
        cloud_storage() as server,
        storage.proxy(
            server.url, share=0.5, seed=1, kinds=["stall"], stall_seconds=1e6
        ) as proxy,
    ):
        run = subprocess.run(
            [sys.executable, "-c", SILENT],
            env=proxy.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=waiting.SECONDS,
        )
    assert run.returncode == 0, run.stderr
    stalled = {(method, path) for method, path, fault in proxy.asked if fault}
    for method, name in (("POST", "multipart"), ("GET", "one"), ("POST", "folder")):
        assert any(method == m and name in path for m, path in stalled), stalled
    # As few as can be: an upload or, in all other cases, a question and an answer.
    done = [(method, path) for method, path, fault in proxy.asked if not fault]
    assert sum("uploadType=multipart" in path for _, path in done) == 2
    assert sum(method == "GET" and "/o/one" in path for method, path in done) == 4
    assert sum("o/folder%2Fthree" in path for _, path in done) == 3
    assert sum("folder/four" in path or "%2Ffour" in path for _, path in done) == 2


def test_an_error_goes_through_another_process():
    error = storage_errors.StorageError("wanted gs://b, got no permission")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.errno) == (str(error), error.errno)


@pytest.mark.parametrize("bucket", ["401", "403"])
def test_a_refusal_of_the_library_of_checkpoints_is_known(refused, bucket):
    code = """
import sys, tensorstore
from metaclip_jax.data import storage_errors
array = {"driver": "zarr", "kvstore": f"gs://{sys.argv[1]}/array/"}
try:
    tensorstore.open(array).result()
except Exception as error:
    print(storage_errors.refusal(error), error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, bucket],
        env=refused,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert run.stdout.startswith("PERMISSION_DENIED "), run.stdout + run.stderr


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("PERMISSION_DENIED: Error reading gs://b/o", "PERMISSION_DENIED"),
        ("INTERNAL; UNAVAILABLE: connection reset", "UNAVAILABLE"),
        ("DATA_LOSS: checksum mismatch", ""),
        ("NOT_FOUND: gs://b/o", ""),
    ],
)
def test_the_status_of_a_library_tells_a_refusal(text, status):
    assert storage_errors.refusal(RuntimeError(text)) == status


GS = "gs://403"
# Of each command a line that needs a file of the bucket first.
LINES = {
    "data_prep.build_metadata": f"--config=configs/metadata.py --warc={GS}/w.gz"
    " --output=metadata",
    "data_prep.curate": "--config=configs/curate.py --config.matching.mode=none"
    f" --config.source.paths={GS}/*.warc.gz --workdir=work --output=dataset",
    "data_prep.data_card": f"--datasets={GS}/d,{GS}/e --output=card",
    "data_prep.explain": f"--counts={GS}/matches --metadata={GS}/metadata --t=20",
    "data_prep.export": f"--format=parquet --output=export {GS}/d",
    "data_prep.report": f"--dataset={GS}/d --output=report.html",
    "data_prep.verify": f"{GS}/d",
    "metaclip_jax.convert": f"--model={GS}/m --to=huggingface --output=m",
    "metaclip_jax.data.inspect": f"--config=configs/metaclip.py --config.dataset={GS}/d"
    f" --config.tokenizer={GS}/t.json",
    "metaclip_jax.data.tokenizer": f"--dataset={GS}/d --vocab_size=600 --output=t.json",
    "metaclip_jax.embed": f"--model={GS}/m --dataset={GS}/d --output=e",
    "metaclip_jax.evaluate": f"--workdir={GS}/run",
    "metaclip_jax.predict": f"--model={GS}/m --image=x.png --labels=a,b",
    "metaclip_jax.runs": f"{GS}/runs",
    "metaclip_jax.search": f"--model={GS}/m --embeddings={GS}/e --dataset={GS}/d"
    " --query=cat",
    "metaclip_jax.train": f"--config=configs/metaclip.py --config.dataset={GS}/d"
    f" --config.tokenizer={GS}/t.json --workdir={GS}/run",
}
NEED_NONE = {"metaclip_jax.patterns", "metaclip_jax.plan"}


def test_each_command_that_reads_files_has_a_line():
    ours = {name for name in COMMANDS if not name.startswith("examples.")}
    assert LINES.keys() == ours - NEED_NONE


@pytest.mark.parametrize(
    "command",
    [
        name
        if name in ("data_prep.verify", "data_prep.curate")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in LINES
    ],
)
def test_a_command_says_which_object_it_may_not_read(refused, tmp_path, command):
    said = refusal_of(command, "403", refused, tmp_path)
    assert "got no permission: you@example.com does not have" in said


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["401", "404", "429", "quota", "offline"])
def test_all_commands_name_what_they_got_and_the_cure(refused, tmp_path, bucket):
    """Side by side, as some are tried again for half a minute."""
    got, cure = GOT.get(bucket, ("got no connection", "check this machine's network"))
    if bucket == "offline":
        url = refused["STORAGE_EMULATOR_HOST"]
        refused = {
            k: "http://127.0.0.1:9" if v == url else v for k, v in refused.items()
        }

    def said(command):
        folder = tmp_path / command
        folder.mkdir()
        return refusal_of(command, bucket, refused, folder)

    with futures.ThreadPoolExecutor(4) as pool:
        lines = list(pool.map(said, LINES))
    assert [line for line in lines if got not in line or cure not in line] == []


def refusal_of(command, bucket, environment, folder):
    """The one line of an error of a command that needs a file of a bucket."""
    (folder / "configs").symlink_to(ROOT / "configs")
    flags = LINES[command].replace(GS, f"gs://{bucket}").split()
    run = subprocess.run(
        [sys.executable, "-m", command, *flags],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=waiting.SECONDS,
    )
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"Error: wanted gs://{bucket}"), run.stderr[-2000:]
    assert "Traceback" not in run.stderr
    return last
