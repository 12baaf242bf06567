"""Matches by source, then by image: however the work is cut, the bytes are the same."""

import glob
import hashlib
import json

import pyarrow as pa
import pytest

from data_prep import curate
from data_prep.sources import kinds
from data_prep.stages import matches, parts
from metaclip_jax import files
from metaclip_jax.data import records
from tests.data_prep import tiny_web

WARCS, PARTITIONS = 5, 3
# Every image on several pages, some with the same text, some with the bytes of others.
ALTS = [(f"/{n % 17}.jpg", f"a red cat and dog number {n % 23}") for n in range(90)]
ALTS += [("/1.jpg", "a zebra"), ("/missing.jpg", "a dog"), ("/2.jpg", "a cat")] * 2
BODIES = {f"/{n}.jpg": tiny_web.picture(n % 13) for n in range(17)}
# Of the first version of these stages, which passed all rows through a GroupByKey.
TEXTS = "c6d6bb412daef1c7"
FUNNEL = "73370361acff7af7"


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    flags = tiny_web.write(folder, ALTS, warcs=WARCS)
    with tiny_web.serve(BODIES) as host_map:
        yield flags | {"config.download.host_map": host_map}


def planned(web, folder, **overrides):
    values = {"partitions": PARTITIONS, "balance.t": 20} | overrides
    return tiny_web.plan_flags(web, folder, values)


def content(run):
    root = files.path(run.output)
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture(scope="module")
def straight(web, tmp_path_factory):
    run = planned(web, tmp_path_factory.mktemp("straight"))
    curate.run_stages(run)
    return run


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def test_the_dataset_has_its_golden_digests(straight):
    dataset = records.open_dataset(straight.output)
    raw = map(records.decode, records.read(dataset, range(len(dataset))))
    fields = ("image_id", "image_url", "page_url", "texts", "text_sources", "languages")
    rows = [
        [getattr(each, name) for name in fields] + [each.entry_ids.tolist()]
        for each in raw
    ]
    assert digest(rows)[:16] == TEXTS
    assert digest(dataset.data_card["funnel"])[:16] == FUNNEL


@pytest.mark.parametrize("sources_per_part", [2, 9])
@pytest.mark.parametrize("memory_gib", [0.0, 1e-9])
def test_sources_of_a_part_and_memory_change_no_byte(
    web, straight, tmp_path, sources_per_part, memory_gib
):
    cut = {"sources_per_part": sources_per_part, "memory_gib": memory_gib}
    run = planned(web, tmp_path, **cut)
    curate.run_stages(run)
    assert content(run) == content(straight)


def test_the_order_of_the_sources_changes_no_byte(web, straight, tmp_path):
    flags = tiny_web.write(tmp_path / "web", ALTS, warcs=WARCS)
    found = sorted((tmp_path / "web").glob("*.warc.gz"))
    for i, path in enumerate(found):
        path.rename(path.with_name(f"turned-{WARCS - i}.warc.gz"))
    turned = {"source.paths": f"{tmp_path}/web/turned-*.warc.gz"}
    run = planned(web | flags, tmp_path, **turned)
    run.config.download.host_map = web["config.download.host_map"]
    curate.run_stages(run)
    before = content(straight)
    assert {k: v for k, v in content(run).items() if k != files.MANIFEST} == {
        k: v for k, v in before.items() if k != files.MANIFEST
    }


def test_a_finished_part_is_not_read_again(web, straight, tmp_path, monkeypatch):
    opened, finished = [], []
    read, publish = kinds.read, files.publish

    def noting(path, *args):
        opened.append(path)
        return read(path, *args)

    def publish_and_fail(local, final):
        publish(local, final)
        if "/matched/part" in str(final) and final.name not in finished:
            finished.append(final.name)
            raise OSError("the end")

    monkeypatch.setattr(kinds, "read", noting)
    monkeypatch.setattr(files, "publish", publish_and_fail)
    run = planned(web, tmp_path)
    for _ in range(WARCS):
        with pytest.raises(OSError, match="the end"):
            curate.run_stages(run)
    curate.run_stages(run)
    assert sorted(opened) == sorted(glob.glob(web["config.source.paths"]))
    assert len(finished) == WARCS
    assert content(run) == content(straight)


def test_rows_of_many_parts_are_gathered_together(straight):
    """Else the memory of a range would grow with the number of sources."""
    matched = f"{straight.workdir}/matched"
    gathering = matches.Gathering(
        parts.Sorted(matched, WARCS, PARTITIONS),
        **{"folder": "unused", "seed": 0, "rule": "v1", "sample_images": 0},
    )
    (rows,) = gathering.read(1, PARTITIONS)
    every = [parts.read(matched, parts.name(i, WARCS)) for i in range(WARCS)]
    ids = sorted(pa.concat_tables(every)["image_id"].to_pylist())
    first = parts.first_id(1, PARTITIONS)
    assert sorted(rows["image_id"].to_pylist()) == [i for i in ids if i >= first]


def test_other_partitions_are_gathered_without_reading_the_source(
    web, straight, tmp_path, monkeypatch
):
    run = planned(web, tmp_path)
    curate.run_stages(run, stop_after="match")
    monkeypatch.setattr(kinds, "read", None)
    for name in ("matches",):
        for path in (tmp_path / "work" / name).iterdir():
            path.unlink()
    run = planned(web, tmp_path, partitions=2)
    curate.run_stages(run, stop_after="match")
    found = [parts.name(i, 2) for i in range(2)]
    assert all((tmp_path / "work/matches" / name).exists() for name in found)
