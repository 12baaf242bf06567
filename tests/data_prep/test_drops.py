import pytest

from data_prep import drops, schema


def total(*flows):
    return schema.sum_counts(flows, schema.FLOW)


def test_pieces_of_a_stage_add_up():
    a = drops.flow("parse", entered=5, left=3, drops={"empty_text": 2})
    b = drops.flow("parse", entered=4, left=4, drops={})
    (row,) = drops.funnel(total(a, b), ["parse"])
    assert row == {
        "stage": "parse",
        "unit": "texts",
        "in": 9,
        "out": 7,
        "drops": {"empty_text": 2},
    }


def test_a_text_lost_inside_a_stage_is_an_error():
    with pytest.raises(AssertionError, match=r"got 5 = 3 \+ 1 texts"):
        drops.flow("parse", entered=5, left=3, drops={"empty_text": 1})


def test_a_text_lost_between_stages_is_an_error():
    parse = drops.flow("parse", entered=5, left=5, drops={})
    match = drops.flow("match", entered=4, left=4, drops={})
    with pytest.raises(AssertionError, match="wanted 5 texts into match.* got 4"):
        drops.funnel(total(parse, match), ["parse", "match"])


def test_pages_and_files_are_counted_beside_texts():
    files = drops.flow("read", unit="files", entered=2, left=1, drops={"not_warc": 1})
    parse = drops.flow("parse", entered=5, left=5, drops={})
    table = drops.funnel(total(parse, files), ["read", "parse"])
    assert [(row["stage"], row["unit"]) for row in table] == [
        ("read", "files"),
        ("parse", "texts"),
    ]


def test_the_rendered_funnel_names_every_reason():
    parse = drops.flow(
        "parse", entered=5, left=2, drops={"empty_text": 2, "bad_url": 1}
    )
    text = drops.render(drops.funnel(total(parse), ["parse"]))
    assert text.index("empty_text") < text.index("bad_url")


def test_the_commonest_loss_is_that_of_the_last_unit_that_lost_anything():
    files = drops.flow("read", unit="files", entered=3, left=2, drops={"not_warc": 1})
    pages = drops.flow("read", unit="pages", entered=2, left=0, drops={"bad_http": 2})
    none = drops.flow("parse", entered=0, left=0, drops={})
    some = drops.flow("parse", entered=5, left=2, drops={"empty_text": 3})
    thin = drops.flow("thin", entered=2, left=0, drops={"balanced_away": 2})
    stages = ["read", "parse", "thin"]
    for flows, wanted in [
        ((files,), ": of 3 files, most (1) were lost at read: not_warc"),
        ((files, pages, none), ": of 2 pages, most (2) were lost at read: bad_http"),
        ((files, some, thin), ": of 5 texts, most (3) were lost at parse: empty_text"),
        ((none,), ""),
    ]:
        assert drops.lost(drops.funnel(total(*flows), stages)) == wanted
    read = drops.flow("read", unit="pages", entered=4, left=4, drops={})
    table = drops.funnel(total(read, none), stages)
    assert drops.lost(table) == ": 4 pages were read"
