"""Every curation key: its unit, its default, one comment each.

Recipes in configs/ are short diffs of these and are loaded by path:

    from data_prep import config as config_lib

    def get_config():
        config = config_lib.curate()
        config.balance.t = 20_000
        return config
"""

from ml_collections import ConfigDict, config_dict


def _locked(values: dict) -> ConfigDict:
    """Locked: a mistyped key is an error that names the nearest one."""
    return ConfigDict(values).lock()


def _pages() -> dict:
    """Limits on what a page may cost us: it comes from a stranger."""
    return {
        "max_page_bytes": 4 << 20,  # bytes of HTML; a larger page is dropped
        "max_texts_per_page": 10_000,  # texts of one page beyond this are dropped
        "max_text_chars": 2_000,  # characters; longer texts are dropped
        "max_url_chars": 2_048,  # characters; longer image URLs are dropped
    }


def metadata() -> ConfigDict:
    """Keys of `python -m data_prep.build_metadata`."""
    return _locked(
        {
            "warc": config_dict.placeholder(str),  # glob of the WARC files to read
            "pageviews": config_dict.placeholder(str),  # Wikimedia page view file
            "languages": ("en",),  # one metadata each; others are not built
            "unigram_min_count": 100,  # occurrences (paper, Table 1: 100)
            "max_unigrams": 251_465,  # entries (paper, Table 1)
            # Nats. The paper's 30 (Table 1) is on a scale it does not give: in nats
            # PMI stays below ln(tokens / min_count), about 20 on Wikipedia. So this
            # drops chance pairs, and max_bigrams makes the cut.
            "bigram_min_pmi": 3.0,
            "bigram_min_count": 5,  # occurrences; PMI of rarer pairs is noise
            "max_bigrams": 100_646,  # entries (paper, Table 1)
            "title_min_views": 70,  # views (paper, Table 1: 70)
            "max_titles": 61_235,  # entries (paper, Table 1)
            "pages": _pages(),
        }
    )


def curate() -> ConfigDict:
    """Keys of `python -m data_prep.curate`."""
    return _locked(
        {
            "name": "metaclip",  # of the dataset: the files' first word
            "seed": 0,  # of every draw
            "warc": config_dict.placeholder(str),  # glob of the WARC files to read
            "metadata": config_dict.placeholder(str),  # folder, or a JSON list
            # Partitions by image: one file shard each. About records / 20,000,
            # since reading one record slows down with the size of its file.
            "partitions": 1,
            "pages": _pages(),
            "matching": {
                "mode": "v1",  # v1 (MetaCLIP 1), v2 (MetaCLIP 2) or fixed
                "engine": "numba",  # numba, or pyahocorasick (the reference)
            },
            "language": {
                # lid176, or package.module:name of what makes an identifier.
                "identifier": "lid176",
            },
            # Images whose texts are kept aside for `data_prep.explain`.
            "sample_images": 1_000_000,
            "balance": {
                # v1: every text is drawn by itself. v2: one text of each image.
                # online: nothing is dropped, the trainer balances as it reads.
                "rule": "v1",
                "t": 20_000,  # accepted draws an entry; 0: from tail_share
                "tail_share": 0.06,  # tail's part of all matches, used where t = 0
                # Texts are thinned at slack * t before the download: what may be
                # lost there without starving an entry.
                "slack": 1.5,
            },
            "download": {
                # host=address:port,... for hosts that are not in the DNS.
                "host_map": "",
                "user_agent": "metaclip-jax",  # say who you are, with an address
                "concurrency": 256,  # requests in flight in one worker
                "per_host": 16,  # of them to one host
                "timeout_seconds": 20.0,  # for one image, all redirects included
                "retries": 2,  # after connection errors, 429 and 5xx
                "max_bytes": 20 << 20,  # bytes of one image
            },
            "images": {
                "min_side": 32,  # pixels; smaller images are dropped
                "max_side": 512,  # pixels; larger images are scaled down to it
                "max_aspect": 4.0,  # longer side / shorter side
                "max_pixels": 50_000_000,  # before scaling; a bomb above it
            },
        }
    )
