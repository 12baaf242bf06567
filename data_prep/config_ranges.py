"""The values that each key of data_prep/config.py may have.

`Range` lists the forms of a row. A test fails if a key has no row. Rules between keys
are in `_curate_rules` and `_metadata_rules` of data_prep/config.py.
"""

from metaclip_jax.cli.ranges import Range


def _kinds() -> tuple[str, ...]:
    from data_prep.sources import kinds  # a slow import, which recipes do not need

    return tuple(kinds.KINDS)


_COUNT = Range(int, least=1)
_COUNT_OR_NONE = Range(int, least=0)
_SHARE = Range(float, above=0, most=1)
_CODE = Range(str, pattern="[a-z]+(_[a-z]+)*", form="a code such as 'zh_yue'")
_COLUMN = Range(str, pattern=r"(?s).+", form="the name of a column")
_PATH = Range(str, pattern=r"(?s).*\S.*", form="a path or glob", also=(None,))
_PROMPT = Range(str, pattern=r"(?s).*\S.*", form="a prompt")
_GLOB = Range(str, pattern=r"(?s).*\S.*", form="a folder or glob")
_USER_AGENT = Range(
    str,
    pattern="[!-~]([ -~]*[!-~])?",
    form="your name in printable ASCII, such as 'my-crawler me@my.example'",
)

_PAGES: dict[str, Range] = {
    "pages.max_page_bytes": _COUNT,
    "pages.max_tree_bytes": _COUNT,
    "pages.max_texts_per_page": _COUNT,
    "pages.max_text_chars": _COUNT,
    "pages.max_url_chars": _COUNT,
}

METADATA_RANGES: dict[str, Range] = {
    "languages": Range(tuple, each=_CODE),
    "max_synsets": _COUNT_OR_NONE,
    "unigram_min_count": _COUNT,
    "max_unigrams": _COUNT_OR_NONE,
    "unigram_share": _SHARE,
    "bigram_score": Range(str, choices=("pmi", "worldwide")),
    "bigram_min_score": Range(float),
    "bigram_min_count": _COUNT,
    "max_bigrams": _COUNT_OR_NONE,
    "bigrams_per_unigram": Range(float, least=0, also=(None,)),
    "title_min_views": _COUNT_OR_NONE,
    "max_titles": _COUNT_OR_NONE,
    "title_share": _SHARE,
    "matching_mode": Range(str, choices=("any", "v1", "v2", "fixed")),
    "memory_gib": Range(float, above=0),
    **_PAGES,
    "download.user_agent": _USER_AGENT,
}

CURATE_RANGES: dict[str, Range] = {
    # TFDS needs this form, and file systems limit the length of a name.
    "name": Range(
        str,
        pattern="[a-z][a-z0-9_]{0,99}",
        form="a letter a to z, then letters a to z, digits and _ (100 in all at most)",
    ),
    "seed": Range(int, least=0, most=2**32 - 1),
    "source.kind": Range(str, choices=_kinds),
    "source.paths": _PATH,
    "source.prefix": Range(str),
    "source.url_column": Range(str),
    "source.image_column": Range(str),
    "source.text_columns": Range(tuple, each=_COLUMN),
    "source.language_column": Range(str),
    "source.page_column": Range(str),
    "source.score_columns": Range(tuple, each=_COLUMN),
    "source.page_texts": Range(
        tuple,
        each=Range(
            str,
            choices=("alt", "title", "data-image-title", "figcaption", "aria-label"),
        ),
    ),
    "source.prefer_larger": Range(bool),
    "source.header": Range(tuple, each=_COLUMN),
    "selection.exclude": Range(tuple, each=_GLOB),
    "selection.scores": Range(tuple, each=_GLOB),
    "selection.score": Range(str),
    "selection.least_score": Range(float, also=(None,)),
    "selection.top_share": _SHARE,
    "safety.words": _PATH,
    "safety.image_scorer": Range(
        str,
        pattern=r"(opennsfw|clip|[\w.]+:\w+)?",
        form="'', 'opennsfw', 'clip' or 'package.module:name'",
    ),
    "safety.clip_model": Range(
        str, pattern=r"(?s).*\S.*", form="a folder or a name on the hub", also=(None,)
    ),
    "safety.unsafe_prompts": Range(tuple, each=_PROMPT),
    "safety.safe_prompts": Range(tuple, each=_PROMPT),
    "safety.max_image_score": Range(float, least=0, most=1),
    "safety.face_detector": Range(
        str,
        pattern=r"(yuface|[\w.]+:\w+)?",
        form="'', 'yuface' or 'package.module:name'",
    ),
    "safety.least_face_score": Range(float, least=0, most=1),
    "safety.blur_faces": Range(bool),
    "metadata": _PATH,
    "sources_per_part": _COUNT,
    "memory_gib": Range(float, least=0),
    "partitions": Range(int, least=1, most=999_999),
    **_PAGES,
    "matching.mode": Range(str, choices=("v1", "v2", "fixed", "none")),
    "matching.engine": Range(str, choices=("numba", "pyahocorasick")),
    "language.identifier": Range(
        str,
        pattern=r"lid176|lingua|[\w.]+:\w+",
        form="'lid176', 'lingua' or 'package.module:name'",
    ),
    "sample_images": _COUNT_OR_NONE,
    "balance.rule": Range(str, choices=("v1", "v2", "online")),
    "balance.t": _COUNT_OR_NONE,
    "balance.tail_share": Range(float, least=0, most=1),
    "balance.slack": Range(float, least=1),
    "balance.prefer_high_scores": Range(bool),
    "download.host_map": Range(
        str,
        pattern=r"([^\s=,]+=[^\s=,]+:\d{1,5}(,|$))*",
        form="HOST=ADDRESS:PORT,... such as 'images.example=127.0.0.1:8000'",
    ),
    "download.user_agent": _USER_AGENT,
    "download.robots_txt": Range(bool),
    "download.concurrency": Range(int, least=1, most=65_535),
    "download.per_host": _COUNT,
    "download.per_host_rate": Range(float, least=0),
    "download.timeout_seconds": Range(float, above=0, most=86_400),
    "download.retries": Range(int, least=0, most=10),  # each waits twice as long
    "download.max_bytes": _COUNT,
    "download.max_held_bytes": _COUNT,
    "download.max_failed_share": Range(float, least=0, most=1),
    "images.min_side": _COUNT,
    "images.max_side": Range(int, least=1, most=65_500),  # JPEG's limit
    "images.max_aspect": Range(float, least=1),
    "images.max_pixels": _COUNT,
    "images.max_moved_texts": _COUNT_OR_NONE,
    "duplicates.near_bits": Range(int, least=0, most=80),
    "duplicates.placeholder_texts": _COUNT_OR_NONE,
    "duplicates.evaluation_sets": Range(tuple, each=_GLOB),
    "duplicates.evaluation_bits": Range(int, least=0, most=80),
    "duplicates.embeddings": Range(tuple, each=_GLOB),
    "duplicates.evaluation_embeddings": Range(tuple, each=_GLOB),
    "duplicates.near_cosine": Range(float, least=0, most=1),
    "duplicates.evaluation_cosine": Range(float, least=0, most=1),
}
