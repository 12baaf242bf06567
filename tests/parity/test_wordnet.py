"""All names of WordNet 3.0 as nltk's reader gives them."""

import shutil
import warnings
from collections import Counter
from pathlib import Path

import nltk
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import FileSystemPathPointer

from data_prep.metadata import wordnet

DEBIAN = Path("/usr/share/wordnet")  # of the package wordnet-base


def _by_nltk(tmp_path, monkeypatch):
    # It opens only what lies where its data is installed, and asks for two files that
    # Debian leaves out: the kinds of synsets, and an index of senses.
    installed = tmp_path / "corpora/wordnet"
    installed.mkdir(parents=True)
    for path in DEBIAN.iterdir():
        if path.is_file():
            shutil.copy(path, installed)
    kinds = [f"{number:02}\t{number}\t1\n" for number in range(45)]
    (installed / "lexnames").write_text("".join(kinds))
    (installed / "index.sense").touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with warnings.catch_warnings(action="ignore"):  # that it has no other language
        reader = WordNetCorpusReader(FileSystemPathPointer(str(installed)), None)
    first_lemmas = [synset.lemma_names()[0] for synset in reader.all_synsets()]
    return Counter(lemma.lower().replace("_", " ") for lemma in first_lemmas)


@pytest.mark.slow
def test_all_names_of_wordnet_are_those_of_nltks_reader(tmp_path, monkeypatch):
    if not DEBIAN.exists():
        pytest.skip("no /usr/share/wordnet: apt-get install wordnet-base")
    lost = Counter()
    paths = wordnet.find(str(DEBIAN), "en")
    names = sum((wordnet.read_names(path, lost=lost) for path in paths), Counter())
    assert not lost
    assert len(names) == 86_571
    assert names == _by_nltk(tmp_path, monkeypatch)
