"""Asks the robots.txt of each host which images may be downloaded (RFC 9309)."""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from protego import Protego

from data_prep.images import request

DISALLOWED = "robots_disallowed"  # by the rules of the host
UNAVAILABLE = "robots_unavailable"  # the server failed; then nothing is allowed

MAX_BYTES = 500 * 1024  # of a robots.txt; RFC 9309 wants at least these read
_MAX_SECONDS = 24 * 3600.0  # that an answer may be used
_MAX_CACHED_BYTES = 32 << 20

_SERVER_FAILED = frozenset({"http_429", "http_5xx"})
# Also all other http_*: there is no robots.txt, so everything is allowed.
_NONE = frozenset({"redirect_limit", "empty_body"})
_MAX_PAUSE_SECONDS = 60.0  # between two requests
_NAME = re.compile(r"\s*user[- ]?agent\s*(?::|\s)([^#:]*)(?:#.*)?", re.I)


class Rules:
    """The robots.txt of origins, kept for later calls: the most recent 32 MiB."""

    def __init__(self) -> None:
        self._texts: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()
        self._size = 0

    def get(self, origin: str, product: str) -> str | None:
        """Returns what `relevant` left of a robots.txt; None if it is not known."""
        since, text = self._texts.get((origin, product), (0.0, None))
        return text if time.monotonic() - since < _MAX_SECONDS else None

    def put(self, origin: str, product: str, text: str) -> None:
        """Keeps what `relevant` left of a robots.txt."""
        _, old = self._texts.pop((origin, product), (0.0, ""))
        self._texts[origin, product] = time.monotonic(), text
        self._size += len(text) - len(old)
        while self._size > _MAX_CACHED_BYTES:
            _, (_, dropped) = self._texts.popitem(last=False)
            self._size -= len(dropped)


_RULES = Rules()  # of this process


class Verdict(NamedTuple):
    """What robots.txt says of URLs."""

    refused: dict[int, str]  # position -> reason
    pause_seconds: float = 0.0  # between two requests, 0 if it does not say


async def judge(
    urls: Mapping[int, str],
    ask: Callable[[str], Awaitable[request.Answer]],
    user_agent: str,
    rules: Rules = _RULES,
) -> Verdict:
    """Returns which URLs must not be fetched, and how often others may be.

    A robots.txt that does not exist (4xx) allows all. One whose server fails disallows
    all, with "robots_unavailable". Any other failure (dns, timeout, ...) becomes the
    status of the origin's images, which are not asked for.

    Args:
      urls: by position; what is no URL is left out.
      ask: fetches a robots.txt, at most its first MAX_BYTES.
      user_agent: its first word, without a version, is our name in a robots.txt.
      rules: those known already; new ones are added.
    """
    product = re.split(r"[\s/]", user_agent.lower())[0]
    by_origin: dict[str, dict[int, str]] = defaultdict(dict)
    for position, url in urls.items():
        with contextlib.suppress(ValueError):
            parsed = request.read_url(url)
            by_origin[str(parsed.origin())][position] = str(parsed)
    refused: dict[int, str] = {}
    pause_seconds = 0.0
    for origin, some in by_origin.items():
        text = rules.get(origin, product)
        if text is None:
            answer = await ask(f"{origin}/robots.txt")
            if reason := _refusal(answer.status):
                refused |= dict.fromkeys(some, reason)
                continue
            text = relevant(_decode(answer.body), product)
            rules.put(origin, product, text)
        if text:  # most hosts have none
            # In a thread: fifty thousand rules take milliseconds a URL.
            found = await asyncio.to_thread(_judged, text, some, product)
            refused |= found.refused
            pause_seconds = max(pause_seconds, found.pause_seconds)
    return Verdict(refused, pause_seconds)


def relevant(text: str, product: str) -> str:
    """Replaces the names of other crawlers in a robots.txt by one.

    The parser's memory grows with the number of names times the number of rules.
    """
    lines = text.splitlines()
    for index, line in enumerate(lines):
        name = _NAME.fullmatch(line)
        if name and name[1].strip().lower().replace("*", "") not in product:
            lines[index] = "user-agent: another crawler"
    return "\n".join(lines)


def _judged(text: str, urls: Mapping[int, str], product: str) -> Verdict:
    rules = Protego.parse(text)
    refused = {
        position: DISALLOWED
        for position, url in urls.items()
        if not rules.can_fetch(url, product)
    }
    return Verdict(refused, _pause_seconds(rules, product))


def _pause_seconds(rules: Protego, product: str) -> float:
    """Returns the larger one of Crawl-delay and Request-rate, up to a minute."""
    asked = [rules.crawl_delay(product) or 0.0]
    if (rate := rules.request_rate(product)) and rate.requests > 0:
        asked.append(rate.seconds / rate.requests)
    # nan is no number to wait.
    return max(min(one, _MAX_PAUSE_SECONDS) if one > 0 else 0.0 for one in asked)


def _decode(body: bytes) -> str:
    if len(body) >= MAX_BYTES:  # the last line may have lost its end
        body = body[: body.rfind(b"\n") + 1]
    return body.decode("utf-8-sig", "replace")


def _refusal(status: str) -> str | None:
    """Returns why an origin may not be read, by the status of its robots.txt."""
    if status in _SERVER_FAILED:
        return UNAVAILABLE
    if status == request.OK or status in _NONE or status.startswith("http_"):
        return None
    return status
