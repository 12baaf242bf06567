"""Stages from matches to screened images without repeats."""

import dataclasses
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import apache_beam as beam
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.images import download, failures, screening, threads
from data_prep.sources import kinds
from data_prep.stages import parts, rejects, steps
from data_prep.stages.draws import Draws
from metaclip_jax.data import machine

Tagged = beam.pvalue.TaggedOutput
# What is known of an image before its download; all else is null.
_UNKNOWN = {
    "status": "",
    "sha256": "",
    "fingerprint": b"",
    "width": 0,
    "height": 0,
    "kept_as": "",
    "stage": "download",
    "position": -1,
}


@dataclass(frozen=True)
class Downloading:
    """Downloads and screens the images of the texts that thinning keeps.

    Attributes:
      workdir: of the matches, and for the images.
      partitions: their number.
      draws: which texts thinning keeps.
      fetch, screen, source: of `download_and_screen`.
      max_failed_share: a larger share of failed downloads is an error.
      processes: that share a machine.
      retry_failed: whether failed downloads that may succeed now are retried.
    """

    workdir: str
    partitions: int
    draws: Draws
    fetch: download.Limits
    screen: Mapping
    source: kinds.Spec
    max_failed_share: float
    processes: int = 1
    retry_failed: bool = False

    def download(self, partition: int) -> Iterator[pa.RecordBatch]:
        """Writes a part of images and their bytes.

        A finished part is read, not downloaded. But if too many of its downloads
        failed, or with `retry_failed`, those that may succeed now are retried.

        Yields the part's downloads by outcome, as TALLIES, and its flow.
        """
        part = parts.name(partition, self.partitions)
        downloads = f"{self.workdir}/downloads"
        if not parts.exists(downloads, part):
            self._download(part)
        else:
            self._retry(part)
        yield Tagged("flow", parts.read_flow(downloads, part))
        found = failures.outcomes(parts.read(downloads, part))
        rows = [("download", status, n) for status, n in found.items()]
        yield schema.from_rows(rows, schema.TALLIES)

    def _download(self, part: str) -> None:
        matches = parts.read(f"{self.workdir}/matches", part)
        kept, _ = self.draws(matches)
        thinned = matches.filter(pa.array(kept))
        drawn = matches["drawn"].to_numpy()
        lost = Counter(
            not_chosen=int(np.sum(~drawn)), thinned=int(np.sum(drawn & ~kept))
        )
        thin = drops.flow(
            "thin", entered=matches.num_rows, left=thinned.num_rows, drops=+lost
        )
        self._fetch_and_screen(part, steps.images_of(thinned), thin)

    def _retry(self, part: str) -> None:
        """Fetches failed images again."""
        downloads = f"{self.workdir}/downloads"
        images = parts.read(downloads, part)
        found = failures.outcomes(images)
        failed = failures.to_retry(images)
        if not pc.any(failed).as_py() or not (
            self.retry_failed or failures.share(found) > self.max_failed_share
        ):
            return
        columns = ["image_id", "image_url", "texts", "text_hash"]
        wanted = images.filter(failed).select(columns)
        # Without images in the source itself, where a retry cannot help.
        nowhere = pa.repeat("", wanted.num_rows)
        wanted = wanted.append_column("stored_at", nowhere)
        flow = parts.read_flow(downloads, part)
        thin = flow.filter(pc.equal(flow["stage"], "thin"))
        self._fetch_and_screen(part, wanted, thin, images.filter(pc.invert(failed)))

    def _fetch_and_screen(
        self,
        part: str,
        wanted: pa.Table,
        thin: pa.RecordBatch,
        others: pa.Table | None = None,
    ) -> None:
        """Writes a part with the images `wanted` and FLOW rows `thin`.

        Where images are fetched again, `others` are the other rows of the part. The
        blobs of these keep their positions, so the new blobs fit the old table too, if
        a run ends between both writes.
        """
        folder, pictures = f"{self.workdir}/downloads", rejects.part_of(part)
        places = [] if others is None else others["position"].to_pylist()
        images, dropped = download_and_screen(
            wanted,
            blobs=(folder, part.removesuffix("parquet") + parts.BLOBS),
            kept=max(places, default=-1) + 1,
            fetch=self.fetch,
            screen=self.screen,
            source=self.source,
            cores=-(-machine.cores() // min(self.processes, self.partitions)),
            watch=failures.Watch(part, self.max_failed_share),
        )
        if others is not None:
            images = pa.concat_tables([others, images]).sort_by("image_id")
            dropped = pa.concat_tables([parts.read(folder, pictures), dropped])
        parts.write(folder, pictures, dropped)
        flow = schema.sum_counts([thin, *_image_flow(images)], schema.FLOW)
        parts.write(folder, part, images, flow)


def download_and_screen(
    wanted: pa.Table,
    *,
    blobs: tuple[str, str],
    fetch: download.Limits,
    screen: Mapping,
    source: kinds.Spec,
    kept: int = 0,
    cores: int = 1,
    watch: Callable[[str], None] = lambda status: None,
) -> tuple[pa.Table, pa.Table]:
    """Fetches images into one blob file, in the order in which they are screened.

    Args:
      wanted: as `steps.images_of` returns it.
      blobs: folder and name of the file for the bytes of the images that pass.
      fetch: of the downloads.
      screen: keyword arguments of screening.screen.
      source: its spec; images that it holds are read, not downloaded.
      kept: blobs that the file already has; new ones are appended.
      cores: images to screen at the same time; fewer where twice as many could fill
        half of fetch's max_held_bytes.
      watch: called with the status of each download.

    Returns:
      The rows of `wanted` as IMAGES with the columns of DOWNLOADED; and some pictures
      that screening dropped, `rejects.Pictures.table`.
    """
    rows = [dict(_UNKNOWN) for _ in range(wanted.num_rows)]
    ids, dropped = wanted["image_id"].to_pylist(), rejects.Pictures()
    # Two a core: one waits while another is screened.
    held = min(2 * cores, max(1, fetch.max_held_bytes // fetch.max_bytes // 2))
    cv2.setNumThreads(1)  # the parallel parts are images, not rows of pixels

    def screened(
        fetched: download.Fetched,
    ) -> tuple[download.Fetched, dict, screening.Screened | None]:
        facts: dict = {"status": fetched.status}
        if fetched.code:
            facts["http_status"] = fetched.code
        if fetched.status != download.OK:
            return fetched, facts, None
        image = screening.screen(fetched.body, **screen)
        is_kept = image.image == fetched.body  # then it is hashed already
        digest = image.sha256 if is_kept else hashlib.sha256(fetched.body).hexdigest()
        facts |= {"bytes": len(fetched.body), "body_sha256": digest}
        if image.status != screening.OK:
            dropped.offer(image.status, ids[fetched.position], fetched.body)
        return fetched._replace(body=b""), facts, image

    with parts.blob_writer(*blobs) as write_blob:
        for blob in parts.read_blobs(*blobs, range(kept)) if kept else ():
            write_blob(blob)
        stored = kinds.images(wanted["stored_at"].to_pylist(), source)
        if stored is None:
            urls = wanted["image_url"].to_pylist()
            bodies = download.fetch(urls, dataclasses.replace(fetch, held=held))
        else:
            bodies = itertools.starmap(download.Fetched, stored)
        for fetched, facts, image in threads.apply(
            screened, bodies, threads=cores, held=held
        ):
            row = rows[fetched.position]
            watch(fetched.status)
            row |= facts
            if image is None:
                continue
            row |= {"stage": "screen", "status": image.status}
            if image.status != screening.OK:
                continue
            row["position"] = write_blob(image.image)
            for key in ("sha256", "fingerprint", "width", "height"):
                row[key] = getattr(image, key)
            if image.faces is not None:
                row["faces"] = [face._asdict() for face in image.faces]
    fields = [*schema.IMAGES, *schema.DOWNLOADED]
    new = pa.schema([f for f in fields if f.name not in wanted.column_names])
    found = pa.Table.from_pylist(rows, new)
    for name in new.names:
        wanted = wanted.append_column(name, found[name])
    return wanted.select([field.name for field in fields]), dropped.table()


def _image_flow(images: pa.Table) -> Iterator[pa.RecordBatch]:
    """FLOW of download and screening: a dropped image drops all its texts."""
    entered = pc.sum(images["texts"]).as_py() or 0
    dropped = images.filter(pc.not_equal(images["status"], "ok"))
    by_reason = dropped.group_by(["stage", "status"]).aggregate([("texts", "sum")])
    for stage in ("download", "screen"):
        here = by_reason.filter(pc.equal(by_reason["stage"], stage)).to_pydict()
        lost = dict(zip(here["status"], here["texts_sum"], strict=True))
        left = entered - sum(lost.values())
        yield drops.flow(stage, entered=entered, left=left, drops=lost)
        entered = left
