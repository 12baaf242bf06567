"""Words are found where no spaces separate them; entries occur in texts as written."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.matching import spacing
from data_prep.metadata import segmentation

TEXTS = {
    "zh": ("我们在北京大学学习", "我们 在 北京 大学 学习"),
    "zh_yue": ("佢讀香港大學", "佢 讀 香港 大學"),
    "ja": ("東京大学でさくらが咲く", "東京 大学 で さくら が 咲く"),
    "th": ("ประเทศไทยมีประชากรหกสิบล้านคน", "ประเทศไทย มี ประชากร หก สิบ ล้าน คน"),
    "lo": ("ປະເທດລາວບໍ່ມີທາງອອກສູ່ທະເລ", "ປະເທດ ລາວ ບໍ່ມີ ທາງອອກ ສູ່ ທະເລ"),
    "km": ("ប្រទេសកម្ពុជាជាប្រទេសមួយ", "ប្រទេស កម្ពុជា ជា ប្រទេស មួយ"),
    "my": ("မြန်မာနိုင်ငံသည်အရှေ့တောင်", "မြန်မာနိုင်ငံ သည် အရှေ့တောင်"),
    "bo": ("བོད་ཡིག་ནི་བོད་མིའི་སྐད", "བོད ཡིག ནི བོད མིའི སྐད"),
    "shn": ("မိူင်းမၢၼ်ႈ", "မိူင်း မၢၼ်ႈ"),  # no word begins with a silenced letter
}


def segment(text, code="ja"):
    found = segmentation.segmenter(code)
    assert found
    return found(text)


@pytest.mark.parametrize("code", TEXTS)
def test_words_without_spaces_are_found(code):
    text, words = TEXTS[code]
    assert segment(text, code) == words


@pytest.mark.parametrize("code", ["en", "ko", "vi", "zh_min_nan"])
def test_languages_with_spaces_are_not_segmented(code):
    assert segmentation.segmenter(code) is None


@pytest.mark.parametrize(
    ("text", "segmented"),
    [
        ("T-shirt New York, don't", "T-shirt New York, don't"),
        ("T-shirt店 2024年", "T-shirt 店\n 2024 年"),
        ("中-美", "中\n-\n美"),
        ("東京、大学 (さくら)", "東京\n、\n大学\n (\nさくら\n)"),
        ("スティーブ・ジョブズ", "スティーブ\n・\nジョブズ"),
        ("東京 大学", "東京\n \n大学"),
        ("さくら\u200b大学", "さくら 大学"),
        ("", ""),
        ("\x1f \x1f", "   "),
        ("東京\ud800", "東京\n?"),
    ],
)
def test_only_words_side_by_side_have_one_space_between(text, segmented):
    assert segment(text) == segmented


@pytest.mark.parametrize("code", [code for code in TEXTS if code != "shn"])
def test_a_bigram_is_written_as_it_occurs_in_texts(code):
    text, words = TEXTS[code]
    for first, second in itertools.pairwise(words.split(" ")):
        entry = segmentation.written(first, second)
        assert entry in text
        assert spacing.key(entry, mode="fixed") in spacing.spaced(text, mode="fixed")


def test_bigrams_of_spaced_scripts_keep_their_space():
    assert segmentation.written("New", "York") == "New York"
    assert segmentation.written("iPhone", "手机") == "iPhone手机"
    assert segmentation.written("2024", "年") == "2024年"


@given(st.text("aé1 -'。、・東京さくらไทยលើ\u200b\x1f\n်င\u1031བ་\ud800"))
def test_no_character_of_a_text_is_lost_but_soft_edges(text):
    def kept(each):
        each = each.encode("utf-8", "replace").decode()
        return [c for c in each if c not in " \n\x1f\u200b་"]

    assert kept(segment(text)) == kept(text)


def test_the_version_of_the_dictionaries_is_known():
    assert segmentation.version().split(".")[0].isdecimal()
