"""A web of a few pages: their WARC file, and a real server for their images."""

import contextlib
import gzip
import http.server
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep import config as config_lib
from data_prep import curate

ROOT = Path(__file__).resolve().parents[2]
IMAGES = "images.example"


def picture(number: int, side: int = 48) -> bytes:
    """A JPEG that no other number gives."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((side, side)).save(out, "JPEG")
    return out.getvalue()


def write_warc(path: Path, pages: Mapping[str, str]) -> None:
    """Writes one gzip member a page."""
    with path.open("wb") as file:
        for url, body in pages.items():
            html = f"<html lang=en><body>{body}</body></html>".encode()
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + html
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
                "WARC-Date: 2026-01-01T00:00:00Z\r\n"
                "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
                "Content-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(answer)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + answer + b"\r\n\r\n", mtime=0))


@contextlib.contextmanager
def serve(images: Mapping[str, bytes | int]) -> Iterator[str]:
    """Serves images by path, 404 for all others; yields config.download.host_map.

    A number in the place of an image is the HTTP status to answer with.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = images.get(self.path, 404)
            status, body = (found, b"") if isinstance(found, int) else (200, found)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{IMAGES}=127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write(
    folder: Path, alts: Sequence[tuple[str, str]], warcs: int = 1
) -> dict[str, str]:
    """Writes a crawl and metadata ("cat", "dog", "red"); returns flags to curate them.

    `alts` are pairs (path of an image on the server, its alt text), one page each, and
    every `warcs`-th page goes into the same file.
    """
    folder.mkdir(exist_ok=True)
    pages = [
        (
            f"http://pages.example/{n}",
            f"<img src='http://{IMAGES}{path}' alt='{alt}'>",
        )
        for n, (path, alt) in enumerate(alts)
    ]
    for i in range(warcs):
        write_warc(folder / f"pages-{i}.warc.gz", dict(pages[i::warcs]))
    (folder / "metadata.json").write_text(json.dumps(["cat", "dog", "red"]))
    return {
        "config": str(ROOT / "configs/curate.py:quickstart"),
        "config.name": "tiny",
        "config.source.paths": str(folder / "pages-*.warc.gz"),
        "config.metadata": str(folder / "metadata.json"),
        "config.download.retries": 0,
    }


def run(
    folder: Path,
    alts: Sequence[tuple[str, str]],
    images: Mapping[str, bytes],
    **overrides: object,
) -> curate.Run:
    """Curates such a web in this process, into folder/work and folder/dataset."""
    with serve(images) as host_map:
        planned = plan(folder, alts, **{"download.host_map": host_map} | overrides)
        curate.run_stages(planned)
    return planned


def plan(
    folder: Path, alts: Sequence[tuple[str, str]], **overrides: object
) -> curate.Run:
    """Writes such a web; returns the run that would curate it."""
    return plan_flags(write(folder, alts), folder, overrides)


def plan_flags(
    flags: Mapping[str, object],
    folder: Path,
    overrides: Mapping[str, object],
    *arguments: str,
    **options: Any,
) -> curate.Run:
    """Returns the run of a command line, into folder/work and folder/dataset.

    Args:
      flags: as `write` returns them.
      folder: of the workdir and the dataset.
      overrides: further keys of the config, without "config.".
      *arguments: of Beam.
      **options: of `curate.plan`.
    """
    config = config_lib.curate()
    values = {k.removeprefix("config."): v for k, v in flags.items() if "." in k}
    config.update_from_flattened_dict(values | dict(overrides))
    places = f"{folder}/work", f"{folder}/dataset"
    return curate.plan(config, *places, list(arguments), **options)
