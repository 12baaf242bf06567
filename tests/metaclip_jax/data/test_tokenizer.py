"""The tokenizer: clean-up, encoding, training, loading, the command."""

import gzip
import html
import json
import pickle
import re
import subprocess
import sys
import tracemalloc
import unicodedata

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from metaclip_jax.data import bpe, tokenizer, unigram

TEXTS = [
    f"a {colour} {animal}, number {n}: it's the {animal}'s {colour} house"
    for n, (colour, animal) in enumerate(
        (c, a)
        for c in ("red", "dark green", "weiß", "青い")
        for a in ("cat", "dog", "лиса", "naïve parrot")
    )
]


def write(folder, bpe, name="tokenizer.json"):
    path = folder / name
    path.write_text(bpe.to_str())
    return path


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return tokenizer.load(write(folder, tokenizer.train(TEXTS, 650)), family="clip")


def reference_clean(text):
    """CLIP's clean-up as its definition reads, without shortcuts."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


# The letters that decide whether ftfy finds a text broken, quotes, what it replaces.
BROKEN = re.sub(
    "(.)-(.)",
    lambda m: "".join(map(chr, range(ord(m[1]), ord(m[2]) + 1))),
    "".join(ftfy.badness.MOJIBAKE_CATEGORIES.values()),
)
BROKEN = sorted({*BROKEN, *"‘’“”‛ʼ'\" abzÂÃœ.,e\u0301\u0327のか\u3099東한ﬁＡ\u212b\n"})


@given(
    st.lists(
        st.text(BROKEN)
        | st.sampled_from(["&", "amp;", "lt;", "#39;", "\n", "\x0b", "\x0c", "\x1b[1m"])
        | st.text(st.characters(max_codepoint=127))
        | st.text(),
        max_size=6,
    ).map("".join)
)
def test_clean_up_takes_no_shortcut_that_shows(text):
    assert tokenizer.clean(text) == reference_clean(text)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  A\tCat \n", "a cat"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("&lt;b&gt;", "<b>"),
        ("schÃ¶n", "schön"),
        ("“quoted”", '"quoted"'),
        ("", ""),
    ],
)
def test_clean_up_does_what_clip_does(raw, cleaned):
    assert tokenizer.clean(raw) == cleaned


def test_a_row_is_begin_text_end_padding(tok):
    rows, truncated = tok(["a red cat", ""], 10)
    assert rows.dtype == np.int32
    assert rows.shape == (2, 10)
    assert not truncated.any()
    length = len(tok.ids(["a red cat"])[0])
    assert rows[0, 0] == tok.bos_id
    assert rows[0, length + 1] == tok.eos_id
    assert (rows[0, length + 2 :] == tok.pad_id).all()
    assert rows[1].tolist() == [tok.bos_id, tok.eos_id] + [tok.pad_id] * 8


def test_a_cut_text_keeps_its_end_mark_and_is_counted(tok):
    text = "red cat " * 20
    rows, truncated = tok(["a", text], 8)
    assert truncated.tolist() == [False, True]
    assert rows[1, 0] == tok.bos_id
    assert rows[1, -1] == tok.eos_id
    assert rows[1, 1:-1].tolist() == tok.ids([text])[0][:6]


def test_a_text_that_fits_exactly_is_not_cut(tok):
    length = len(tok.ids(["a red cat"])[0])
    rows, truncated = tok(["a red cat"], length + 2)
    assert not truncated.any()
    assert rows[0, -1] == tok.eos_id


@given(st.text())
def test_any_text_has_one_end_mark_and_comes_back(tok, text):
    rows, _ = tok([text], 4 * len(text.encode()) + 40)
    assert (rows == tok.eos_id).sum() == 1
    assert rows.max() < tok.vocab_size
    squeezed = "".join(tokenizer.clean(text).split()).replace("</w>", "")
    assert "".join(tok.decode(rows[0]).split()).replace("</w>", "") == squeezed


def test_a_text_that_spells_a_mark_does_not_give_it(tok):
    marks = [tok.bos_id, tok.eos_id, tok.pad_id]
    for text in ("<|endoftext|> cat", "<|startoftext|>", "a <|pad|> b"):
        assert not set(marks) & set(tok.ids([text])[0])


def test_training_twice_in_any_order_gives_the_same_bytes():
    wanted = tokenizer.train(TEXTS, 600).to_str()
    assert tokenizer.train(TEXTS, 600).to_str() == wanted
    assert tokenizer.train(TEXTS[::-1], 600).to_str() == wanted


def test_pairs_that_are_equally_frequent_are_merged_in_one_order():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(300)] * 2
    wanted = tokenizer.train(words, 900).to_str()
    for _ in range(10):
        assert tokenizer.train(rng.permutation(words).tolist(), 900).to_str() == wanted


def test_training_gives_at_most_the_tokens_asked_for():
    assert tokenizer.train(TEXTS, 530).get_vocab_size() == 530
    assert tokenizer.train(TEXTS, 100_000).get_vocab_size() < 2_000
    assert tokenizer.train([], 600).get_vocab_size() == 515


def test_common_words_become_one_token(tok):
    assert len(tok.ids(["cat"])[0]) == 1
    assert len(tok.ids(["лиса"])[0]) == 1


def words_of(text, pattern):
    """The words of a text that the pattern makes, as texts."""
    decode = tokenizers.decoders.ByteLevel().decode
    found = bpe.pre_tokenizer(pattern).pre_tokenize_str(text)
    return [decode([word]) for word, _ in found]


# Vowel signs of Hindi, Thai, Bengali and Tamil, joiners of Persian and Malayalam,
# accents apart from their letters, points of Hebrew, digits and emoji with marks.
MARKED = "किताब เด็กชายที่นี่ বই தமிழ் می\u200cخواهم ന\u0d4d\u200d e\u0301te\u0301 שָׁלוֹם"


def test_a_word_with_combining_marks_is_one_word():
    assert words_of(MARKED, bpe.WORDS) == MARKED.split()
    text = "किताब, 1\ufe0f\u20e3 ❤\ufe0f👩🏽\u200d🚀it's \u0301x"
    assert words_of(text, bpe.WORDS) == [
        *("किताब", ",", "1\ufe0f\u20e3", "❤\ufe0f👩🏽\u200d🚀", "it", "'s"),
        *("\u0301", "x"),
    ]


def test_clip_s_own_words_end_at_combining_marks():
    assert words_of("किताब it's 12", bpe.CLIP_WORDS) == [
        *("क", "ि", "त", "ा", "ब", "it", "'s", "1", "2"),
    ]


@given(st.text(st.characters(exclude_categories=["M", "Cs"]) | st.sampled_from("a1' ")))
def test_texts_without_marks_and_joiners_have_clip_s_words(text):
    plain = text.translate({0x200C: None, 0x200D: None})
    assert words_of(plain, bpe.WORDS) == words_of(plain, bpe.CLIP_WORDS)


def test_trained_tokenizers_learn_whole_words_with_marks(tmp_path):
    trained = tokenizer.train([MARKED] * 2, 1_000)
    loaded = tokenizer.load(write(tmp_path, trained), family="clip")
    assert len(loaded.ids([MARKED])[0]) == len(MARKED.split())


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 515 .* got 514"):
        tokenizer.train(TEXTS, 514)


def test_a_context_without_room_for_a_token_is_refused(tok):
    with pytest.raises(ValueError, match="at least 3"):
        tok(["cat"], 2)


def test_the_file_alone_brings_everything_back(tok, tmp_path):
    bpe = tokenizer.train(TEXTS, 650)
    again = tokenizer.load(write(tmp_path, bpe), family="clip")
    assert (again.bos_id, again.eos_id, again.pad_id) == (
        tok.bos_id,
        tok.eos_id,
        tok.pad_id,
    )
    assert again.clean_up == "clip"
    assert again.fingerprint == tok.fingerprint
    assert again.vocab_size == bpe.get_vocab_size()


def test_readers_that_know_only_the_file_get_the_same_ids(tok, tmp_path):
    plain = tokenizers.Tokenizer.from_str(tokenizer.train(TEXTS, 650).to_str())
    for text in TEXTS:
        assert plain.encode(text).ids == tok.ids([text])[0]


def test_a_tokenizer_travels_to_other_processes(tok):
    copy = pickle.loads(pickle.dumps(tok))
    assert copy.fingerprint == tok.fingerprint
    assert (copy(TEXTS, 20)[0] == tok(TEXTS, 20)[0]).all()
    assert tok.eos_id not in copy.ids(["<|endoftext|>"])[0]


def test_other_texts_or_sizes_have_another_fingerprint(tok, tmp_path):
    other = tokenizer.load(write(tmp_path, tokenizer.train(TEXTS, 560)), family="clip")
    assert other.fingerprint != tok.fingerprint


def test_a_missing_file_is_named(tmp_path):
    for source, named in ((tmp_path / "none.json", ".*none.json'"), ("", "''")):
        with pytest.raises(FileNotFoundError, match=f"there is no tokenizer {named}"):
            tokenizer.load(source, family="clip")
    with pytest.raises(FileNotFoundError, match=f"there is no tokenizer '{tmp_path}'"):
        tokenizer.load(tmp_path, family="clip")


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer.json should be a tokenizer"):
        tokenizer.load(path, family="clip")


def test_a_tokenizer_without_known_marks_is_refused(tmp_path):
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    with pytest.raises(ValueError, match="one of these sets of marks"):
        tokenizer.load(write(tmp_path, bpe), family="clip")


def test_a_public_multilingual_tokenizer_has_its_own_marks(tmp_path):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in "abcABC"]
    bpe = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3))
    bpe.add_special_tokens(["<s>", "<pad>", "</s>"])
    tok = tokenizer.load(write(tmp_path, bpe), family="clip")
    assert (tok.bos_id, tok.pad_id, tok.eos_id) == (0, 1, 2)
    assert tok.clean_up == "none"
    assert tok.ids(["ABC"]) != tok.ids(["abc"])
    rows, _ = tok(["a</s>b"], 12)
    assert (rows == tok.eos_id).sum() == 1


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory):
    """A tokenizer of XLM-V's kind, trained on a few texts."""
    folder = tmp_path_factory.mktemp("unigram")
    return tokenizer.load(write(folder, unigram.train(TEXTS, 400)), family="clip")


