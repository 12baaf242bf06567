"""The table of editions accounts for every code of the paper and of lid.176."""

import hashlib
from collections import Counter

import pytest

from data_prep.metadata import editions

# sha256 of the sorted codes of MetaCLIP 2's public list (wiki_lang_code), a line each.
PAPER = "c390a1036b7931b88a42717670f35dd012ab0a3525571d6e42a543735142e8ca"


def test_every_code_of_the_papers_list_is_in_the_table_and_no_other():
    renamed = {"be_x_old": "be_tarask"}  # as the list calls it
    codes = sorted(renamed.get(code, code) for code in editions.table())
    codes.remove("lrc")  # of lid.176
    assert len(codes) == 330
    assert hashlib.sha256("\n".join(codes).encode()).hexdigest() == PAPER


def test_no_edition_and_no_language_of_the_identifier_is_in_the_table_twice():
    lines = editions._TABLE.read_text("utf-8").splitlines()
    rows = [line for line in lines if not line.startswith("#")][1:]
    assert len(rows) == len(editions.table()) == 331
    lids = Counter(edition.lid for edition in editions.table().values())
    del lids[""]
    assert len(lids) == 176
    assert set(lids.values()) == {1}
    assert all(row.count("\t") == 6 for row in rows)
    assert list(editions.table()) == sorted(editions.table())


def test_an_edition_belongs_to_one_that_has_its_own_metadata():
    table = editions.table()
    for edition in table.values():
        if edition.metadata not in (editions.OTHER, editions.UNREAD):
            assert table[edition.metadata].metadata == edition.metadata
            assert edition.scripts[0] == table[edition.metadata].scripts[0]


def test_an_edition_has_its_own_metadata_if_its_language_can_be_identified():
    table = editions.table().values()
    own = {edition.code for edition in table if edition.metadata == edition.code}
    assert own == {edition.code for edition in table if edition.lid} - {"lrc"}


def test_all_metadata_together_has_each_edition_that_is_read_once():
    languages = editions.languages()
    assert set(languages) == {e.metadata for e in editions.table().values()} - {""}
    found = Counter(sum(editions.members(languages).values(), ()))
    assert set(found.values()) == {1}
    assert {*editions.table(), editions.OTHER} - set(found) == {"simple"}


def test_a_named_edition_has_its_own_metadata_and_is_part_of_no_other():
    assert editions.members(["zh"]) == {"zh": ("zh", "gan", "zh_classical")}
    assert editions.members(["gan", "zh"]) == {
        "gan": ("gan",),
        "zh": ("zh", "zh_classical"),
    }
    (others,) = editions.members(["other"]).values()
    assert others[:2] == ("other", "ab")
    found = editions.members(["ab", "other"])
    assert found == {"ab": ("ab",), "other": ("other", *others[2:])}


def test_segmented_editions_are_those_whose_main_script_has_no_spaces():
    segmented = [e.code for e in editions.table().values() if e.needs_segmentation]
    assert segmented == (
        "blk bo dz gan ja km lo mnw my shn th wuu zh zh_classical zh_yue".split()
    )


def test_the_domain_is_that_of_page_views():
    table = editions.table()
    domains = [table[code].domain for code in ("en", "zh_min_nan", "be_x_old")]
    assert domains == ["en", "zh-min-nan", "be-tarask"]


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        (["yue"], "got 'yue'; did you mean 'zh_yue'"),
        (["en", "zh-yue"], "got 'zh-yue'; did you mean 'zh_yue'"),
        (["eng"], "did you mean 'en'"),
        (["1"], "got '1'; correct them"),
        ([], r"wanted one or more, each once.* got \(\)"),
        (["en", "en"], "each once"),
    ],
)
def test_an_unknown_code_is_an_error_that_names_a_near_one(languages, words):
    with pytest.raises(ValueError, match=words):
        editions.members(languages)
