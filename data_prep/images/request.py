"""Requests one image: returns its body, or the reason why there is none."""

import asyncio
import contextlib
import datetime
import email.utils
import errno
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import ada_url
import aiohttp
from absl import logging
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from data_prep.images import addresses, heads

OK = "ok"
NO_ROOM = "no_room"  # `grow` refused; retry with a larger budget

Pinned = Mapping[str, tuple[str, int]]
# Returns why a URL must not be requested, None if it may be.
Refusal = Callable[[URL], Awaitable[str | None]]

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = (80, 443)
# X-Robots-Tag values by which owners opt out of training sets.
_OPT_OUTS = frozenset({"noai", "noimageai", "noml"})
_MAX_RETRY_AFTER_SECONDS = 60.0
_CHUNK_BYTES = 64 * 1024
# Errors of this machine, not of the image.
_LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Answer(NamedTuple):
    """The result of one attempt."""

    status: str  # "ok" or the reason
    body: bytes = b""  # empty unless ok
    retry_after: float = 0.0  # seconds that the server asks to wait
    code: int = 0  # HTTP's status, 0 if there was no whole answer


@dataclass(frozen=True)
class Limits:
    """What downloads are allowed to do; the keys of `config.download`.

    Attributes:
      host_map: "host=address:port,...". A pinned host is reached only there, private
        or not; any other host only at public addresses on ports 80 and 443.
      concurrency: requests in flight, over all hosts.
      per_host, per_host_rate: images of a host that all processes of this machine
        fetch at once, and begin to fetch in a second (0: any).
      timeout_seconds: for one attempt in all, redirects and body included.
      max_bytes: of a body, after decompression.
      max_held_bytes: of all bodies at any time; at least (`held` + 1) * `max_bytes`.
      retries: further attempts after a busy server (429, 5xx) or a lost connection.
      user_agent: the User-Agent header; its first word is our name in a robots.txt.
      robots_txt: ask the robots.txt of each host first, also of those that a redirect
        names, and obey it; its Crawl-delay and Request-rate too, up to a minute.
      held: bodies that the caller holds at the same time, that last yielded included.
      backoff_seconds: wait before the first retry; it doubles each time, up to a
        minute. A longer Retry-After of the server is obeyed, up to a minute.
    """

    host_map: str
    concurrency: int
    per_host: int
    timeout_seconds: float
    max_bytes: int
    max_held_bytes: int
    retries: int
    user_agent: str
    per_host_rate: float = 0.0
    robots_txt: bool = False
    held: int = 1
    backoff_seconds: float = 0.5


def session(pinned: Pinned, user_agent: str) -> aiohttp.ClientSession:
    """Returns a session that connects to public and pinned addresses only."""
    return aiohttp.ClientSession(
        connector=heads.Connector(
            limit=0,  # the caller limits it; waiting here would count as timeout
            resolver=addresses.Resolver(pinned),
            socket_factory=addresses.socket_factory(set(pinned.values())),
            keepalive_timeout=1.0,  # idle connections to many hosts use up descriptors
        ),
        cookie_jar=aiohttp.DummyCookieJar(),  # requests must not affect each other
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None),  # one clock: asyncio.timeout
        trust_env=False,  # a proxy would connect without our address checks
        max_field_size=heads.MAX_HEAD_BYTES,
        max_headers=heads.MAX_HEAD_BYTES,
    )


async def attempt(
    session: aiohttp.ClientSession,
    url: str,
    limits: Limits,
    *,
    pinned: Pinned,
    grow: Callable[[int], bool],
    cut: int = 0,
    refusal: Refusal | None = None,
) -> Answer:
    """Makes one attempt; returns an Answer whatever the server does.

    Redirects are followed, with the same checks for each.

    Args:
      session: from `session`.
      url: absolute http(s) URL.
      limits: in time and bytes.
      pinned: address and port of hosts that are reached only there.
      grow: called with the bytes of the body so far; if it returns False, the status
        is NO_ROOM.
      cut: take the first `cut` bytes of a longer body. 0: one of more than
        `limits.max_bytes` is too_large.
      refusal: asked for each URL that a redirect names.

    Raises:
      RuntimeError: this machine ran out of files or memory for sockets.
    """
    try:
        async with asyncio.timeout(limits.timeout_seconds):
            hop = read_url(url)
            for redirects in range(_MAX_REDIRECTS + 1):
                reason = _url_reason(hop, pinned)
                if reason is None and redirects and refusal is not None:
                    reason = await refusal(hop)
                if reason is not None:
                    return Answer(reason)
                async with session.get(hop, allow_redirects=False) as response:
                    if _opted_out(response.headers):
                        return Answer("opted_out", code=response.status)
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or not location:
                        return await _receive(response, limits.max_bytes, grow, cut)
                    hop = read_url(_escaped(location), str(hop))
            return Answer("redirect_limit")
    except Exception as error:
        return Answer(_reason(error, url))


