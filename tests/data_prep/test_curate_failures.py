"""A source or partition that fails is lost alone: everything else is finished."""

import io
from pathlib import Path

import pytest

from data_prep import curate, language
from data_prep.sources import kinds
from data_prep.stages import attempts
from metaclip_jax import files
from metaclip_jax.data import parquet_headers
from tests.conftest import server_program
from tests.data_prep import tiny_web

PARTITIONS = 3
LONG = "of a very long description in many words"  # so that its language is identified
ALTS = [(f"/{n}.jpg", f"a red cat and dog number {n} {LONG}") for n in range(24)]
WITHOUT = [pair for n, pair in enumerate(ALTS) if n % 3 != 1]
BODIES = {path: tiny_web.picture(n) for n, (path, _) in enumerate(ALTS)}
POISON = {path for path, _ in ALTS} - {path for path, _ in WITHOUT}


def identifier():
    """A language identifier with a fault: texts with a fish make it fail."""
    identify = language.Lid176()

    def answer(texts, /, *, expected):
        if any("fish" in text for text in texts):
            raise ValueError("a fish")
        return identify(texts, expected=expected)

    return answer


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """Flags for three files, the second of which fails, and for the two others."""
    place = tmp_path_factory.mktemp("web")
    alts = [(p, f"{alt} of fish" if p in POISON else alt) for p, alt in ALTS]
    common = {"config.language.identifier": f"{__name__}:identifier"}
    with tiny_web.serve(BODIES) as common["config.download.host_map"]:
        ill = tiny_web.write(place / "ill", alts, warcs=3) | common
        well = tiny_web.write(place / "well", alts, warcs=3) | common
        (place / "well/pages-1.warc.gz").unlink()
        yield {"ill": ill, "well": well}


def planned(flags, folder, *arguments, workers="1", most=0, **overrides):
    values = {"partitions": PARTITIONS} | overrides
    options = {"workers": workers, "max_failed_sources": most}
    return tiny_web.plan_flags(flags, folder, values, *arguments, **options)


def shards(run):
    found = files.path(run.output).iterdir()
    names = ("array_record", "entries", "counts")
    return {p.name: p.read_bytes() for p in found if any(n in p.name for n in names)}


@pytest.fixture(scope="module")
def without(web, tmp_path_factory):
    """The dataset without the file that fails."""
    run = planned(web["well"], tmp_path_factory.mktemp("without"))
    curate.run_stages(run)
    return shards(run)


@pytest.mark.parametrize("engine", ["one process", "two workers", "prism"])
def test_a_source_that_fails_is_lost_alone(web, without, tmp_path, engine):
    arguments = []
    if engine == "prism":
        location = server_program("prism")
        arguments = ["--runner=PrismRunner", f"--prism_location={location}"]
    workers = {"one process": "1", "two workers": "2", "prism": "auto"}[engine]
    run = planned(web["ill"], tmp_path, *arguments, workers=workers)
    with pytest.raises(RuntimeError, match=r"pages-1\.warc\.gz: ValueError: a fish\."):
        curate.run_stages(run, stop_after="match")
    assert len(list((tmp_path / "work/matched").glob("part-*"))) == 3
    run = planned(web["ill"], tmp_path, *arguments, workers=workers, most=1)
    curate.run_stages(run, stop_after="match" if engine == "prism" else "write")
    if engine != "prism":
        assert shards(run) == without
        card = files.read_json(tmp_path / "dataset/data_card.json")
        (read,) = [row for row in card["funnel"] if row["unit"] == "files"]
        assert (read["in"], read["out"]) == (3, 2)
        assert read["drops"] == {"failed_ValueError": 1}


def test_only_the_parts_with_a_failed_source_are_read_again(
    web, without, tmp_path, monkeypatch
):
    """With two files in a part, the other file of it too."""
    opened = []
    read = kinds.read

    def noting(path, *more):
        opened.append(path[-len("0.warc.gz")])
        return read(path, *more)

    monkeypatch.setattr(kinds, "read", noting)
    run = planned(web["ill"], tmp_path, sources_per_part=2)
    with pytest.raises(RuntimeError, match=r"max_failed_sources=1 goes on"):
        curate.run_stages(run)
    assert sorted(opened) == ["0"] * 4 + ["1"] * 3 + ["2"]
    opened.clear()
    run = planned(web["ill"], tmp_path, most=1, sources_per_part=2)
    curate.run_stages(run)
    assert sorted(opened) == ["0"] * 4 + ["1"] * 3
    assert shards(run) == without


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


