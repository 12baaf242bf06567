"""Downloads that fail: too many are an error, and what may succeed is tried again."""

import hashlib
import re
from collections import Counter
from contextlib import contextmanager

import pyarrow as pa
import pytest

from data_prep import config as config_lib
from data_prep import curate
from data_prep.images import failures
from metaclip_jax import files
from metaclip_jax.data import records
from tests.data_prep import tiny_web
from tests.data_prep.raw_server import answer, serving

N = 120
ALTS = [(f"/{n}.jpg", f"a cat and dog number {n}") for n in range(N)]
PICTURES = [tiny_web.picture(n, side=40) for n in range(N)]
GONE = answer(b"", b"404 Not Found", b"")
BUSY = answer(b"", b"503 Busy", b"")
PRIVATE = answer(b"Location: http://127.0.0.1/\r\n", b"302 Found", b"")
NO_AI = answer(b"X-Robots-Tag: noai\r\n")
# By the number of the image; these never succeed, on no run.
LOST = {
    **dict.fromkeys(range(0, 6), GONE),
    **dict.fromkeys(range(6, 9), NO_AI),
    **dict.fromkeys(range(9, 12), answer(body=b"no image")),
}
# And these do not at first.
ILL = {
    **dict.fromkeys(range(20, 30), BUSY),
    **dict.fromkeys(range(30, 35), answer(b"", b"403 Forbidden", b"")),
    **dict.fromkeys(range(35, 40), answer(b"", b"429 Slow", b"")),
    **dict.fromkeys(range(40, 45), answer(body=PICTURES[0])[:-9]),
    **dict.fromkeys(range(45, 50), b""),
    **dict.fromkeys(range(50, 55), b"no HTTP\r\n\r\n"),
    **dict.fromkeys(range(55, 58), PRIVATE),
}


class Web:
    """A server of images with some faulty answers, which counts requests."""

    def __init__(self):
        self.ill = {}
        self.asked = Counter()

    def __call__(self, target):
        if target == b"/robots.txt":
            return answer(b"", b"404 Not Found", b"")
        number = int(re.search(rb"\d+", target)[0])
        self.asked[number] += 1
        replies = LOST | self.ill
        return replies[number] if number in replies else answer(body=PICTURES[number])


@contextmanager
def serving_web():
    web = Web()
    with serving(web) as (port, _):
        yield web, port


def configured(folder, port):
    flags = tiny_web.write(folder, ALTS)
    config = config_lib.curate()
    config.name = "tiny"
    config.source.paths = flags["config.source.paths"]
    config.metadata = flags["config.metadata"]
    config.partitions = 3
    config.download.retries = 0
    config.download.timeout_seconds = 60.0  # loads of time on a busy machine
    config.download.host_map = f"{tiny_web.IMAGES}=127.0.0.1:{port}"
    return config


def run(config, folder, **options):
    """Curates in this process, as the command does."""
    plan = curate.plan(config, f"{folder}/work", f"{folder}/dataset", [])
    curate.run_stages(plan, **options)


