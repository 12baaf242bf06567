"""Downloads images: many at once, politely, within bounds, and always to an end.

URLs come from strangers' pages, so no request may reach a private network: addresses
are checked where sockets are made, after names are resolved and on each redirect.
Tests and the quick start serve a fixed host name from loopback by pinning it.
"""

import asyncio
import contextlib
import errno
import functools
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import ada_url
import aiohttp
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from yarl import URL

from data_prep.images import addresses, heads

OK = "ok"

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = (80, 443)
# Header words by which owners keep images out of training sets.
_OPT_OUTS = frozenset({"noai", "noimageai", "noml"})
# What may be better next time. A timeout is not: it has used up its time.
_RETRIED = frozenset({"http_429", "http_5xx", "connection", "dns", "truncated_body"})
_MAX_RETRY_AFTER_SECONDS = 60.0
_CHUNK_BYTES = 64 * 1024
_RESOLVER_THREADS = 64
# Errors of this machine, which say nothing about the image.
_LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Fetched(NamedTuple):
    """One result: the position in `urls`, "ok" or the reason, and the body if ok."""

    position: int
    status: str
    body: bytes


def fetch(
    urls: Sequence[str],
    *,
    host_map: Mapping[str, str],
    concurrency: int,
    per_host: int,
    timeout_seconds: float,
    max_bytes: int,
    retries: int,
    user_agent: str,
    backoff_seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Fetched]:
    """Fetches URLs and yields one result for each, in the order they finish.

    At most 2 * `concurrency` bodies are held; a slow consumer slows the downloads.
    Leaving the loop early (or `close()`) ends all downloads.

    Args:
      urls: absolute http(s) URLs.
      host_map: host name -> "address:port". A pinned host is reached there and
        nowhere else, private or not; any other host only at public addresses and on
        ports 80 and 443.
      concurrency: requests in flight, over all hosts.
      per_host: requests in flight to one host (redirects are not counted).
      timeout_seconds: for one attempt in all, redirects and body included.
      max_bytes: of a body, after decompression.
      retries: further attempts after a busy server (429, 5xx) or a lost connection.
      user_agent: the User-Agent header.
      backoff_seconds: wait before the first retry; it doubles each time. A server's
        Retry-After counts where it asks for more, up to a minute.
      progress: called with (results so far, all URLs) at each result.

    Yields:
      `Fetched` with status "ok" or one of bad_url, not_http, port_refused, dns,
      private_address, connection, tls, timeout, redirect_limit, too_large, empty_body,
      truncated_body, bad_http, opted_out (an X-Robots-Tag header with noai, noimageai
      or noml), http_404 and its like, http_5xx.

    Raises:
      RuntimeError: this machine ran out of files or memory for sockets.
    """
    pinned = addresses.parse_host_map(host_map)
    results: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
    room = asyncio.Semaphore(2 * concurrency)  # released as results are taken

    async def run() -> None:
        async with _session(pinned, user_agent) as session:
            await _fetch_all(
                urls,
                functools.partial(
                    _attempt,
                    session,
                    pinned=pinned,
                    timeout_seconds=timeout_seconds,
                    max_bytes=max_bytes,
                ),
                results=results,
                room=room,
                concurrency=concurrency,
                per_host=per_host,
                retries=retries,
                backoff_seconds=backoff_seconds,
            )

    with _running(run, results) as loop:
        for done in range(1, len(urls) + 1):
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            loop.call_soon_threadsafe(room.release)
            if progress is not None:
                progress(done, len(urls))
            yield result


def _session(
    pinned: Mapping[str, tuple[str, int]], user_agent: str
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=heads.Connector(
            limit=0,  # the semaphores bound it; waiting here would count as timeout
            resolver=addresses.Resolver(pinned),
            socket_factory=addresses.socket_factory(set(pinned.values())),
            keepalive_timeout=1.0,  # idle connections to many hosts eat descriptors
        ),
        cookie_jar=aiohttp.DummyCookieJar(),  # a status must not hang on another
        headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
        timeout=aiohttp.ClientTimeout(total=None),  # one clock: asyncio.timeout
        trust_env=False,  # a proxy would connect in our place, unchecked
        max_field_size=heads.MAX_HEAD_BYTES,
        max_headers=heads.MAX_HEAD_BYTES,
    )


