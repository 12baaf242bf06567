"""The sample web's server: one process, loopback only, several host names.

    python -m examples.quickstart.serve --site=run/site --port_file=run/port

It lists its files at the start, so no request can reach another one. It ends when the
process that started it ends.
"""

import asyncio
import mimetypes
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags, logging
from aiohttp import web

from examples.quickstart.folder import CONTENTS, SPECIAL
from metaclip_jax import files
from metaclip_jax.cli import command

_PARENT_CHECK_SECONDS = 0.5
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".webp": "image/webp",  # missing from some systems' tables
}
# Bodies of the error answers.
_SORRY = "<!DOCTYPE html><html><head><title>{0}</title></head><body>{0}</body></html>"

Handler = Callable[[web.Request], Awaitable[web.Response]]


def main(argv: list[str]) -> None:
    """Serves until the parent process or an interrupt ends it."""
    command.refuse_arguments(argv)
    parent = os.getppid()
    site = Path(flags.FLAGS.site)
    if not (site / SPECIAL).exists():
        raise FileNotFoundError(
            f"--site={site}: wanted a folder that examples.quickstart.build made, got"
            f" one without {SPECIAL}; build it, or correct the path"
        )
    special = files.read_json(site / SPECIAL)
    places = known_files(site / CONTENTS)
    handler = make_handler(places, special["responses"], date=special["date"])
    asyncio.run(_serve(handler, port=flags.FLAGS.port, parent=parent))


def known_files(folder: Path) -> dict[str, Path]:
    """Returns files by "host/path"; index.html also by the path of its folder."""
    places = {}
    for file in folder.rglob("*"):
        if file.is_file():
            place = file.relative_to(folder).as_posix()
            places[place] = file
            if file.name == "index.html":
                places[place.removesuffix("index.html")] = file
    return places


def make_handler(
    places: Mapping[str, Path], special: Mapping[str, Mapping[str, Any]], *, date: str
) -> Handler:
    """Returns the function that answers requests for "Host header/path".

    `special` answers have any of status, location and content_type. `date` is the Date
    header of every answer, fixed so that two crawls are equal.
    """

    async def handle(request: web.Request) -> web.Response:
        host = request.host.partition(":")[0].lower()
        place = f"{host}{request.path}"
        answer = special.get(place, {})
        file = places.get(place)
        status = answer.get("status", 200 if file else 404)
        body = file.read_bytes() if file else _SORRY.format(status).encode()
        kind = answer.get("content_type") or _content_type(file)
        headers = {"Date": date, "Server": "sample-web", "Content-Type": kind}
        if "location" in answer:
            headers["Location"] = answer["location"]
        return web.Response(status=status, body=body, headers=headers)

    return handle


def _content_type(file: Path | None) -> str:
    if file is None:
        return _TYPES[".html"]
    guessed = mimetypes.guess_type(file.name)[0]
    return _TYPES.get(file.suffix) or guessed or "application/octet-stream"


async def _serve(handler: Handler, *, port: int, parent: int) -> None:
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise RuntimeError(
            f"wanted to open --port={port} of 127.0.0.1, got"
            f" {os.strerror(error.errno or 0)!r}; give another port, or --port=0 for a"
            " free one"
        ) from error
    opened = runner.addresses[0][1]
    logging.info("serving on 127.0.0.1:%d", opened)
    if flags.FLAGS.port_file:
        files.write_bytes(flags.FLAGS.port_file, f"{opened}\n".encode())
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    logging.info("the parent process has ended, so the server ends")
    await runner.cleanup()


if __name__ == "__main__":
    flags.DEFINE_string("site", None, "Folder that build made.", required=True)
    flags.DEFINE_integer("port", 0, "Port on 127.0.0.1; 0 = a free one.", 0, 65_535)
    flags.DEFINE_string(
        "port_file", None, "File that gets the port when the server is ready."
    )
    command.run(main)
