"""CLIP's token ids on 10,000 texts, as open_clip and transformers have them."""

import json
import random

import emoji
import numpy as np
import pytest
import tokenizers as rust
import transformers

from metaclip_jax.data import tokenizer as tokenizers

LANGUAGES = "en es ja ko pt it fr de fa id zh ru tr ar".split()
# What crawled texts are full of.
HOSTILE = (
    "  spaces \t\n everywhere\u00a0\u2003 ",
    "Tom &amp; Jerry &amp;amp; &lt;b&gt; &#39;n&#x27; &nbsp; &notanentity;",
    "l\u2019Ã©tÃ© â€œquotedâ€\x9d mojibake",
    "it's we'll they've I'm he'd don't 'S 'LL",
    "a\u0301 \u00e1 \ufb01ne \u212b \u1e9e ßẞ İstanbul ΟΔΥΣΣΕΥΣ",
    "\u200bzero\u200dwidth\ufeff \u202eright to left\u202c",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☎️ 1️⃣",
    "\x00\x01\x1b[31m control \x7f\x85",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ½ ² Ⅷ ١٢٣",
    "https://example.com/a_b?c=%20&amp;d=1#e-f IMG_0001.JPG",
    "one,two;three.four!five?(six)[seven]{eight}<nine>/ten\\",
    "- -- --- … ... ?! !!! $$$ 100% #1 @you ~^|`",
    "ภาษาไทย ខ្មែរ हिन्दी தமிழ் 한국어 日本語 中文 עברית العربية",
    "\U0010ffff \ue000 \ufffd \u0378",
    "",
    " ",
)


@pytest.fixture(scope="module")
def texts():
    """Names of emoji in many languages, hostile texts, and mixtures of both."""
    for language in LANGUAGES:
        emoji.config.load_language(language)
    names = [
        f"{sign} {data[language].strip(':').replace('_', ' ')}"
        for sign, data in emoji.EMOJI_DATA.items()
        for language in LANGUAGES
        if language in data
    ]
    draw = random.Random(0)
    made = [*HOSTILE, *draw.sample(names, 5_000)]
    simple, characters = list(made), "".join(made)
    while len(made) < 8_000:
        made.append(" ".join(draw.choices(simple, k=draw.randint(2, 12))))
    while len(made) < 10_000:
        made.append("".join(draw.choices(characters, k=draw.randint(1, 200))))
    # A text that spells a mark gives it in open_clip, and never here.
    return [text for text in made if "of_text>" not in text and "<|" not in text]


@pytest.fixture(scope="module")
def ours(open_clip):
    return tokenizers.load("clip")


def test_ids_are_open_clip_s(texts, ours, open_clip):
    theirs = open_clip.get_tokenizer("ViT-B-32")(texts).numpy()
    found, _ = ours(texts, 77)
    different = [n for n in range(len(texts)) if (found[n] != theirs[n]).any()]
    assert not different, [texts[n] for n in different[:5]]


def test_ids_of_cleaned_texts_are_transformers(texts, ours, open_clip, tmp_path):
    """transformers leaves out CLIP's repair of broken encodings and entities."""
    theirs = transformers.CLIPTokenizer(
        vocab=json.loads(ours.to_json())["model"]["vocab"]
        | {"<|startoftext|>": ours.bos_id, "<|endoftext|>": ours.eos_id},
        merges=[tuple(pair) for pair in json.loads(ours.to_json())["model"]["merges"]],
    )
    cleaned = [tokenizers.clean(text) for text in texts]
    encoded = theirs(cleaned, padding="max_length", max_length=77, truncation=True)
    want = np.array(encoded["input_ids"])
    found, _ = ours(cleaned, 77)
    for n, text in enumerate(cleaned):
        length = int(np.argmax(found[n] == ours.eos_id)) + 1
        # transformers pads with the end mark, CLIP with 0.
        assert (want[n, length:] == ours.eos_id).all(), text
        assert (found[n, length:] == 0).all(), text
        np.testing.assert_array_equal(found[n, :length], want[n, :length], text)


def test_an_unigram_tokenizer_s_ids_are_transformers(texts, tmp_path):
    """XLM-V's kind: begin, pieces, end, padding 1."""
    model = rust.Tokenizer(rust.models.Unigram())
    model.pre_tokenizer = rust.pre_tokenizers.Metaspace()
    model.normalizer = rust.normalizers.NFKC()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = rust.trainers.UnigramTrainer(
        vocab_size=2_000, special_tokens=marks, unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(texts[:2_000], trainer)
    path = tmp_path / "tokenizer.json"
    path.write_text(model.to_str())
    ours = tokenizers.load(path)
    assert (ours.bos_id, ours.pad_id, ours.eos_id) == (0, 1, 2)
    for name, content in ours.to_huggingface(77).items():
        (tmp_path / name).write_text(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = theirs(texts, padding="max_length", max_length=77, truncation=True)
    found, _ = ours(texts, 77)
    np.testing.assert_array_equal(found, encoded["input_ids"])
