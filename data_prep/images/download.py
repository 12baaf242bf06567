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


class Room:
    """A byte budget for bodies, granted in order of request, of an event loop.

    Raises ValueError where it has no room for one body besides those that are held.
    """

    def __init__(self, limits: Limits) -> None:
        least = (limits.held + 1) * limits.max_bytes
        if limits.max_held_bytes < least:
            raise ValueError(
                f"wanted max_held_bytes of at least {limits.held + 1} * max_bytes"
                f" ({least}), got {limits.max_held_bytes}; raise it or lower max_bytes"
            )
        bodies = 2 * limits.concurrency
        free = limits.max_held_bytes - limits.held * limits.max_bytes
        # Reserved for each body in flight.
        self.share = max(1, min(limits.max_bytes, free // bodies))
        self._free = max(limits.max_bytes, bodies * self.share)
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
    pinned, room = addresses.read_host_map(limits.host_map), Room(limits)
    hosts = _by_host(urls, pinned, limits.per_host_rate)
    results = _Results()
    with _running(
        _fetch_all(urls, hosts, limits, pinned, results, room), results
    ) as loop:
        for _ in urls:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            loop.call_soon_threadsafe(result[1].shrink, 0)
            yield result[0]
            del result


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


# Each result with its part of the budget, which its taker gives back; or an error.
_Results = queue.SimpleQueue[tuple[Fetched, _Held] | BaseException]


@contextlib.contextmanager
def _running(
    main: Coroutine[Any, Any, None], results: _Results
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
    results: _Results,
    room: Room,
) -> None:
    """Runs up to `per_host` workers on the queue of each host, each with a slot.

    With `robots_txt`, it asks that of a host first, also after a redirect.
    """
    in_flight = asyncio.Semaphore(limits.concurrency)
    asking: dict[str, asyncio.Task[request.Answer]] = {}  # after redirects

    async def ask(
        url: str, place: contextlib.AbstractAsyncContextManager = in_flight
    ) -> request.Answer:
        async def once() -> request.Answer:
            async with place:
                return await attempt(url, grow=lambda size: True, cut=robots.MAX_BYTES)

        return await _retrying(once, limits)

    def ask_once(url: str) -> asyncio.Future[request.Answer]:
        if url not in asking:
            # The redirected request has a place in flight meanwhile.
            asking[url] = group.create_task(ask(url, contextlib.nullcontext()))
        return asyncio.shield(asking[url])  # it goes on if a waiting request times out

    async def refusal(url: URL) -> str | None:
        verdict = await robots.judge({0: str(url)}, ask_once, limits.user_agent)
        return verdict.refused.get(0)

    async def fetched(index: int, held: _Held, pause_seconds: float) -> Fetched:
        async def once() -> request.Answer:
            while True:
                async with in_flight:
                    answer = await attempt(
                        urls[index],
                        grow=held.grow,
                        refusal=refusal if limits.robots_txt else None,
                    )
                if answer.status != request.NO_ROOM:
                    held.shrink(max(room.share, len(answer.body)))
                    return answer
                held.shrink(0)
                await held.wait_for(limits.max_bytes)

        answer = await _retrying(once, limits, pause_seconds)
        return Fetched(index, answer.status, answer.body, answer.code)

    async def work(host: _Host) -> None:
        while True:
            async with host.turn:
                if not host.waiting:
                    return
                await host.pace(taken)
                held = _Held(room)
                await held.wait_for(room.share)
                slot = await taken.take(host.name)
                if limits.robots_txt and host.refused is None:
                    await host.judge(urls, ask, limits.user_agent, taken)
                index = host.waiting.popleft()
            reason = (host.refused or {}).get(index)
            if reason:
                results.put((Fetched(index, reason, b""), held))
            else:  # unnamed: a local variable would keep the body alive
                results.put((await fetched(index, held, host.pause_seconds), held))
            taken.leave(host.name, slot)

    async with (
        request.session(pinned, limits.user_agent) as session,
        slots.Slots(limits.per_host) as taken,
        asyncio.TaskGroup() as group,
    ):
        attempt = functools.partial(
            request.attempt, session, limits=limits, pinned=pinned
        )
        # Round-robin over hosts, so that no host gets a burst of requests.
        some = list(hosts)
        for worker in range(limits.per_host):
            some = [host for host in some if len(host.waiting) > worker]
            if not some:
                break
            for host in some:
                group.create_task(work(host))


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
