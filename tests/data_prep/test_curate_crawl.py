"""A real site, served on loopback and recorded by wget, curated by one command."""

import functools
import http.server
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from data_prep import verify
from metaclip_jax.data import records
from tests import waiting
from tests.data_prep.test_curate_sources import ROOT
from tests.data_prep.test_verify_and_export import command

# Where Debian's -doc packages put pages with pictures.
SITES = (Path("/usr/share/gimp/2.0/help/en"), *sorted(Path("/usr/share/doc").glob("*")))
PICTURES = ("png", "gif", "jpg", "webp")
PAGES = 40


def files_of(folder, ending):
    return [path for path in sorted(folder.rglob(f"*.{ending}")) if path.is_file()]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of an installed -doc package with their pictures, and a list of them."""
    for folder in SITES:
        pictures = [p for end in PICTURES for p in files_of(folder, end)]
        found = files_of(folder, "html") if pictures else []
        pages = [p for p in found if b"<img" in p.read_bytes()][:PAGES]
        if len(pages) > 5:
            copy = tmp_path_factory.mktemp("site")
            for path in (*pages, *pictures):
                place = copy / path.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
            links = (p.relative_to(folder) for p in pages)
            index = "".join(f"<a href='{link}'>page</a>" for link in links)
            (copy / "all-pages.html").write_text(f"<html>{index}</html>")
            return copy
    pytest.skip("no -doc package with pages and pictures is installed")


@pytest.fixture(scope="module")
def crawl(site, tmp_path_factory):
    """The WARC file of wget, and the address of the site."""
    if not shutil.which("wget"):
        pytest.skip("wget is not installed")
    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    folder = tmp_path_factory.mktemp("crawl")
    pictures = ",".join(f"*.{ending}" for ending in PICTURES)
    record = ["wget", "-q", "-r", "-l", "1", "-R", pictures, "--delete-after"]
    record.append(f"--warc-file={folder}/site")
    subprocess.run(
        [*record, f"http://{address}/all-pages.html"],
        cwd=folder,
        timeout=waiting.SECONDS,
    )
    yield folder / "site.warc.gz", address
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_):
        pass


def test_a_recorded_site_is_curated_by_one_command(site, crawl, tmp_path):
    warc, address = crawl
    status, _, errors = command(
        "data_prep.curate",
        f"--config={ROOT}/configs/curate.py:quickstart",
        f"--config.source.paths={warc}",
        "--config.matching.mode=none",
        "--config.images.min_side=8",
        "--config.images.max_aspect=20.0",
        f"--config.download.host_map=127.0.0.1={address}",
        f"--workdir={tmp_path}/work",
        f"--output={tmp_path}/dataset",
    )
    assert status == 0, errors[-4000:]
    dataset = records.open_dataset(tmp_path / "dataset")
    rows = {(r["stage"], r["unit"]): r for r in dataset.data_card["funnel"]}
    texts = [r for r in dataset.data_card["funnel"] if r["unit"] == "texts"]
    for row in rows.values():
        assert row["in"] == row["out"] + sum(row["drops"].values())
    for before, after in zip(texts, texts[1:], strict=False):
        assert before["out"] == after["in"]
    pages = list(site.rglob("*.html"))
    assert rows["read", "pages"]["out"] == len(pages)
    assert 0 < texts[-1]["out"] <= texts[0]["in"]
    found = [records.decode(r) for r in records.read(dataset, range(len(dataset)))]
    sites = Counter(record.image_url.split("/")[2] for record in found)
    assert list(sites) == [address]
    assert list(verify.faults(tmp_path / "dataset")) == []
