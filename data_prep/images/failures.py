"""Failed downloads: when they are too many, what to do, which to retry."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from absl import logging

_LEAST_IMAGES = 100  # with fewer, any share of failures is allowed

# By reason: what the user can do, and whether a retry may succeed.
_CURES = {
    "dns": "host names were not found; check this machine's DNS, or give the hosts in "
    "config.download.host_map",
    "connection": "servers could not be reached; check that they run and that the "
    "network lets you out, or give the hosts in config.download.host_map",
    "timeout": "servers were too slow; raise config.download.timeout_seconds or lower "
    "config.download.concurrency",
    "private_address": "hosts have addresses inside a network, where no URL of a page "
    "may lead; give hosts that you serve yourself in config.download.host_map",
    "port_refused": "URLs name other ports than 80 and 443; give hosts that you serve "
    "yourself in config.download.host_map",
    "tls": "certificates were refused; check this machine's clock and its certificates",
    "truncated_body": "bodies ended early; check the network and its proxies",
    "bad_http": "answers were not HTTP; check the network and its proxies",
    "robots_unavailable": "servers did not give their robots.txt; try again later",
    "http_401": "servers want you to log in",
    "http_403": "servers refuse you; say who you are in config.download.user_agent",
    "http_407": "a proxy wants you to log in",
    "http_408": "servers were not answered in time; lower config.download.concurrency",
    "http_425": "servers want to be asked later",
    "http_429": "servers are asked too often; lower config.download.per_host",
    "http_5xx": "servers are broken or busy; lower config.download.per_host",
}
_FINAL_CURES = {
    "missing_file": "files of the source are gone; restore them",
    "damaged_file": "files of the source are cut off; restore them",
    "http_404": "the images are gone; are the pages old?",
    "http_410": "the images are gone; are the pages old?",
    "too_large": "raise config.download.max_bytes",
}
# An owner's refusal is no failure.
_NO_FAILURES = ("ok", "opted_out", "robots_disallowed")


def outcomes(images: pa.Table) -> dict[str, int]:
    """Returns the number of images by download status.

    Args:
      images: IMAGES with `stage`; images dropped by screening count as "ok".
    """
    status = pc.if_else(pc.equal(images["stage"], "download"), images["status"], "ok")
    found = pc.value_counts(status).to_pylist()
    return {one["values"]: one["counts"] for one in found}


def share(found: Mapping[str, int]) -> float:
    """Returns the share of images whose download failed; 0 if there are no images."""
    failed = sum(n for status, n in found.items() if status not in _NO_FAILURES)
    return failed / max(sum(found.values()), 1)


def too_many(found: Mapping[str, int], max_share: float) -> bool:
    """Whether more than `max_share` of the images failed.

    False for fewer than 100 images.
    """
    return sum(found.values()) >= _LEAST_IMAGES and share(found) > max_share


def describe(found: Mapping[str, int]) -> str:
    """Returns how many images failed, the most frequent reason, and its cure."""
    failed = {k: n for k, n in found.items() if k not in _NO_FAILURES}
    reason, count = max(failed.items(), key=lambda item: (item[1], item[0]))
    cure = (_CURES | _FINAL_CURES).get(reason, "")
    return (
        f"{sum(failed.values()):,} of {sum(found.values()):,} images could not be "
        f"downloaded, most with {reason} ({count:,}){': ' + cure if cure else ''}"
    )


class Watch:
    """Logs one warning, as soon as too many downloads of a part have failed."""

    def __init__(self, part: str, max_share: float) -> None:
        self._part, self._max_share = part, max_share
        self._found: Counter = Counter()
        self._warned = False

    def __call__(self, status: str) -> None:
        """Counts a download."""
        self._found[status] += 1
        if not self._warned and too_many(self._found, self._max_share):
            self._warned = True
            logging.warning("%s: so far, %s", self._part, describe(self._found))


def any_to_retry(found: Mapping[str, int]) -> bool:
    """Whether any download failed for a reason that may be temporary."""
    return not _CURES.keys().isdisjoint(found)


def to_retry(images: pa.Table) -> pa.ChunkedArray:
    """Returns bool[rows]: downloads that failed for a reason that may be temporary."""
    lost = pc.equal(images["stage"], "download")
    return pc.and_(lost, pc.is_in(images["status"], pa.array(list(_CURES))))
