"""Matching finds exactly what `in` finds on spaced strings, in every mode."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.matching import Matcher, Reference, spacing
from data_prep.sources.texts import clean
from data_prep.stages import matches

# Few letters, so that entries overlap, nest and share prefixes; and one character of
# each kind that some mode treats in its own way.
ALPHABET = "aab  .,?'+(\t\n\x07\xa0東京さ서กี\u0301\u200d\u3000عé😀ー」𠀀"
WORDS = ["New", "York", "a", "C++", "東京", "さくら", "cat's", "ที่", "U.S.", "👩‍💻"]

pieces = st.one_of(st.text(ALPHABET, max_size=3), st.sampled_from(WORDS))
strings = st.lists(pieces, max_size=6).map("".join)
spaced_words = st.lists(pieces, max_size=5).map(" ".join)
texts_ = st.lists(st.one_of(strings, spaced_words), max_size=8)
entries_ = st.lists(
    st.one_of(strings, spaced_words).filter(bool), min_size=1, max_size=20, unique=True
)


def found(matcher: Matcher, texts: list[str]) -> list[list[int]]:
    offsets, entry_ids = matcher.match(texts)
    assert offsets.dtype == np.int64
    assert entry_ids.dtype == np.int32
    assert offsets.size == len(texts) + 1
    return [part.tolist() for part in np.split(entry_ids, offsets[1:-1])][: len(texts)]


def holds(entry: str, text: str, mode: str = "v1") -> bool:
    return found(Matcher([entry], mode=mode), [text]) == [[0]]


def brute_force(entries: list[str], text: str, mode: str) -> list[int]:
    spaced = spacing.spaced(text, mode=mode)
    return [
        entry_id
        for entry_id, entry in enumerate(entries)
        if spacing.key(entry, mode=mode) in spaced
        and not (mode == "fixed" and spacing.why_never_matches(entry, mode=mode))
    ]


@pytest.mark.parametrize("mode", spacing.MODES)
def test_matches_equal_brute_force(mode):
    @settings(max_examples=300)
    @given(entries=entries_, texts=texts_)
    def check(entries, texts):
        # What a text holds of itself is always among the entries.
        entries = list(dict.fromkeys([*entries, *(t[1:4] for t in texts if t[1:4])]))
        wanted = [brute_force(entries, text, mode) for text in texts]
        assert found(Matcher(entries, mode=mode), texts) == wanted

    check()


@pytest.mark.parametrize("mode", spacing.MODES)
def test_both_engines_agree(mode):
    @settings(max_examples=100)
    @given(entries=entries_, texts=texts_, ignore_case=st.booleans())
    def check(entries, texts, ignore_case):
        ignore_case = ignore_case and mode == "fixed"
        wanted = found(Matcher(entries, mode=mode, ignore_case=ignore_case), texts)
        if ignore_case:
            entries, texts = (
                pc.utf8_lower(pa.array(strings, pa.string())).to_pylist()
                for strings in (entries, texts)
            )
        assert wanted == found(Reference(entries, mode=mode), texts)

    check()


def test_v1_is_the_formula_of_metaclip():
    @settings(max_examples=200)
    @given(entries=entries_, text=strings)
    def check(entries, text):
        padded = f" {text} "
        for mark in ",.;:?!`":
            padded = padded.replace(mark, f" {mark} ")
        padded = padded.translate({9: " ", 10: " ", 13: " "})
        wanted = [i for i, entry in enumerate(entries) if f" {entry} " in padded]
        assert found(Matcher(entries), [text]) == [wanted]

    check()


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("New York, NY", " New York ,  NY "),
        ("U.S.", " U . S .  "),
        ("wait...", " wait .  .  .  "),
        ("St. Louis", " St .  Louis "),
        ("a\tb\nc", " a b c "),
    ],
)
def test_v1_texts_are_spaced_as_metaclip_spaces_them(text, spaced):
    assert spacing.spaced(text, mode="v1") == spaced
    assert spacing.spaced(text, mode="v2") == spaced


def test_v1_finds_neighbours_that_share_a_space_and_no_entry_with_a_mark():
    matcher = Matcher(["New York", "NY", "St. Louis", "U.S.", "York", "york"])
    assert found(matcher, ["New York, NY", "St. Louis", "U.S.", "New  York"]) == [
        [0, 1, 4],
        [],
        [],
        [4],
    ]


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("東京", "東京"),
        ("さくら", " さくら "),
        ("서울", " 서울 "),
        ("C++", " C++"),
        ("iPhone手机", " iPhone手机"),
    ],
)
def test_v2_pads_the_ends_that_are_not_cjk_or_punctuation(entry, key):
    assert spacing.key(entry, mode="v2") == key
    assert spacing.key(entry, mode="v1") == f" {entry} "


def test_v2_matches_cjk_inside_running_text_but_not_kana():
    assert holds("東京", "大東京駅", "v2")
    assert not holds("東京", "大東京駅", "v1")
    assert not holds("さくら", "さくら咲く", "v2")
    assert holds("さくら", "さくら 咲く", "v2")
    assert holds("C++", "about C++11", "v2")
    assert not holds("C++", "about C++11", "v1")
    assert not holds("C++", "abC++ x", "v2")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("St. Louis", "in St. Louis"),
        ("St. Louis", "in St.\tLouis"),
        ("U.S.", "the U.S. flag"),
        ("Yahoo!", "Yahoo!"),
        ("cat", "(cat)"),
        ("cat", "cat's"),
        ("cat", "cat、"),
        ("cat", "my_cat.jpg"),
        ("New York", "New \n York"),
        ("さくら", "さくら咲く"),
        ("서울", "서울에서"),
        ("iPhone", "iPhone手机"),
        ("❤", "❤\ufe0flove"),
        ("love", "❤\ufe0flove"),
        ("קפה", "קפה\u200f."),
    ],
)
def test_fixed_matches_what_a_user_expects(entry, text):
    assert holds(entry, text, "fixed")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("cat", "category"),
        ("New York", "NewYork"),
        ("東京", "東 京"),
        ("ที", "ที่"),  # the tone mark makes it another syllable
        ("e", "e\u0301"),
        ("US", "us"),
    ],
)
def test_fixed_matches_whole_words_only(entry, text):
    assert not holds(entry, text, "fixed")


def test_case_is_ignored_on_request_and_every_entry_of_that_form_is_found():
    matcher = Matcher(["US", "us", "U.S."], mode="fixed", ignore_case=True)
    assert found(matcher, ["Us", "u.s."]) == [[0, 1], [2]]
    with pytest.raises(ValueError, match="wanted mode='fixed' with ignore.* 'v1'"):
        Matcher(["US"], ignore_case=True)


def test_fixed_finds_every_entry_that_is_spaced_to_the_same_form():
    matcher = Matcher(["U.S.", "U. S.", "U . S .", "S"], mode="fixed")
    assert found(matcher, ["(U.S.)"]) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("mode", spacing.MODES)
def test_entries_never_match_exactly_if_no_clean_text_of_their_own_has_them(mode):
    @settings(max_examples=300)
    @given(entries=entries_, texts=texts_)
    def check(entries, texts):
        matcher = Matcher(entries, mode=mode)
        never = {
            i for i, e in enumerate(entries) if spacing.why_never_matches(e, mode=mode)
        }
        around = [
            f"{a}{e}{b}"
            for e in entries
            for a, b in zip(texts, texts[::-1], strict=True)
        ]
        candidates = [*entries, *own_texts(entries), *texts, *around]
        cleaned = sorted({clean(text) for text in candidates})
        matched = {i for ids in found(matcher, cleaned) for i in ids}
        assert never == set(range(len(entries))) - matched

    def own_texts(entries):
        for entry in entries:
            # A mark's own spaces come back when the text is spaced; an entry with
            # spaces at its ends is found beside marks.
            bare = re.sub(" ?([,.;:?!`]) ?", r"\1", f" {entry} ")
            for before, behind in itertools.product(["", ",", ", "], ["", ",", " ,"]):
                yield before + bare[bare[:1] == " " :].removesuffix(" ") + behind
            yield re.sub(r"[\x00-\x1f]", " ", entry)

    check()


@pytest.mark.parametrize("mode", ["v1", "v2"])
def test_an_entry_never_matches_exactly_if_no_short_clean_text_has_its_key(mode):
    def strings(most):
        parts = (itertools.product("a東 ,", repeat=n) for n in range(1, most + 1))
        return map("".join, itertools.chain.from_iterable(parts))

    spaced = {spacing.spaced(clean(text), mode=mode) for text in strings(7)}
    searched = "\0".join(sorted(spaced))
    for entry in strings(4):
        can_match = spacing.key(entry, mode=mode) in searched
        assert (spacing.why_never_matches(entry, mode=mode) is None) == can_match, entry


def test_why_entries_never_match():
    entries = ["cat", "St. Louis", "a\tb", ", ,", "a , b", "a  b", "a\xa0b", "a\x7f"]
    assert [spacing.why_never_matches(entry, mode="v1") for entry in entries] == [
        None,
        "mark_without_its_spaces",
        "other_white_space",
        "marks_share_a_space",
        None,
        "too_many_spaces",
        "other_white_space",
        "control_character",
    ]
    assert spacing.why_never_matches("St. Louis", mode="fixed") is None
    assert spacing.why_never_matches("\u200d \t", mode="fixed") == "nothing_left"


@pytest.mark.parametrize("mode", spacing.MODES)
def test_a_long_text_of_nothing_but_marks_fits(mode):
    text = "., 東\u0301" * 20_000
    matcher = Matcher([".", "東\u0301", "x"], mode=mode)
    assert found(matcher, ["x", text, "x"])[::2] == [[2], [2]]
    assert found(matcher, [text]) == [brute_force([".", "東\u0301", "x"], text, mode)]


def test_an_entry_found_many_times_is_given_once_and_ids_ascend():
    words = [f"w{i}" for i in range(300)]
    matcher = Matcher(words[::-1])
    assert found(matcher, [" ".join(words * 3)]) == [list(range(300))]


def test_arrow_arrays_are_read_in_every_layout():
    texts = ["no", "a cat", "cat", "dog, cat", ""]
    wanted = found(Matcher(["cat", "dog"]), texts)
    matcher = Matcher(pa.array(["x", "cat", "dog"])[1:])
    layouts = [
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(["x", *texts])[1:],
        pa.chunked_array([texts[:2], texts[2:]]),
        pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.string_view()),
    ]
    for layout in layouts:
        assert found(matcher, layout) == wanted
    assert found(matcher, pa.array([], pa.string())) == []
    assert found(Matcher([]), texts) == [[]] * 5


def test_bytes_that_are_not_utf_8_are_read_within_their_text():
    broken = pa.array([b"cat \xf0", b"\xe6\x9d", b"cat", b"\xff\xff\xff\xff"])
    texts = pa.Array.from_buffers(pa.string(), 4, broken.buffers())
    for mode in spacing.MODES:
        assert found(Matcher(["cat", "東"], mode=mode), texts) == [[0], [], [0], []]


def test_wrong_entries_are_refused_by_position():
    with pytest.raises(ValueError, match="entry 1: wanted a string that is not empty"):
        Matcher(["a", ""])
    with pytest.raises(ValueError, match="got 'a' again, which is entry 0"):
        Matcher(["a", "b", "a"])
    with pytest.raises(ValueError, match=r"entry 1: .* lone surrogate U\+D83D at "):
        Matcher(["a", "b\ud83d"])
    with pytest.raises(ValueError, match="wanted a mode among v1, v2, fixed, got 'v3'"):
        Matcher(["a"], mode="v3")


def test_wrong_texts_are_refused_by_position():
    matcher = Matcher(["a"])
    with pytest.raises(ValueError, match=r"text 1: .* lone surrogate U\+DC00 at "):
        matcher.match(["a", "ab\udc00"])
    with pytest.raises(ValueError, match="text 1: wanted a string, got null"):
        matcher.match(["a", None])
    with pytest.raises(TypeError, match="got one string: 'abc'"):
        matcher.match("abc")
    with pytest.raises(TypeError, match="wanted every text to be a str"):
        matcher.match([1])
    with pytest.raises(TypeError, match="got an array of int64"):
        matcher.match(pa.array([1]))


@pytest.mark.parametrize("mode", spacing.MODES)
def test_a_loaded_matcher_equals_the_saved_one(mode, tmp_path):
    entries = ["New York", "東京", "U.S.", "U. S.", "C++", "さくら", "x\ty"]
    texts = ["New York U.S.", "大東京駅 C++11", "さくら咲く", ""]
    saved = Matcher(entries, mode=mode)
    saved.save(tmp_path / "m")
    loaded = Matcher.load(tmp_path / "m")
    assert found(loaded, texts) == found(saved, texts)
    assert loaded.entries() == entries
    assert len(loaded) == len(entries)
    assert loaded.table_bytes == saved.table_bytes
    for choose in matches.ENGINES.values():
        assert found(choose(loaded), texts) == found(saved, texts)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "m"]


def test_a_damaged_file_is_refused(tmp_path):
    Matcher([f"entry {i}" for i in range(1000)]).save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other").write_bytes(b"PAR1 something else")
    (tmp_path / "empty").write_bytes(b"")
    with pa.ipc.new_file(tmp_path / "table", pa.schema([])) as file:
        file.write_table(pa.table({}))
    for name in ("cut", "other", "empty", "table"):
        with pytest.raises(ValueError, match=f"{name} should be a file written by Mat"):
            Matcher.load(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_processes_that_load_a_matcher_share_its_memory(tmp_path):
    """No page of the mapped file is private: the tables are in memory once."""
    Matcher([f"entry {i}" for i in range(50_000)]).save(tmp_path / "tables")
    program = """if True:
        import json, sys
        from data_prep.matching import Matcher
        matcher = Matcher.load(sys.argv[1])
        matches = matcher.match([f"see entry {i}" for i in range(50_000)])[1].size
        mapping, pages = None, {"Rss": 0, "Private_Dirty": 0, "Anonymous": 0}
        for line in open("/proc/self/smaps"):
            fields = line.split()
            if not fields[0].endswith(":"):
                mapping = fields[-1]
            elif mapping == sys.argv[1] and fields[0][:-1] in pages:
                pages[fields[0][:-1]] += int(fields[1])
        print(json.dumps({"matches": matches, **pages}))
    """
    command = [sys.executable, "-c", program, str(tmp_path / "tables")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen = json.loads(done.stdout)
    assert seen["matches"] == 50_000
    assert seen["Rss"] > 500  # kB
    assert seen["Private_Dirty"] == 0
    assert seen["Anonymous"] == 0


def test_the_kernel_compiles_where_no_cache_can_be_kept(tmp_path):
    program = """if True:
        import numba.core.caching
        numba.core.caching.CacheImpl._locator_classes = []
        from data_prep.matching import token_trie
        print(token_trie.mixed.stats.cache_path, int(token_trie.mixed(1)) != 1)
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["None", "True"]