@contextlib.contextmanager
def _running(
    main: Callable[[], Coroutine[Any, Any, None]],
    results: queue.SimpleQueue[Fetched | BaseException],
) -> Iterator[asyncio.AbstractEventLoop]:
    """Runs `main` in a thread of its own, so that no consumer stalls its clock.

    What it raises goes into `results`. Leaving the block early cancels it.
    """
    loop = asyncio.new_event_loop()
    # getaddrinfo blocks a thread for each name; the default pool is too small for it.
    resolvers = ThreadPoolExecutor(_RESOLVER_THREADS, "resolve")
    loop.set_default_executor(resolvers)
    task = loop.create_task(main())

    def drive() -> None:
        try:
            loop.run_until_complete(task)
        except BaseExceptionGroup as group:
            results.put(group.exceptions[0])
        except (Exception, asyncio.CancelledError) as error:
            results.put(error)

    thread = threading.Thread(target=drive, name="download", daemon=True)
    thread.start()
    try:
        yield loop
    except BaseException:  # the consumer left early
        loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join()
        resolvers.shutdown(wait=False, cancel_futures=True)
        loop.close()


async def _fetch_all(
    urls: Sequence[str],
    attempt: Callable[[str], Any],
    *,
    results: queue.SimpleQueue[Fetched | BaseException],
    room: asyncio.Semaphore,
    concurrency: int,
    per_host: int,
    retries: int,
    backoff_seconds: float,
) -> None:
    """Works off one queue per host by up to `per_host` workers each."""
    in_flight = asyncio.Semaphore(concurrency)
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for index, url in enumerate(urls):
        waiting[_host_of(url)].append(index)

    async def work(indices: deque[int]) -> None:
        while indices:
            await room.acquire()
            if not indices:  # another worker of this host took the last one
                room.release()
                return
            index = indices.popleft()
            for retry in range(retries + 1):
                async with in_flight:
                    status, body, retry_after = await attempt(urls[index])
                if status not in _RETRIED or retry == retries:
                    break
                await asyncio.sleep(max(backoff_seconds * 2**retry, retry_after))
            results.put(Fetched(index, status, body))

    async with asyncio.TaskGroup() as group:
        # Round by round, so that no host gets all its requests in one burst.
        hosts = list(waiting.values())
        for worker in range(per_host):
            hosts = [indices for indices in hosts if len(indices) > worker]
            for indices in hosts:
                group.create_task(work(indices))


