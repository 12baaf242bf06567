"""Sources on s3://, from a server that answers as S3 does (moto's)."""

import socket
import subprocess
import sys

import pytest

from data_prep.sources import kinds, warc
from metaclip_jax import files
from tests import waiting
from tests.data_prep import tiny_web
from tests.data_prep.sources.test_remote import spec_of


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A client of boto3 with the bucket "crawl"; fsspec finds the same server."""
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", f"-p{port}"]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        try:
            waiting.until(lambda: "Running on" in log.read_text(), server, pause=0.1)
            client = boto3.client("s3")
            client.create_bucket(Bucket="crawl")
            yield client
        finally:
            server.kill()
            server.wait()


def test_warc_files_are_read_as_on_the_disk(tmp_path, bucket):
    local = tmp_path / "1.warc.gz"
    tiny_web.write_warc(local, {f"http://a.example/{n}": "<img>" for n in range(50)})
    for name in ("warc/1.warc.gz", "warc/2.warc.gz"):
        bucket.upload_file(str(local), "crawl", name)
    bucket.put_object(Bucket="crawl", Key="warc.paths", Body=b"warc/2.warc.gz\n")
    both = [f"s3://crawl/warc/{n}.warc.gz" for n in (1, 2)]
    assert kinds.find("s3://crawl/warc/*.warc.gz", spec_of("warc")) == both
    assert kinds.find("s3://crawl/warc.paths", spec_of("warc")) == both[1:]
    sizes = [size for _, size in kinds.describe(both, spec_of("warc"))]
    assert sizes == 2 * [files.size(local)]
    wanted = list(warc.read_pages(str(local), max_page_bytes=1 << 20))
    assert len(wanted) == 50
    assert list(warc.read_pages(both[0], max_page_bytes=1 << 20)) == wanted


def test_a_missing_file_is_named(bucket):
    with pytest.raises(ValueError, match=r"got none for 's3://crawl/none/\*'"):
        kinds.find("s3://crawl/none/*", spec_of("warc"))


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(files.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wanted s3fs to read s3://a/b"):
        files.path("s3://a/b")
