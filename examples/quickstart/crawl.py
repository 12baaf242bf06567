"""Crawls one site's pages, breadth first, into WARC files.

    python -m examples.quickstart.crawl --start_url=http://sample-web.example/ \\
        --host_map=sample-web.example=127.0.0.1:8000 --output=run/crawl

It follows links on the start page's host, obeys robots.txt and its crawl delay, and
writes every answer (pages, redirects, errors) in the order in which the links were
found, so the same site gives the same bytes. Images are not fetched.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import aiohttp
from absl import flags, logging
from protego import Protego
from selectolax.lexbor import LexborHTMLParser
from tqdm import tqdm
from yarl import URL

from data_prep.images.addresses import read_host_map
from examples.quickstart import warc_file
from examples.quickstart.warc_file import Answer
from metaclip_jax import files
from metaclip_jax.cli import command

Fetch = Callable[[str], Awaitable[Answer]]

_CONCURRENCY = 8  # requests in flight
_RETRIES = 2  # further attempts after a connection error
_TIMEOUT_SECONDS = 20.0  # for one answer
_REDIRECTS = 5  # of robots.txt, as many as RFC 9309 asks for


def main(argv: list[str]) -> None:
    """Crawls, unless --output holds a finished crawl with the same flags."""
    command.refuse_arguments(argv)
    output = flags.FLAGS.output
    # Without host_map: the server's address does not change the crawl.
    inputs = {
        "start_url": flags.FLAGS.start_url,
        "max_pages": flags.FLAGS.max_pages,
        "max_page_bytes": flags.FLAGS.max_page_bytes,
        "pages_per_file": flags.FLAGS.pages_per_file,
        "user_agent": flags.FLAGS.user_agent,
    }
    with files.lock(output):
        if files.finished(output, inputs):
            logging.info("%s is finished", output)
            return
        for old in files.path(output).glob("*.warc.gz"):  # from a killed crawl
            old.unlink()
        facts = asyncio.run(_crawl(output))
        files.write_manifest(output, inputs=inputs, **facts)
    logging.info("%d answers in %d files", facts["answers"], len(facts["files"]))


async def _crawl(output: str) -> dict[str, Any]:
    """Crawls into numbered WARC files; returns facts for the manifest."""
    written: list[str] = []
    waiting: list[Answer] = []
    statuses: Counter[str] = Counter()

    def write() -> None:
        name = f"crawl-{len(written):05}.warc.gz"
        warc_file.write(
            files.path(output) / name, waiting, software=flags.FLAGS.user_agent
        )
        written.append(name)
        waiting.clear()

    async with _session() as session:
        fetch = fetcher(
            session,
            host_map=read_host_map(flags.FLAGS.host_map),
            max_bytes=flags.FLAGS.max_page_bytes,
        )
        robots = await read_robots(fetch, flags.FLAGS.start_url)
        if not robots.can_fetch(flags.FLAGS.start_url, flags.FLAGS.user_agent):
            raise RuntimeError(
                f"wanted to crawl {flags.FLAGS.start_url}, but its host's robots.txt"
                f" forbids that to {flags.FLAGS.user_agent!r}; choose another one"
            )
        delay = float(robots.crawl_delay(flags.FLAGS.user_agent) or 0)
        with tqdm(desc="Crawl", unit="page") as bar:
            async for answer in breadth_first(
                fetch,
                flags.FLAGS.start_url,
                allowed=lambda url: robots.can_fetch(url, flags.FLAGS.user_agent),
                concurrency=_CONCURRENCY,
                delay_seconds=delay,
                max_pages=flags.FLAGS.max_pages,
            ):
                bar.update()
                statuses[answer.reason or str(answer.status)] += 1
                if not answer.status:
                    logging.warning("%s: %s", answer.url, answer.reason)
                    continue
                waiting.append(answer)
                if len(waiting) == flags.FLAGS.pages_per_file:
                    write()
    if waiting:
        write()
    if not statuses["200"]:
        raise RuntimeError(
            f"wanted pages from {flags.FLAGS.start_url}, got none ({dict(statuses)});"
            " choose another --start_url"
        )
    return {
        "answers": sum(statuses.values()),
        "statuses": dict(statuses),
        "files": written,
    }


async def breadth_first(
    fetch: Fetch,
    start_url: str,
    *,
    allowed: Callable[[str], bool],
    concurrency: int,
    delay_seconds: float,
    max_pages: int,
) -> AsyncIterator[Answer]:
    """Yields the answers to `start_url` and to all links reachable on its host.

    Answers are in the order of the links, whichever arrives first. Fetches only links
    that `allowed` accepts, and at most `max_pages` addresses.
    """
    queue, seen = deque([start_url]), {start_url}
    running: deque[asyncio.Task[Answer]] = deque()
    asked = 0
    try:
        while queue or running:
            while queue and len(running) < concurrency and asked < max_pages:
                if delay_seconds:
                    await asyncio.sleep(delay_seconds)
                running.append(asyncio.ensure_future(fetch(queue.popleft())))
                asked += 1
            if not running:
                break
            answer = await running.popleft()
            yield answer
            for link in links(answer):
                if link not in seen and allowed(link):
                    seen.add(link)
                    queue.append(link)
    finally:
        for task in running:
            task.cancel()


def links(answer: Answer) -> list[str]:
    """Returns the links of an answer on its own host: redirect target, or <a href>."""
    urls = []
    if 300 <= answer.status < 400:
        urls = [urljoin(answer.url, answer.header("Location"))]
    elif answer.status == 200 and answer.header("Content-Type").startswith("text/html"):
        tree = LexborHTMLParser(answer.body)
        base = answer.url
        if node := tree.css_first("base[href]"):
            base = _join(base, node.attributes["href"] or "")
        urls = [
            _join(base, node.attributes["href"] or "") for node in tree.css("a[href]")
        ]
    host = urlsplit(answer.url).netloc
    plain = (urldefrag(url).url for url in urls if url)
    return [
        url
        for url in dict.fromkeys(plain)
        if urlsplit(url)[:2] == ("http", host) or urlsplit(url)[:2] == ("https", host)
    ]


def fetcher(
    session: aiohttp.ClientSession,
    *,
    host_map: Mapping[str, tuple[str, int]],
    max_bytes: int,
) -> Fetch:
    """Returns a function that fetches one URL and follows no redirect.

    For a host in `host_map` it connects to that address and port.
    """

    async def fetch_once(url: str) -> Answer:
        target, host = URL(url, encoded=True), urlsplit(url).netloc
        if host in host_map:
            address, port = host_map[host]
            target = target.with_host(address).with_port(port)
        async with session.get(
            target, headers={"Host": host}, allow_redirects=False
        ) as response:
            body = bytearray()
            async for piece in response.content.iter_chunked(1 << 16):
                body += piece
                if len(body) > max_bytes:
                    return Answer(url, reason="too_large")
            headers = tuple(
                (name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
                for name, value in response.raw_headers
            )
            return Answer(url, response.status, headers, bytes(body))

    async def fetch(url: str) -> Answer:
        reason = ""
        for _ in range(_RETRIES + 1):
            try:
                return await fetch_once(url)
            except TimeoutError:
                reason = "timeout"
            except aiohttp.ClientError as error:
                reason = f"connection ({type(error).__name__})"
        return Answer(url, reason=reason)

    return fetch


async def read_robots(fetch: Fetch, start_url: str) -> Protego:
    """Returns the robots rules of the start page's host, as RFC 9309 defines them.

    A robots.txt that is unavailable (4xx, or more redirects than `_REDIRECTS`) allows
    all.

    Raises:
      RuntimeError: it is unreachable (5xx, timeout, connection error), which forbids
        all.
    """
    answer = await fetch(urljoin(start_url, "/robots.txt"))
    for _ in range(_REDIRECTS):
        target = _join(answer.url, answer.header("Location"))
        if not 300 <= answer.status < 400 or not target:
            break
        answer = await fetch(target)
    if answer.status == 200:
        return Protego.parse(answer.body.decode(errors="replace"))
    if 300 <= answer.status < 500:
        return Protego.parse("")
    raise RuntimeError(
        f"wanted {answer.url}, got {answer.reason or answer.status}, so nothing may be"
        " crawled; check that the server runs and that --host_map has its address"
    )


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS),
        headers={"User-Agent": flags.FLAGS.user_agent, "Accept-Encoding": "identity"},
        auto_decompress=False,  # store the bytes that were sent
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _join(base: str, href: str) -> str:
    """Resolves a link; "" if it is not a valid URL."""
    try:
        return urljoin(base, href.strip())
    except ValueError:
        return ""


if __name__ == "__main__":
    flags.DEFINE_string(
        "start_url", None, "First page; its host is crawled.", required=True
    )
    flags.DEFINE_string(
        "host_map", "", "host=address:port,... for hosts that are not in the DNS."
    )
    flags.DEFINE_string("output", None, "Folder of WARC files.", required=True)
    flags.DEFINE_integer("max_pages", 10_000, "Most addresses to fetch.", lower_bound=1)
    flags.DEFINE_integer(
        "max_page_bytes", 4 << 20, "Bytes; longer answers are left out.", lower_bound=1
    )
    flags.DEFINE_integer("pages_per_file", 128, "Answers per WARC file.", lower_bound=1)
    flags.DEFINE_string(
        "user_agent",
        "metaclip-jax",
        "The crawler's name, sent and matched in robots.txt.",
    )
    command.run(main)