def host_of(url: str) -> str:
    """Returns the host name of a URL in ASCII, "" if it has none."""
    try:
        return read_url(url).raw_host or ""
    except ValueError:
        return ""


async def _receive(
    response: aiohttp.ClientResponse,
    max_bytes: int,
    grow: Callable[[int], bool],
    cut: int,
) -> Answer:
    """Reads a body in pieces, so that neither size nor gzip can fill the memory."""
    code = response.status
    if code != 200:
        status = "http_5xx" if 500 <= code < 600 else f"http_{code}"
        wait = seconds_to_wait(response.headers.get("Retry-After", ""))
        return Answer(status, retry_after=wait, code=code)
    most = cut or max_bytes
    body, length = bytearray(), response.content_length or 0
    if length > most and not cut:
        return Answer("too_large", code=code)
    if not grow(min(length, most)):
        return Answer(NO_ROOM)
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        if len(body) + len(chunk) > most and not cut:
            return Answer("too_large", code=code)
        if not grow(min(len(body) + len(chunk), most)):
            return Answer(NO_ROOM)
        body += chunk[: most - len(body)]
        if len(body) == cut:
            break
    return Answer(OK if body else "empty_body", bytes(body), code=code)


def read_url(text: str, base: str | None = None) -> URL:
    """Parses a URL as browsers do (the URL standard), without its fragment.

    Escapes stay unchanged, since servers may have signed them. Raises ValueError if
    `text` is no URL.
    """
    href = ada_url.URL(text, base).href.partition("#")[0]
    scheme, _, rest = href.partition("://")
    authority, _, target = rest.partition("/")
    # The query is kept in the path, since yarl drops the "?" of an empty query.
    return URL.build(
        scheme=scheme, authority=authority, path=f"/{target}", encoded=True
    )


def _escaped(location: str) -> str:
    """Percent-encodes the non-ASCII bytes of a header, in any charset."""
    raw = location.encode("utf-8", "surrogateescape")  # as aiohttp decoded it
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in raw)


def _url_reason(url: URL, pinned: Pinned) -> str | None:
    """Returns why a URL is refused before connecting, None if it is allowed."""
    if url.scheme not in ("http", "https"):
        return "not_http"
    if not url.raw_host:
        return "bad_url"
    if url.raw_host in pinned:
        return None
    if url.port not in _PORTS:
        return "port_refused"
    with contextlib.suppress(ValueError):  # a name, not an address
        if not addresses.is_public(url.raw_host):
            return "private_address"
    return None


# Why a request failed; the first row that fits counts.
_REASONS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientConnectorError, "connection"),
    (aiohttp.ClientPayloadError, "truncated_body"),
    ((aiohttp.ClientResponseError, HttpProcessingError), "bad_http"),
    (ValueError, "bad_url"),  # in the page or in a redirect
    ((aiohttp.ClientError, OSError), "connection"),
)


def _reason(error: Exception, url: str) -> str:
    """Returns why a request failed; raises an error of this machine."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in _LOCAL_ERRORS:
        raise RuntimeError(
            f"wanted another socket, got {cause}; lower config.download.concurrency or "
            "raise the limit of open files (ulimit -n)"
        ) from error
    if isinstance(error, MemoryError):
        raise error
    if isinstance(cause, addresses.PrivateAddressError):
        return "private_address"
    # A body that cannot be decoded also is a ClientPayloadError.
    if isinstance(error.__cause__, ContentEncodingError):
        return "bad_http"
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return reason
    # A bug of aiohttp with this answer must not stop the other downloads.
    logging.error("unexpected error while fetching %s", url, exc_info=error)
    return "bad_http"


def _opted_out(headers: CIMultiDictProxy[str]) -> bool:
    """Whether headers opt out: X-Robots-Tag or tdm-reservation.

    X-Robots-Tag is like "noai, noindex" or "somebot: noai"; an opt-out for any bot
    counts for us too. "tdm-reservation: 1" reserves the rights of text and data mining
    (the W3C community group's TDM Reservation Protocol).
    """
    return "1" in headers.getall("tdm-reservation", []) or any(
        word.rpartition(":")[2].strip().lower() in _OPT_OUTS
        for tag in headers.getall("X-Robots-Tag", [])
        for word in tag.split(",")
    )


def seconds_to_wait(header: str) -> float:
    """Returns the seconds of a Retry-After header, which may name a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
            seconds = date.timestamp() - datetime.datetime.now().timestamp()
        except (ValueError, OverflowError):
            return 0.0
    # A server may also send nan, which no clock can wait for.
    return min(seconds, _MAX_RETRY_AFTER_SECONDS) if seconds > 0 else 0.0
