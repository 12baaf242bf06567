import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app

from data_prep import config as keys
from data_prep import curate
from data_prep.matching import spacing
from data_prep.sources import kinds
from data_prep.stages import matches, planning, steps
from metaclip_jax.cli import ranges
from tests.out_of_range import bad_values, with_value

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "curate": (keys.curate, keys.CURATE_RANGES, keys.check_curate),
    "metadata": (keys.metadata, keys.METADATA_RANGES, keys.check_metadata),
}
ROWS = [(name, key) for name, (_, table, _) in PROGRAMS.items() for key in table]
# By the form that a pattern asks for.
MALFORMED = {
    "name": ("", "My-Set", "my-set", "../x", "a/b", "9lives", "_a", "a" * 101, "é"),
    "languages": (("",), ("EN",), ("en", "z h"), ("en-",), ("../x",)),
    "source.paths": ("", " "),
    "metadata": ("", " "),
    "safety.words": ("", " "),
    "safety.clip_model": ("", " "),
    "safety.face_detector": ("yunet", "a:b:c", ":make", "module:", " "),
    "safety.image_scorer": ("nsfw", "a:b:c", ":make", "module:", " "),
    "language.identifier": ("", "lid", "lid218", "a:b:c", ":make", "module:"),
    "download.host_map": ("a", "a=b", "a=:1", "=b:1", "a=b:x", "a=b:1;c=d:2", "a=b:1 "),
    "download.user_agent": ("", " ", "a\nCookie: b", "caf\u00e9", " a", "a "),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_has_a_row_and_every_row_a_key(program):
    default, table, _ = PROGRAMS[program]
    assert set(table) == set(dict(ranges.flat(default())))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_defaults_are_in_range(program):
    default, _, check = PROGRAMS[program]
    check(default())


@pytest.mark.parametrize(("program", "key"), ROWS)
def test_a_value_out_of_its_range_is_refused_by_the_name_of_its_key(program, key):
    default, table, check = PROGRAMS[program]
    for value in [*bad_values(table[key]), *MALFORMED.get(key, ())]:
        config = with_value(default(), key, value)
        with pytest.raises(ValueError) as error:
            check(config)
        text = str(error.value)
        assert text.startswith(f"config.{key}: wanted {table[key].wanted()}")
        assert ", got" in text
        assert "; the default is" in text and len(text.splitlines()) == 1


def test_every_form_has_malformed_values():
    tables = (keys.CURATE_RANGES, keys.METADATA_RANGES)
    formed = {key for table in tables for key in table if table[key].pattern}
    assert formed | {"languages"} == MALFORMED.keys()


@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("matching.mode", (*spacing.MODES, "none")),
        ("matching.engine", tuple(matches.ENGINES)),
        ("balance.rule", steps.RULES),
    ],
)
def test_the_words_of_a_key_are_those_that_the_code_knows(key, choices):
    assert keys.CURATE_RANGES[key].words == choices


def test_a_new_source_is_one_row_of_the_table_of_kinds(monkeypatch):
    config = with_value(keys.curate(), "source.kind", "laion")
    with pytest.raises(ValueError, match="config.source.kind: wanted one of 'warc', "):
        keys.check_curate(config)
    monkeypatch.setitem(kinds.KINDS, "laion", kinds.KINDS["table"])
    keys.check_curate(config)


