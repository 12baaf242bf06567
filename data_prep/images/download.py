"""Downloads images concurrently, with limits per host, in bytes and in time.

URLs come from the web, so no request may reach a private network: addresses are checked
when sockets are created, after name resolution and on each redirect. Tests and the
quick start pin a host name to a loopback server.
"""

import asyncio
import contextlib
import functools
import queue
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from yarl import URL

from data_prep.images import addresses, request, robots, slots

OK = request.OK
Limits = request.Limits

# Failures worth a retry. A timeout is not: it has used up its time.
_RETRIED = frozenset({"http_429", "http_5xx", "connection", "dns", "truncated_body"})
_MAX_BACKOFF_SECONDS = 60.0
_RESOLVER_THREADS = 64


class Fetched(NamedTuple):
    """One result: the position in `urls`, "ok" or the reason, and the body if ok."""

    position: int
    status: str
    body: bytes
    code: int = 0  # HTTP's status, 0 if there was no whole answer


class _Result(NamedTuple):
    fetched: Fetched
    bytes: int  # of room, left when the caller takes the body


class Room:
    """A byte budget for bodies, granted in order of request, of an event loop."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def enter(self, size: int) -> None:
        """Takes `size` bytes, after all earlier requests were granted."""
        if self._waiting or not self.extend(size):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            await turn

    def extend(self, size: int) -> bool:
        """Takes `size` bytes at once if they are free, ahead of waiting requests.

        A holder must not wait for more, or all holders could wait for each other.
        """
        if size > self._free:
            return False
        self._free -= size
        return True

    def leave(self, size: int) -> None:
        """Gives `size` bytes back."""
        self._free += size
        while self._waiting and self.extend(self._waiting[0][0]):
            _, turn = self._waiting.popleft()
            if not turn.done():  # it may have been cancelled
                turn.set_result(None)


def fetch(urls: Sequence[str], limits: Limits) -> Iterator[Fetched]:
    """Fetches URLs and yields one result for each, in the order they finish.

    At most 2 * `concurrency` bodies are held, and at most `max_held_bytes` in total,
    including the last `held` ones yielded; a slow caller slows the downloads. A body
    that exceeds the free budget is fetched again once `max_bytes` are free. Leaving the
    loop early (or `close()`) ends all downloads.

    Args:
      urls: absolute http(s) URLs.
      limits: what is allowed.

    Yields:
      `Fetched` with status "ok" or one of bad_url, not_http, port_refused, dns,
      private_address, connection, tls, timeout, redirect_limit, too_large, empty_body,
      truncated_body, bad_http, robots_disallowed, robots_unavailable (no robots.txt
      could be read), opted_out (see `request`), http_404 and other 4xx, http_5xx.

    Raises:
      ValueError: `max_held_bytes` is less than (`held` + 1) * `max_bytes`.
      RuntimeError: this machine ran out of files or memory for sockets.
    """
    pinned = addresses.parse_host_map(limits.host_map)
    results: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()
    share, room = _make_room(limits)
    hosts = _by_host(urls, pinned, limits.per_host_rate)
    fetching = _fetch_all(urls, hosts, limits, pinned, results, room, share)
    with _running(fetching, results) as loop:
        for _ in urls:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            loop.call_soon_threadsafe(room.leave, result.bytes)
            yield result.fetched
            del result


def _make_room(limits: Limits) -> tuple[int, Room]:
    """Returns the bytes reserved per body in flight, and the whole budget."""
    held, max_bytes, bodies = limits.held, limits.max_bytes, 2 * limits.concurrency
    if limits.max_held_bytes < (least := (held + 1) * max_bytes):
        raise ValueError(
            f"wanted max_held_bytes of at least {held + 1} * max_bytes ({least}), got "
            f"{limits.max_held_bytes}; raise it or lower max_bytes"
        )
    # The rest is for bodies yielded.
    share = (limits.max_held_bytes - held * max_bytes) // bodies
    share = max(1, min(max_bytes, share))
    return share, Room(max(max_bytes, bodies * share))


class _Held:
    """The part of the budget that one body holds."""

    def __init__(self, room: Room) -> None:
        self._room, self.size = room, 0

    async def wait_for(self, size: int) -> None:
        """Waits until it holds `size` bytes; it must hold none before."""
        await self._room.enter(size)
        self.size = size

    def grow(self, size: int) -> bool:
        """Holds at least `size` bytes, if they are free; returns whether it does."""
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
    main: Coroutine[Any, Any, None],
    results: queue.SimpleQueue[_Result | BaseException],
) -> Iterator[asyncio.AbstractEventLoop]:
    """Runs `main` in its own thread, so that a slow consumer causes no timeouts.

    Its exceptions go into `results`. Leaving the block early cancels it. Yields the
    event loop.
    """
    loop = asyncio.new_event_loop()
    # getaddrinfo blocks a thread per name; the default thread pool is too small.
    resolvers = ThreadPoolExecutor(_RESOLVER_THREADS, "resolve")
    loop.set_default_executor(resolvers)
    task = loop.create_task(main)

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


class _Host:
    """The images of one host that are still to be fetched."""

    def __init__(self, name: str, pause_seconds: float) -> None:
        self.name = name  # with the address where it is pinned
        self.waiting: deque[int] = deque()  # positions
        self.refused: dict[int, str] | None = None  # None: robots.txt was not read yet
        self.turn = asyncio.Lock()  # of the worker that takes the next image
        self.pause_seconds = pause_seconds  # between two images

    async def pace(self, taken: slots.Slots) -> None:
        """Waits until the next image may be asked for, if it may at all."""
        if self.waiting[0] not in (self.refused or ()):
            await taken.turn(self.name, self.pause_seconds)

    async def judge(
        self,
        urls: Sequence[str],
        ask: Callable[[str], Awaitable[request.Answer]],
        user_agent: str,
        taken: slots.Slots,
    ) -> None:
        """Reads the robots.txt, and paces the next image by what that wants."""
        self.refused, wanted = await robots.judge(
            {i: urls[i] for i in self.waiting}, ask, user_agent
        )
        if wanted > self.pause_seconds:
            self.pause_seconds = wanted
            await self.pace(taken)


def _by_host(urls: Sequence[str], pinned: request.Pinned, rate: float) -> list[_Host]:
    pause_seconds = 1 / rate if rate else 0.0
    hosts: dict[str, _Host] = {}
    for index, url in enumerate(urls):
        name = request.host_of(url)
        if name not in hosts:
            hosts[name] = _Host(f"{name} {pinned.get(name, '')}", pause_seconds)
        hosts[name].waiting.append(index)
    return list(hosts.values())


async def _fetch_all(
    urls: Sequence[str],
    hosts: Sequence[_Host],
    limits: Limits,
    pinned: request.Pinned,
    results: queue.SimpleQueue[_Result | BaseException],
    room: Room,
    share: int,
) -> None:
    """Runs up to `per_host` workers on the queue of each host, each with a slot.

    With `robots_txt`, it asks that of a host first, also after a redirect.
    """
    in_flight = asyncio.Semaphore(limits.concurrency)
    user_agent, refusal = limits.user_agent, None

    async def ask_robots(
        url: str, place: contextlib.AbstractAsyncContextManager = in_flight
    ) -> request.Answer:
        async def once() -> request.Answer:
            async with place:
                return await attempt(url, grow=lambda size: True, cut=robots.MAX_BYTES)

        return await _retrying(once, limits)

    async def result(index: int, held: _Held, pause_seconds: float) -> _Result:
        async def once() -> request.Answer:
            async with in_flight:
                answer = await attempt(urls[index], grow=held.grow, refusal=refusal)
            if answer.status == request.NO_ROOM:
                held.shrink(0)
                await held.wait_for(limits.max_bytes)
                async with in_flight:
                    answer = await attempt(urls[index], grow=held.grow, refusal=refusal)
            held.shrink(max(share, len(answer.body)))
            return answer

        answer = await _retrying(once, limits, pause_seconds)
        fetched = Fetched(index, answer.status, answer.body, answer.code)
        return _Result(fetched, held.size)

    async def work(host: _Host) -> None:
        while True:
            async with host.turn:
                if not host.waiting:
                    return
                await host.pace(taken)
                held = _Held(room)
                await held.wait_for(share)
                slot = await taken.take(host.name)
                if limits.robots_txt and host.refused is None:
                    await host.judge(urls, ask_robots, user_agent, taken)
                index = host.waiting.popleft()
            reason = (host.refused or {}).get(index)
            # Unnamed: a local variable would keep the body alive.
            results.put(
                _Result(Fetched(index, reason, b""), held.size)
                if reason
                else await result(index, held, host.pause_seconds)
            )
            taken.leave(host.name, slot)

    async with (
        request.session(pinned, user_agent) as session,
        slots.Slots(limits.per_host) as taken,
        asyncio.TaskGroup() as group,
    ):
        attempt = functools.partial(
            request.attempt, session, limits=limits, pinned=pinned
        )
        if limits.robots_txt:
            # The redirected request has a place in flight meanwhile.
            ask = functools.partial(ask_robots, place=contextlib.nullcontext())
            refusal = _redirect_refusals(ask, user_agent, group)
        # Round-robin over hosts, so that no host gets a burst of requests.
        some = list(hosts)
        for worker in range(limits.per_host):
            some = [host for host in some if len(host.waiting) > worker]
            if not some:
                break
            for host in some:
                group.create_task(work(host))


def _redirect_refusals(
    ask: Callable[[str], Awaitable[request.Answer]],
    user_agent: str,
    group: asyncio.TaskGroup,
) -> request.Refusal:
    """Returns a function that judges the URLs that redirects name by robots.txt.

    A host is asked once for all of them, by a task that goes on if a request that waits
    for it runs out of time.
    """
    asking: dict[str, asyncio.Task[robots.Known]] = {}

    async def refusal(url: URL) -> str | None:
        origin = str(url.origin())
        if origin not in asking:
            asking[origin] = group.create_task(robots.read(origin, ask, user_agent))
        known = await asyncio.shield(asking[origin])
        return (await known.judge({0: str(url)})).refused.get(0)

    return refusal


async def _retrying(
    once: Callable[[], Awaitable[request.Answer]],
    limits: Limits,
    pause_seconds: float = 0.0,
) -> request.Answer:
    """Repeats a request while a retry may help, with longer and longer pauses.

    The shortest one has `pause_seconds`.
    """
    backoff = max(limits.backoff_seconds, pause_seconds)
    for retry in range(limits.retries):
        answer = await once()
        if answer.status not in _RETRIED:
            return answer
        wait = min(backoff * 2.0**retry, _MAX_BACKOFF_SECONDS)
        await asyncio.sleep(max(wait, answer.retry_after))
    return await once()