def test_an_unigram_tokenizer_has_xlm_v_s_marks_and_keeps_the_case(multilingual):
    marks = multilingual.bos_id, multilingual.pad_id, multilingual.eos_id
    assert marks == (0, 1, 2)
    assert multilingual.clean_up == "none"
    assert multilingual.ids(["CAT"]) != multilingual.ids(["cat"])
    assert len(multilingual.ids(["cat"])[0]) == 1
    assert multilingual.vocab_size <= 400


@given(st.text())
def test_an_unigram_tokenizer_encodes_any_text_and_brings_it_back(multilingual, text):
    rows, _ = multilingual([text], 8 * len(text.encode()) + 40)
    assert (rows == multilingual.eos_id).sum() == 1
    plain = re.sub(
        "<s>|<pad>|</s>|<unk>|\u2581", "", unicodedata.normalize("NFKC", text)
    )
    assert "".join(multilingual.decode(rows[0]).split()) == "".join(plain.split())


@pytest.mark.parametrize("text", ["<0x41>", "<0xFF> cat", "a<s>b", "</s>", "<unk>"])
def test_texts_that_spell_pieces_give_neither_bytes_nor_marks(multilingual, text):
    ids = multilingual.ids([text])[0]
    assert not set(ids) & {*range(4 + 256)}
    assert multilingual.decode(ids) == text