async def _attempt(
    session: aiohttp.ClientSession,
    url: str,
    *,
    pinned: Mapping[str, tuple[str, int]],
    timeout_seconds: float,
    max_bytes: int,
) -> tuple[str, bytes, float]:
    """Makes one attempt; returns status, body and the seconds of Retry-After."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _follow(session, url, pinned=pinned, max_bytes=max_bytes)
    except TimeoutError:
        return "timeout", b"", 0.0
    except aiohttp.ClientConnectorError as error:
        return _connection_reason(error), b"", 0.0
    except aiohttp.ClientSSLError:
        return "tls", b"", 0.0
    except aiohttp.ClientPayloadError as error:
        # An encoding that cannot be decoded comes as the cause of this error too.
        broken = isinstance(error.__cause__, ContentEncodingError)
        return ("bad_http" if broken else "truncated_body"), b"", 0.0
    except (aiohttp.ClientResponseError, HttpProcessingError):
        return "bad_http", b"", 0.0
    except ValueError:  # InvalidURL, and what odd URLs raise elsewhere
        return "bad_url", b"", 0.0
    except (aiohttp.ClientError, OSError) as error:
        _raise_if_local(error)
        return "connection", b"", 0.0


async def _follow(
    session: aiohttp.ClientSession,
    url: str,
    *,
    pinned: Mapping[str, tuple[str, int]],
    max_bytes: int,
) -> tuple[str, bytes, float]:
    """Requests a URL and follows its redirects, checking each of them alike."""
    hop = _read_url(url)
    for _ in range(_MAX_REDIRECTS + 1):
        reason = _url_reason(hop, pinned)
        if reason is not None:
            return reason, b"", 0.0
        async with session.get(hop, allow_redirects=False) as response:
            if _opted_out(response.headers.getall("X-Robots-Tag", [])):
                return "opted_out", b"", 0.0
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return await _receive(response, max_bytes)
            hop = _read_url(_escaped(location), str(hop))
    return "redirect_limit", b"", 0.0


async def _receive(
    response: aiohttp.ClientResponse, max_bytes: int
) -> tuple[str, bytes, float]:
    """Reads a body piece by piece, so that neither size nor gzip can fill memory."""
    if response.status != 200:
        server_error = 500 <= response.status < 600
        status = "http_5xx" if server_error else f"http_{response.status}"
        return status, b"", _retry_after(response.headers.get("Retry-After", ""))
    if (response.content_length or 0) > max_bytes:
        return "too_large", b"", 0.0
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            return "too_large", b"", 0.0
    return (OK if body else "empty_body"), bytes(body), 0.0


def _read_url(text: str, base: str | None = None) -> URL:
    """Reads a URL as browsers do (the URL standard), without its fragment.

    Escapes stay as they are written, since servers may have signed them. Raises
    ValueError where `text` is no URL.
    """
    href = ada_url.URL(text, base).href.partition("#")[0]
    scheme, _, rest = href.partition("://")
    authority, _, target = rest.partition("/")
    # The query goes with the path, since yarl drops the mark of an empty one.
    return URL.build(
        scheme=scheme, authority=authority, path=f"/{target}", encoded=True
    )


def _escaped(location: str) -> str:
    """Percent-encodes the bytes of a header that are not ASCII, whatever they mean."""
    raw = location.encode("utf-8", "surrogateescape")  # as aiohttp decoded it
    return "".join(chr(byte) if byte < 0x80 else f"%{byte:02X}" for byte in raw)


def _url_reason(url: URL, pinned: Mapping[str, tuple[str, int]]) -> str | None:
    """Returns why a URL is refused before any connection, None if it is not."""
    if url.scheme not in ("http", "https"):
        return "not_http"
    if not url.raw_host:
        return "bad_url"
    if url.raw_host in pinned:
        return None
    if url.port not in _PORTS:
        return "port_refused"
    with contextlib.suppress(ValueError):  # not a literal address: a name
        if not addresses.is_public(url.raw_host):
            return "private_address"
    return None


def _connection_reason(error: aiohttp.ClientConnectorError) -> str:
    _raise_if_local(error.os_error)
    if isinstance(error.os_error, addresses.PrivateAddressError):
        return "private_address"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError):
        return "tls"
    return "connection"


def _raise_if_local(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
        raise RuntimeError(
            f"this machine cannot open more sockets ({error}); lower the download "
            "concurrency or raise the limit of open files (ulimit -n)"
        ) from error


def _opted_out(robots_tags: Sequence[str]) -> bool:
    """Reads X-Robots-Tag headers like "noai, noindex" or "somebot: noai".

    A wish addressed to some bot counts for us too.
    """
    return any(
        word.rpartition(":")[2].strip().lower() in _OPT_OUTS
        for tag in robots_tags
        for word in tag.split(",")
    )


def _retry_after(header: str) -> float:
    """Returns the wait that a server asks for; its date form is not honoured."""
    try:
        return min(max(float(header), 0.0), _MAX_RETRY_AFTER_SECONDS)
    except ValueError:
        return 0.0


def _host_of(url: str) -> str:
    try:
        return _read_url(url).raw_host or ""
    except ValueError:
        return ""
