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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from yarl import URL

from data_prep.images import addresses, request, robots, slots

OK = request.OK

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
    """A byte budget for bodies, granted in order of request; for several threads."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lock = threading.Lock()

    async def enter(self, size: int) -> None:
        """Takes `size` bytes, after all earlier requests were granted."""
        with self._lock:
            if not self._waiting and self._take(size):
                return
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
        await turn

    def extend(self, size: int) -> bool:
        """Takes `size` bytes at once if they are free, ahead of waiting requests.

        A holder must not wait for more, or all holders could wait for each other.
        """
        with self._lock:
            return self._take(size)

    def leave(self, size: int) -> None:
        """Gives `size` bytes back. Wakes the event loop only if a request waits."""
        granted = []
        with self._lock:
            self._free += size
            while self._waiting and self._take(self._waiting[0][0]):
                granted.append(self._waiting.popleft()[1])
        for turn in granted:  # without the lock, which the loop's thread may want
            turn.get_loop().call_soon_threadsafe(_grant, turn)

    def _take(self, size: int) -> bool:
        if size > self._free:
            return False
        self._free -= size
        return True


def _grant(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # it may have been cancelled
        turn.set_result(None)


def fetch(
    urls: Sequence[str],
    *,
    host_map: Mapping[str, str],
    concurrency: int,
    per_host: int,
    per_host_rate: float = 0.0,
    timeout_seconds: float,
    max_bytes: int,
    retries: int,
    user_agent: str,
    robots_txt: bool = False,
    max_held_bytes: int | None = None,
    held: int = 1,
    backoff_seconds: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Fetched]:
    """Fetches URLs and yields one result for each, in the order they finish.

    At most 2 * `concurrency` bodies are held, and at most `max_held_bytes` in total,
    including the last `held` ones yielded; a slow caller slows the downloads. A body
    that exceeds the free budget is fetched again once `max_bytes` are free. Leaving the
    loop early (or `close()`) ends all downloads.

    Args:
      urls: absolute http(s) URLs.
      host_map: host name -> "address:port". A pinned host is reached only there,
        private or not; any other host only at public addresses on ports 80 and 443.
      concurrency: requests in flight, over all hosts.
      per_host, per_host_rate: images of a host that all processes of this machine
        fetch at once, and begin to fetch in a second (0: any).
      timeout_seconds: for one attempt in all, redirects and body included.
      max_bytes: of a body, after decompression.
      retries: further attempts after a busy server (429, 5xx) or a lost connection.
      user_agent: the User-Agent header; its first word is our name in a robots.txt.
      robots_txt: ask the robots.txt of each host first, also of those that a redirect
        names, and obey it; its Crawl-delay and Request-rate too, up to a minute.
      max_held_bytes: of all bodies at any time; at least (`held` + 1) * `max_bytes`.
        None: enough for 2 * `concurrency` bodies besides those held.
      held: bodies that the caller holds at the same time, that last yielded included.
      backoff_seconds: wait before the first retry; it doubles each time, up to a
        minute. A longer Retry-After of the server is obeyed, up to a minute.
      progress: called with (results so far, all URLs) at each result.

    Yields:
      `Fetched` with status "ok" or one of bad_url, not_http, port_refused, dns,
      private_address, connection, tls, timeout, redirect_limit, too_large, empty_body,
      truncated_body, bad_http, robots_disallowed, robots_unavailable (no robots.txt
      could be read), opted_out (see `request`), http_404 and other 4xx, http_5xx.

    Raises:
      ValueError: `max_held_bytes` is less than (`held` + 1) * `max_bytes`.
      RuntimeError: this machine ran out of files or memory for sockets.
    """
    pinned = addresses.parse_host_map(host_map)
    results: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()
    share, room = _make_room(max_held_bytes, max_bytes, concurrency, held)

    limits: dict[str, Any] = {
        "timeout_seconds": timeout_seconds,
        "max_bytes": max_bytes,
    }

    async def run() -> None:
        async with request.session(pinned, user_agent) as session:
            await _fetch_all(
                urls,
                _by_host(urls, pinned, per_host_rate),
                functools.partial(request.attempt, session, pinned=pinned, **limits),
                results=results,
                room=room,
                share=share,
                max_bytes=max_bytes,
                concurrency=concurrency,
                per_host=per_host,
                retries=retries,
                backoff_seconds=backoff_seconds,
                user_agent=user_agent if robots_txt else None,
            )

    with _running(run, results):
        for done in range(1, len(urls) + 1):
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            room.leave(result.bytes)
            if progress is not None:
                progress(done, len(urls))
            yield result.fetched
            del result


def _make_room(
    max_held_bytes: int | None, max_bytes: int, concurrency: int, held: int
) -> tuple[int, Room]:
    """Returns the bytes reserved per body in flight, and the whole budget."""
    if max_held_bytes is None:
        max_held_bytes = (2 * concurrency + held) * max_bytes
    if max_held_bytes < (least := (held + 1) * max_bytes):
        raise ValueError(
            f"wanted max_held_bytes of at least {held + 1} * max_bytes ({least}), got "
            f"{max_held_bytes}; raise it or lower max_bytes"
        )
    free = max_held_bytes - held * max_bytes  # the rest is for bodies yielded
    share = max(1, min(max_bytes, free // (2 * concurrency)))
    return share, Room(max(max_bytes, 2 * concurrency * share))


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
    main: Callable[[], Coroutine[Any, Any, None]],
    results: queue.SimpleQueue[_Result | BaseException],
) -> Iterator[None]:
    """Runs `main` in its own thread, so that a slow consumer causes no timeouts.

    Its exceptions go into `results`. Leaving the block early cancels it.
    """
    loop = asyncio.new_event_loop()
    # getaddrinfo blocks a thread per name; the default thread pool is too small.
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
        yield
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
    user_agent: str | None,
) -> None:
    """Runs up to `per_host` workers on the queue of each host, each with a slot.

    With a `user_agent`, it asks the robots.txt of a host first, also after a redirect.
    """
    in_flight = asyncio.Semaphore(concurrency)
    retrying = functools.partial(_retrying, retries=retries)
    refusal: request.Refusal | None = None

    async def ask_robots(
        url: str, place: contextlib.AbstractAsyncContextManager = in_flight
    ) -> request.Answer:
        async def once() -> request.Answer:
            async with place:
                return await attempt(
                    url, max_bytes=robots.MAX_BYTES, grow=lambda size: True, cut=True
                )

        return await retrying(once, backoff_seconds=backoff_seconds)

    async def result(index: int, held: _Held, pause_seconds: float) -> _Result:
        url = urls[index]

        async def once() -> request.Answer:
            async with in_flight:
                answer = await attempt(url, grow=held.grow, refusal=refusal)
            if answer.status == request.NO_ROOM:
                held.shrink(0)
                await held.wait_for(max_bytes)
                async with in_flight:
                    answer = await attempt(url, grow=held.grow, refusal=refusal)
            held.shrink(max(share, len(answer.body)))
            return answer

        backoff = max(backoff_seconds, pause_seconds)
        answer = await retrying(once, backoff_seconds=backoff)
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
                if user_agent is not None and host.refused is None:
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

    async with slots.Slots(per_host) as taken, asyncio.TaskGroup() as group:
        if user_agent is not None:
            # The redirected request has a place in flight meanwhile.
            ask = functools.partial(ask_robots, place=contextlib.nullcontext())
            refusal = _redirect_refusals(ask, user_agent, group)
        # Round-robin over hosts, so that no host gets a burst of requests.
        some = list(hosts)
        for worker in range(per_host):
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
    *,
    retries: int,
    backoff_seconds: float,
) -> request.Answer:
    """Repeats a request, with longer and longer pauses, while a retry may help."""
    for retry in range(retries):
        answer = await once()
        if answer.status not in _RETRIED:
            return answer
        backoff = min(backoff_seconds * 2.0**retry, _MAX_BACKOFF_SECONDS)
        await asyncio.sleep(max(backoff, answer.retry_after))
    return await once()