def test_unigram_training_twice_gives_the_same_bytes():
    assert unigram.learn(TEXTS, 400) == unigram.learn(TEXTS, 400)


def test_an_unigram_vocabulary_without_room_or_texts_is_refused():
    for texts, size in ((TEXTS, 300), ([], 1_000)):
        with pytest.raises(ValueError, match=rf"room for .* got {size}"):
            unigram.train(texts, size)


# The first merges of the real file. Its "the" is token 518, its "!" token 0.
CLIP_MERGES = ["i n", "t h", "a n", "r e", "a r", "e r", "th e</w>", "in g</w>"]


def write_clip_file(folder, merges):
    path = folder / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["version", *merges]).encode()))
    return path


def test_clip_merges_give_clip_ids(tmp_path):
    letters = bpe.alphabet()
    others = (f"{a} {b}" for a in letters for b in letters)
    others = [merge for merge in others if merge not in CLIP_MERGES]
    merges = [*CLIP_MERGES, *others][:48_894]
    # The real file has more merges than CLIP uses.
    tok = tokenizer.load(
        write_clip_file(tmp_path, [*merges, "not used"]), family="clip"
    )
    assert (tok.vocab_size, tok.bos_id, tok.eos_id, tok.pad_id) == (
        49_408,
        49_406,
        49_407,
        0,
    )
    assert tok.ids(["The", "a", "!"]) == [[518], [320], [256]]
    assert tok(["the !"], 6)[0].tolist() == [[49_406, 518, 256, 49_407, 0, 0]]
    assert tok.decode([49_406, 518, 256, 49_407, 0, 0]) == "the !"