def test_reading_a_recipe_imports_neither_beam_nor_readers_of_sources():
    code = (
        "import sys; from data_prep import config; config.curate(); "
        "print({'apache_beam', 'data_prep.sources.kinds', 'lxml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("program", "changes", "message"),
    [
        ("curate", {"images.max_side": 31}, "images.max_side=31: wanted at least"),
        ("curate", {"images.max_pixels": 1_023}, "images.max_pixels=1023: wanted"),
        (
            "curate",
            {"source.score_columns": ("text",)},
            "score_columns=.*: wanted other",
        ),
        (
            "curate",
            {"download.max_bytes": 1 << 30},
            "max_held_bytes=1073741824: wanted",
        ),
        (
            "metadata",
            {
                "max_synsets": 0,
                "max_unigrams": 0,
                "max_bigrams": 0,
                "max_titles": 0,
            },
            "max_unigrams=0: wanted one of .* above 0",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(program, changes, message):
    default, _, check = PROGRAMS[program]
    config = default()
    for key, value in changes.items():
        with_value(config, key, value)
    with pytest.raises(ValueError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "../x", "config.name: wanted a letter a to z"),
        ("balance.slack", 0.5, "config.balance.slack: wanted a number of at least 1"),
        ("download.host_map", "a=1.2.3.4:99999", "host_map: .* got a=1.2.3.4:99999"),
        ("download.host_map", "a=b.example:80", "host_map: .* got a=b.example:80"),
        (
            "language.identifier",
            "no.such:thing",
            "config.language.identifier: wanted .* got .no.such:thing",
        ),
    ],
)
def test_a_plan_refuses_what_the_stages_would_trip_over(tmp_path, key, value, message):
    config = with_value(keys.curate(), key, value)
    config.source.paths, config.metadata = "*.warc.gz", "metadata"
    with pytest.raises(ValueError, match=message):
        curate.plan(config, str(tmp_path / "work"), str(tmp_path / "out"), [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workdir", "output", "said"),
    [
        ("a", "a", "wanted two folders, got .* twice"),
        ("a", "a/../a/", "wanted two folders, got .* twice"),
        ("link", "a", "wanted two folders, got .* twice"),
        ("a", "a/matches", "wanted a folder outside"),
        ("a", "link/images/dataset", "wanted a folder outside"),
        ("a", "a/dataset", "got none for 'no"),
        ("a/work", "a", "got none for 'no"),
        ("a", "a/matches2", "got none for 'no"),
    ],
)
def test_a_plan_refuses_one_folder_for_two_purposes(tmp_path, workdir, output, said):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    config = with_value(keys.curate(), "matching.mode", "none")
    config.source.paths = "no.warc.gz"
    with pytest.raises((ValueError, app.UsageError), match=said):
        curate.plan(config, f"{tmp_path}/{workdir}", f"{tmp_path}/{output}", [])


@pytest.mark.parametrize(
    ("module", "recipe", "wrong"),
    [
        (
            "data_prep.curate",
            "curate.py:quickstart",
            ("download.concurrency=0", "download.timeout_seconds=nan", "partitions=0"),
        ),
        (
            "data_prep.build_metadata",
            "metadata.py:quickstart",
            ("unigram_min_count=-1", "languages=EN"),
        ),
    ],
)
def test_a_refused_command_leaves_nothing(tmp_path, module, recipe, wrong):
    (tmp_path / "a.warc").touch()
    flags = {"config": f"configs/{recipe}", "output": tmp_path / "out"}
    if module == "data_prep.curate":
        flags["config.source.paths"] = tmp_path / "a.warc"
        flags |= {"workdir": tmp_path / "work", "config.metadata": tmp_path / "en"}
    else:
        flags["warc"] = tmp_path / "a.warc"
    done = subprocess.run(
        [
            *(sys.executable, "-m", module),
            *(f"--{name}={value}" for name, value in flags.items()),
            *(f"--config.{one}" for one in wrong),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    for one in wrong:
        assert f"config.{one.partition('=')[0]}: wanted" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.warc"]


def test_strangers_servers_are_not_asked_without_an_address_to_write_to():
    values = keys.curate()
    for kind, host_map, user_agent, is_refused in (
        ("warc", "", "metaclip-jax", True),
        ("table", "", "metaclip-jax", True),
        ("warc", "", "our-crawler https://example.org/crawler", False),
        ("warc", "", "our-crawler me@example.org", False),
        ("warc", "images.example=127.0.0.1:8000", "metaclip-jax", False),
        ("webdataset", "", "metaclip-jax", False),  # it holds the images
    ):
        values.source.kind = kind
        values.download.update(host_map=host_map, user_agent=user_agent)
        refused = pytest.raises(ValueError, match="wanted your name and an e-mail")
        with refused if is_refused else contextlib.nullcontext():
            planning.refuse_anonymous(values, kinds.spec_of(values))
