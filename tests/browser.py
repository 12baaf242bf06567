"""Opens pages in Chromium, if it is installed, and measures what they show."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import waiting

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
wanted = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
# Measures a page once its charts are drawn; only a box that scrolls by itself may be
# wider than the page.
MEASURE = """(async () => {
  const plots = [...document.querySelectorAll(".chart .plot")];
  const drawn = () => plots.every(e => e.querySelector("svg"));
  while (!drawn()) await new Promise(r => setTimeout(r, 20));
  return {
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll("body *")].filter(e =>
      e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg")
      && e.checkVisibility() && !e.closest(".unseen")
    ).map(e => e.outerHTML.slice(0, 99)),
    images: document.images.length,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    described: document.querySelectorAll(
      ".plot[role=graphics-document][aria-label]").length,
    charts: plots.filter(e => e.firstChild.getBoundingClientRect().width > 300).length,
  };
})()"""


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[str]:
    """A headless browser; yields the address of its first page's DevTools socket."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--disable-background-networking", "--no-first-run", "--disable-sync"),
        *("--disable-component-update", "--disable-dev-shm-usage"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
    ]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdout=quiet, stderr=quiet, start_new_session=True
    ) as browser:
        try:
            found = profile / "DevToolsActivePort"
            waiting.until(
                lambda: found.exists() and len(found.read_text().splitlines()) > 1,
                browser,
            )
            yield found.read_text().splitlines()[0]
        finally:
            browser.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                browser.wait(10)
            # Its helpers, which may outlive it, are in a group of their own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)


class Tab:
    """An open tab: what it requested and what went wrong, and ways to act in it."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.events = socket, []

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = len(self.events) + 1
        await self.socket.send_json({"id": number, "method": method, "params": params})
        return await self.until(lambda message: message.get("id") == number)

    async def until(self, wanted: Callable[[dict], bool]) -> dict[str, Any]:
        while True:
            self.events.append(await self.socket.receive_json(timeout=waiting.SECONDS))
            if wanted(self.events[-1]):
                return self.events[-1]

    async def evaluate(self, script: str) -> Any:
        answer = await self.ask(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        return answer["result"]["result"]["value"]

    async def point(
        self, selector: str, x: float, y: float, *, wheel: int = 0, keys: int = 0
    ) -> None:
        """Moves the pointer to shares x, y of an element's box, and turns its wheel."""
        left, top, width, height = await self.evaluate(
            f"""(() => {{
                const element = document.querySelector({selector!r});
                element.scrollIntoView({{block: "center"}});
                const box = element.getBoundingClientRect();
                return [box.left, box.top, box.width, box.height];
            }})()"""
        )
        place = {"x": left + x * width, "y": top + y * height}
        mouse = "Input.dispatchMouseEvent"
        for back in (4, 0):  # only a pointer that moves is over something
            at = place | {"x": place["x"] - back}
            await self.ask(mouse, type="mouseMoved", **at)
        if wheel:
            turn = {"deltaX": 0, "deltaY": wheel, "modifiers": keys}
            await self.ask(mouse, type="mouseWheel", **place, **turn)

    def requests(self) -> list[str]:
        """Addresses outside the page itself."""
        sent = [
            e for e in self.events if e.get("method") == "Network.requestWillBeSent"
        ]
        urls = [e["params"]["request"]["url"] for e in sent]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[dict[str, Any]]:
        """What the console said, breaches of the page's policy among it."""
        kinds = (
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
        )
        return [e["params"] for e in self.events if e.get("method") in kinds]


def look_at(
    port: str, file: Path, act: Callable[[Tab], Awaitable[Any]], *, width: int
) -> tuple[Any, Tab]:
    """Opens a file at a width; returns what `act` returns, and the tab's record."""

    async def look() -> tuple[Any, Tab]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                pages = [p for p in await response.json() if p["type"] == "page"]
            address = pages[0]["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Network", "Log", "Runtime", "Page"):
                    await tab.ask(f"{domain}.enable")
                await tab.ask(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=844,
                    deviceScaleFactor=1,
                    mobile=width < 600,
                )
                await tab.ask("Page.navigate", url=file.as_uri())
                await tab.until(lambda m: m.get("method") == "Page.loadEventFired")
                return await act(tab), tab

    return asyncio.run(look())
