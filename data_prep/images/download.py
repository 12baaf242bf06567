"""Downloads images: many at once, politely, within bounds, and always to an end.

URLs come from strangers' pages, so no request may reach a private network: addresses
are checked where sockets are made, after names are resolved and on each redirect.
Tests and the quick start serve a fixed host name from loopback by pinning it.
"""

import asyncio
import contextlib
import functools
import queue
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from data_prep.images import addresses, request

OK = request.OK

# What may be better next time. A timeout is not: it has used up its time.
_RETRIED = frozenset({"http_429", "http_5xx", "connection", "dns", "truncated_body"})
_MAX_BACKOFF_SECONDS = 60.0
_RESOLVER_THREADS = 64


class Fetched(NamedTuple):
    """One result: the position in `urls`, "ok" or the reason, and the body if ok."""

    position: int
    status: str
    body: bytes


class _Result(NamedTuple):
    fetched: Fetched
    bytes: int  # of room, left when the caller takes the body


class Room:
    """Bytes that bodies may take up, given out in the order of asking."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, size: int) -> None:
        """Takes `size` bytes, as soon as all who asked before have theirs."""
        if not self._waiting and self.extend(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        await turn

    def extend(self, size: int) -> bool:
        """Takes `size` bytes if they are free, at once and before those who wait.

        Who holds some cannot wait for more: all might wait for each other.
        """
        if size > self._free:
            return False
        self._free -= size
        return True

    def leave(self, size: int) -> None:
        """Gives `size` bytes back."""
        self._free += size
        while self._waiting and self.extend(self._waiting[0][0]):
            self._waiting.popleft()[1].set_result(None)


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
    max_held_bytes: int | None = None,
    backoff_seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Fetched]:
    """Fetches URLs and yields one result for each, in the order they finish.

    At most 2 * `concurrency` bodies are held, and `max_held_bytes` of all of them, the
    one last yielded included; a slow caller slows the downloads. A body that finds no
    room is fetched again once there is room for the largest.
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
      max_held_bytes: of all bodies at any time; at least 2 * `max_bytes`. None: as much
        as 2 * `concurrency` bodies can take up.
      backoff_seconds: wait before the first retry; it doubles each time, up to a
        minute. A server's Retry-After counts where it asks for more, up to a minute.
      progress: called with (results so far, all URLs) at each result.

    Yields:
      `Fetched` with status "ok" or one of bad_url, not_http, port_refused, dns,
      private_address, connection, tls, timeout, redirect_limit, too_large, empty_body,
      truncated_body, bad_http, opted_out (an X-Robots-Tag header with noai, noimageai
      or noml), http_404 and its like, http_5xx.

    Raises:
      ValueError: `max_held_bytes` is less than 2 * `max_bytes`.
      RuntimeError: this machine ran out of files or memory for sockets.
    """
    pinned = addresses.parse_host_map(host_map)
    results: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()
    share, room = _make_room(max_held_bytes, max_bytes, concurrency)

    async def run() -> None:
        async with request.session(pinned, user_agent) as session:
            await _fetch_all(
                urls,
                functools.partial(
                    request.attempt,
                    session,
                    pinned=pinned,
                    timeout_seconds=timeout_seconds,
                    max_bytes=max_bytes,
                ),
                results=results,
                room=room,
                share=share,
                max_bytes=max_bytes,
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
            loop.call_soon_threadsafe(room.leave, result.bytes)
            if progress is not None:
                progress(done, len(urls))
            yield result.fetched
            del result


def _make_room(
    max_held_bytes: int | None, max_bytes: int, concurrency: int
) -> tuple[int, Room]:
    """Returns the share of one body in flight, in bytes, and the room for all."""
    if max_held_bytes is None:
        max_held_bytes = (2 * concurrency + 1) * max_bytes
    if max_held_bytes < 2 * max_bytes:
        raise ValueError(
            f"wanted max_held_bytes of at least 2 * max_bytes ({2 * max_bytes}), got "
            f"{max_held_bytes}: raise it or lower max_bytes"
        )
    free = max_held_bytes - max_bytes  # the rest is for the body last yielded
    share = max(1, min(max_bytes, free // (2 * concurrency)))
    return share, Room(max(max_bytes, 2 * concurrency * share))


class _Held:
    """The part of a room that one body holds."""

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    async def wait_for(self, size: int) -> None:
        """Holds `size` bytes in place of none."""
        await self._room.enter(size)
        self.size = size

    def grow(self, size: int) -> bool:
        """Holds at least `size` bytes if there is room."""
        if size > self.size:
            if not self._room.extend(size - self.size):
                return False
            self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Holds at most `size` bytes."""
        if size < self.size:
            self._room.leave(self.size - size)
            self.size = size


@contextlib.contextmanager
def _running(
    main: Callable[[], Coroutine[Any, Any, None]],
    results: queue.SimpleQueue[_Result | BaseException],
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
    attempt: Callable[..., Awaitable[request.Answer]],
    *,
    results: queue.SimpleQueue[_Result | BaseException],
    room: Room,
    share: int,
    max_bytes: int,
    concurrency: int,
    per_host: int,
    retries: int,
    backoff_seconds: float,
) -> None:
    """Works off one queue per host by up to `per_host` workers each."""
    in_flight = asyncio.Semaphore(concurrency)
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for index, url in enumerate(urls):
        waiting[request.host_of(url)].append(index)

    async def result(index: int, held: _Held) -> _Result:
        url = urls[index]
        for retry in range(retries + 1):
            async with in_flight:
                answer = await attempt(url, grow=held.grow)
            if answer.status == request.NO_ROOM:
                held.shrink(0)
                await held.wait_for(max_bytes)
                async with in_flight:
                    answer = await attempt(url, grow=held.grow)
            held.shrink(max(share, len(answer.body)))
            if answer.status not in _RETRIED or retry == retries:
                break
            backoff = min(backoff_seconds * 2.0**retry, _MAX_BACKOFF_SECONDS)
            await asyncio.sleep(max(backoff, answer.retry_after))
        return _Result(Fetched(index, answer.status, answer.body), held.size)

    async def work(indices: deque[int]) -> None:
        while indices:
            held = _Held(room)
            await held.wait_for(share)
            if not indices:  # another worker of this host took the last one
                held.shrink(0)
                return
            # No name for the result: a body must not wait here with its worker.
            results.put(await result(indices.popleft(), held))

    async with asyncio.TaskGroup() as group:
        # Round by round, so that no host gets all its requests in one burst.
        hosts = list(waiting.values())
        for worker in range(per_host):
            hosts = [indices for indices in hosts if len(indices) > worker]
            for indices in hosts:
                group.create_task(work(indices))