def test_a_clip_file_that_is_too_short_is_refused(tmp_path):
    path = write_clip_file(tmp_path, CLIP_MERGES)
    with pytest.raises(ValueError, match="48894 lines of two words, found 8"):
        tokenizer.load(path, family="clip")


def test_clip_without_its_file_says_where_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="pip install --no-deps open_clip_torch"):
        tokenizer.load("clip", family="clip")


def test_a_few_merges_that_would_fill_the_memory_are_named(tmp_path):
    path = tmp_path / "merges.txt.gz"
    path.write_bytes(gzip.compress(bytes(400 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="should be CLIP's merges"):
            tokenizer.load(path, family="clip")
        assert tracemalloc.get_traced_memory()[1] < 300 << 20
    finally:
        tracemalloc.stop()


def test_damaged_clip_merges_are_named(tmp_path):
    path = tmp_path / "merges.txt.gz"
    whole = gzip.compress(bytes(range(256)) * 4)
    for damaged in (whole[:-12], whole[:20] + b"\xff" * 20 + whole[40:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="should be CLIP's merges"):
            tokenizer.load(path, family="clip")


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "metaclip_jax.data.tokenizer", *flags],
        capture_output=True,
        text=True,
    )


def test_the_command_writes_once_and_refuses_another_runs_file(tmp_path, write_dataset):
    dataset = write_dataset(tmp_path / "dataset", record_count=40)
    output = tmp_path / "out" / "tokenizer.json"
    flags = [f"--dataset={dataset}", "--vocab_size=560", f"--output={output}"]
    first = run(*flags)
    assert first.returncode == 0, first.stderr
    data, stamp = output.read_bytes(), output.stat().st_mtime_ns
    assert tokenizer.load(output, family="clip").vocab_size <= 560
    assert "picture" in json.dumps(json.loads(data)["model"]["merges"]).replace(
        '", "', ""
    )

    assert run(*flags).returncode == 0
    assert output.stat().st_mtime_ns == stamp

    for other in (
        [flags[0], "--vocab_size=561", flags[2]],
        [*flags, "--model=unigram"],
    ):
        refused = run(*other)
        assert refused.returncode != 0
        assert "choose another file" in refused.stderr
    assert output.read_bytes() == data