def _flip(path):
    """Changes one bit: of the rows, or where there are none, of the last bytes."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    if path.suffix == ".parquet":
        groups = parquet_headers.row_groups(io.BytesIO(content), len(content))
        ends = [chunk.end for group in groups for chunk in group.chunks]
        at = max(ends, default=len(content)) - 1
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = (_cut, _empty, _flip, Path.unlink)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_damaged_files_of_former_stages_are_made_again(web, without, tmp_path, first):
    """All files that a stage writes and another reads, in turn by other damage."""
    run = planned(web["well"], tmp_path)
    for stage in ("match", "download"):
        curate.run_stages(run, stop_after=stage)
        kept = files.MANIFEST, "sources.parquet"  # they say what is made, and lost
        found = sorted(
            p for p in (tmp_path / "work").rglob("*.*") if p.name not in kept
        )
        assert len(found) > 10
        for number, path in enumerate(found):
            DAMAGES[(number + first) % len(DAMAGES)](path)
    curate.run_stages(run)
    assert shards(run) == without


def test_in_every_stage_a_piece_that_fails_is_lost_alone(
    web, without, tmp_path, monkeypatch
):
    """The first piece of each kind in turn; the same command then goes on."""
    thrice, tried, ill = attempts.thrice, [], []

    def kind(name):
        return name.partition("(")[0].rpartition(" ")[0]

    def failing():
        raise IndexError("one too far")

    def faulty(name, work):
        if not ill[-1] and kind(name) not in map(kind, ill):
            ill[-1] = name
        tried.append(kind(name))
        return thrice(name, failing if name == ill[-1] else work)

    monkeypatch.setattr(attempts, "thrice", faulty)
    more = {"duplicates.near_bits": 1}  # nothing is near, but all is compared
    more["memory_gib"] = 1e-9  # a range for each partition
    run = planned(web["well"], tmp_path, **more)
    while not ill or ill[-1]:
        tried.clear()
        ill.append("")
        try:
            curate.run_stages(run)
        except RuntimeError as error:
            assert error.__notes__ == [f"{ill[-1]}: IndexError: one too far"]
            assert tried.count(kind(ill[-1])) > 1  # the others, too
    assert len(ill) == 12, ill
    assert shards(run) == without


def test_far_too_many_partitions_are_warned_about(web, tmp_path, caplog):
    run = planned(web["well"], tmp_path, partitions=11)
    curate.run_stages(run, stop_after="match")
    assert "16 texts matched, which fill 1 of 11 partitions" in caplog.text
    assert "--config.partitions=1 continues with fewer" in caplog.text
    caplog.clear()
    curate.run_stages(planned(web["well"], tmp_path / "few"), stop_after="match")
    assert "partitions" not in caplog.text


def reading(*failing, reason):
    """Sources that fail; returns a function for `Sources.thrice`, and what it read."""
    sources, done = attempts.Sources(), []

    def read(path):
        if path in failing:
            raise reason
        yield path

    def work(paths, lost):
        done[:] = [*sources.read(paths, read), len(lost)]

    return sources, work, done


def test_a_storage_failure_is_retried_after_a_pause(monkeypatch):
    slept = []
    monkeypatch.setattr(attempts.time, "sleep", slept.append)
    sources, work, done = reading("b", reason=OSError("away"))
    (row,) = sources.thrice(["a", "b", "c"], work)
    assert row["reason"].to_pylist() == ["b: OSError: away"]
    assert done == ["a", "c", 1] and slept == [1, 4]


def test_many_sources_that_fail_one_after_the_other_end_the_run():
    names = [str(n) for n in range(30)]
    sources, work, _ = reading(*names, reason=ValueError("all are ill"))
    with pytest.raises(ValueError, match="all are ill"):
        sources.thrice(names, work)
    sources, work, done = reading(*names[::2], reason=ValueError("some are ill"))
    assert len(sources.thrice(names, work)) == 15
    assert done == [*names[1::2], 15]


@pytest.mark.parametrize("failures", [0, 2])
def test_a_partition_that_gets_well_is_yielded_once(failures):
    outcomes = [ValueError("ill")] * failures + [["a", "b"]]

    def work():
        found = outcomes.pop(0)
        yield "half"
        if isinstance(found, Exception):
            raise found
        yield from found

    assert list(attempts.thrice("partition 3", work)) == ["half", "a", "b"]