def content(folder):
    dataset = folder / "dataset"
    return {path.name: path.read_bytes() for path in sorted(dataset.iterdir())}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The files of the dataset that comes of servers without faults."""
    folder = tmp_path_factory.mktemp("healthy")
    with serving_web() as (_, port):
        run(configured(folder, port), folder)
    assert files.read_json(folder / "dataset/manifest.json")["records"] == N - len(LOST)
    return content(folder)


def test_a_dead_server_is_an_error_and_the_same_command_mends_it(healthy, tmp_path):
    with serving(None) as (port, _):
        pass  # nobody listens there any more
    config = configured(tmp_path, port)
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            run(config, tmp_path)
        assert "wanted at most 50% of the images to fail" in str(error.value)
        assert (
            f"{N} of {N} images could not be downloaded, most with connection ({N}): "
            "servers could not be reached"
        ) in str(error.value)
        assert not list(tmp_path.rglob("dataset/*"))
        assert not (tmp_path / "work/images/manifest.json").exists()
    with serving_web() as (_, port):
        run(configured(tmp_path, port), tmp_path)
    assert content(tmp_path) == healthy


def test_beside_the_dataset_is_a_row_of_each_address_that_was_asked_for(tmp_path):
    """Also where answers differ in every way, and images repeat."""
    with serving_web() as (web, port):
        repeats = {n: answer(body=PICTURES[100]) for n in range(101, 110)}
        web.ill = ILL | repeats
        config = configured(tmp_path, port)
        config.balance.t, config.balance.slack = 50, 1.2
        run(config, tmp_path)
    dataset = records.open_dataset(str(tmp_path / "dataset"))
    found = map(records.decode, records.read(dataset, range(len(dataset))))
    inside = {record.image_url for record in found}
    rows = pa.concat_tables(
        files.read_parquet(path) for path in (tmp_path / "dataset").glob("urls-*")
    ).to_pylist()
    numbers = {int(re.search(r"(\d+)\.jpg", row["url"])[1]): row for row in rows}
    assert len(numbers) == len(rows)
    assert numbers.keys() == web.asked.keys() and len(rows) < N  # others were thinned
    assert {row["url"] for row in rows if row["in_dataset"]} == inside
    codes = {"ok": 200, "repeated_image": 200, "not_an_image": 200, "opted_out": 200}
    codes |= {"http_403": 403, "http_404": 404, "http_429": 429, "http_5xx": 503}
    codes |= dict.fromkeys(("truncated_body", "bad_http", "private_address"))
    codes["connection"] = None
    assert codes.keys() == {row["status"] for row in rows}
    for number, row in numbers.items():
        assert row["http_status"] == codes[row["status"]]
        body = PICTURES[100 if number in repeats else number]
        if row["status"] in ("ok", "repeated_image"):
            assert row["body_sha256"] == hashlib.sha256(body).hexdigest()
            assert row["bytes"] == len(body)
        elif row["status"] != "not_an_image":
            assert (row["bytes"], row["body_sha256"]) == (None, None)
        if row["status"] == "repeated_image":
            (kept,) = (r for r in rows if r["image_id"] == row["kept_as"])
            assert kept["body_sha256"] == row["body_sha256"]


def test_a_larger_share_goes_on_without_the_images(tmp_path):
    with serving_web() as (web, port):
        web.ill = dict.fromkeys(range(N - 80, N), GONE)
        config = configured(tmp_path, port)
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=r"86 of 120 .* http_404 \(86\): the"
            ):
                run(config, tmp_path)
        assert set(web.asked.values()) == {1}  # what is gone is not asked for again
        config.download.max_failed_share = 0.75
        run(config, tmp_path, stop_after="download")
    assert (tmp_path / "work/images/manifest.json").exists()


def test_failed_downloads_are_tried_again_when_asked_for(healthy, tmp_path):
    with serving_web() as (web, port):

        def run_asks(**options):
            web.asked.clear()
            run(config, tmp_path, **options)
            return set(web.asked)

        config = configured(tmp_path, port)
        web.ill = ILL
        run(config, tmp_path, stop_after="download")
        assert run_asks() == set()
        before = content(tmp_path)
        assert before.keys() == healthy.keys()

        web.ill = dict(list(ILL.items())[::2])  # half are well again
        assert run_asks(stop_after="download", retry_failed=True) == set(ILL)
        assert not (tmp_path / "dataset/manifest.json").exists()
        assert run_asks() == set()
        assert content(tmp_path) not in (before, healthy)

        still_ill, web.ill = set(web.ill), {}
        assert run_asks(retry_failed=True) == still_ill
        assert content(tmp_path) == healthy
        assert run_asks(retry_failed=True) == set()  # the rest will not get better
        assert content(tmp_path) == healthy


def test_a_retry_in_a_folder_of_another_run_removes_nothing(tmp_path):
    config = configured(tmp_path, 1)
    shard = tmp_path / "dataset/tiny-train.array_record-00000-of-00003"
    files.write_json(shard.parent / "unfinished.json", {"inputs": {"config": 1}})
    files.write_bytes(shard, b"of another run")
    with pytest.raises(ValueError, match="unfinished output of another run"):
        run(config, tmp_path, retry_failed=True)
    assert shard.exists()


@pytest.mark.parametrize(
    ("found", "share", "wrong"),
    [
        ({"ok": 50, "dns": 50}, 0.5, False),
        ({"ok": 49, "dns": 51}, 0.5, True),
        ({"ok": 49, "dns": 30, "http_404": 21}, 0.5, True),
        ({"ok": 49, "opted_out": 51}, 0.5, False),
        ({"ok": 20, "opted_out": 30, "dns": 50}, 0.5, False),
        ({"dns": 99}, 0.5, False),
        ({"dns": 100}, 0.5, True),
        ({"dns": 100}, 1.0, False),
        ({"ok": 99, "dns": 1}, 0.0, True),
        ({"ok": 100}, 0.0, False),
        ({}, 0.0, False),
    ],
)
def test_more_than_the_share_of_a_hundred_images_is_too_many(found, share, wrong):
    assert failures.too_many(found, share) == wrong


def test_a_part_warns_once_and_early(caplog):
    watch = failures.Watch("part-0", 0.5)
    for n in range(1_000):
        watch("private_address" if n % 10 else "http_404")
        assert len(caplog.records) == (n >= 99)
    (record,) = caplog.records
    assert record.getMessage() == (
        "part-0: so far, 100 of 100 images could not be downloaded, most with "
        "private_address (90): hosts have addresses inside a network, where no URL "
        "of a page may lead; give hosts that you serve yourself in "
        "config.download.host_map"
    )