_LOAD_AND_LOOK = """
import sys
from data_prep.matching import Matcher
path = sys.argv[1]
matcher = Matcher.load(path)
assert len(matcher.entries()) == len(matcher)
matcher.match([f"word{i} x" for i in range(60_000)])
resident = private = 0
ours = False
for line in open("/proc/self/smaps"):
    name, _, rest = line.partition(":")
    if "-" in name.split(" ")[0]:
        ours = line.rstrip().endswith(path)
    elif ours and name == "Rss":
        resident += int(rest.split()[0])
    elif ours and name.startswith("Private_"):
        private += int(rest.split()[0])
print(resident * 1024, private * 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
def test_two_processes_share_the_memory_of_one_matcher(tmp_path):
    path = str(tmp_path / "m")
    entries = [f"word{i}" for i in range(60_000)]
    Matcher(entries).save(path)
    here = Matcher.load(path)
    assert len(here.entries()) == len(here)
    here.match([f"word{i} x" for i in range(60_000)])
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_LOOK, path],
        capture_output=True,
        text=True,
        check=True,
    )
    resident, private = map(int, done.stdout.split())
    assert resident > 0.8 * here.table_bytes  # it did touch the tables
    assert private < 0.02 * resident  # and has hardly any private page


@pytest.mark.slow
def test_half_a_million_entries_on_a_million_texts_equal_the_reference():
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "benchmarks/matching.py", "--texts=1000000", "--rounds=1"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "equal matches" in done.stdout and "500,000 entries" in done.stdout
