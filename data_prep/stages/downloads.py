"""Stages from matches to screened images without repeats."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import apache_beam as beam
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import drops, schema
from data_prep.images import download, failures, screening, threads
from data_prep.sources import kinds
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    attempts,
    dedup,
    parts,
    steps,
)
from data_prep.stages.matches import by_partition

Tagged = beam.pvalue.TaggedOutput
MOVED_SUFFIX = "moved.parquet"  # ends the names of parts with MOVED rows


class Download(beam.DoFn):
    """Partition -> IMAGES of the texts that thinning keeps, and a file of their bytes.

    A finished part is read, not downloaded. But if too many of its downloads failed, or
    with `retry_failed`, failed downloads that may succeed now are retried.

    `draws`, here and below, are keyword arguments of steps.draw.
    """

    def __init__(
        self,
        workdir: str,
        partitions: int,
        *,
        draws: Mapping,
        fetch: Mapping,
        screen: Mapping,
        source: kinds.Spec,
        max_failed_share: float,
        processes: int = 1,
        retry_failed: bool = False,
    ) -> None:
        self._workdir, self._partitions = workdir, partitions
        self._processes = processes  # that share a machine
        self._draws = dict(draws)
        self._fetch, self._screen = dict(fetch), dict(screen)
        self._source = source
        self._max_failed_share, self._retry_failed = max_failed_share, retry_failed

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yields the part's IMAGES rows, its flow and its downloads by outcome."""
        (partition,) = element["value"].to_pylist()
        name = f"downloads of partition {partition}"
        yield from attempts.thrice(name, lambda: self._outputs(partition))

    def _outputs(self, partition: int) -> Iterator[pa.RecordBatch]:
        part = parts.name(partition, self._partitions)
        downloads = f"{self._workdir}/downloads"
        blobs = downloads, parts.name(partition, self._partitions, "images")
        if not parts.exists(downloads, part):
            self._download(part, blobs)
        else:
            self._retry(part, blobs)
        yield Tagged("flow", parts.read_flow(downloads, part))
        images = parts.read(downloads, part)
        yield Tagged("outcomes", _outcome_rows(failures.outcomes(images)))
        yield schema.one_batch(images.select(schema.IMAGES.names))

    def _download(self, part: str, blobs: tuple[str, str]) -> None:
        matches = parts.read(f"{self._workdir}/matches", part)
        kept, _ = steps.draw(matches, **self._draws)
        thinned = matches.filter(pa.array(kept))
        images = self._fetch_and_screen(part, steps.images_of(thinned), blobs)
        drawn = matches["drawn"].to_numpy()
        lost = Counter(
            not_chosen=int(np.sum(~drawn)), thinned=int(np.sum(drawn & ~kept))
        )
        thin = drops.flow(
            "thin", entered=matches.num_rows, left=thinned.num_rows, drops=+lost
        )
        self._write(part, images, thin)

    def _retry(self, part: str, blobs: tuple[str, str]) -> None:
        """Fetches failed images again; the blobs keep their positions.

        So the new blobs fit the old table too, if a run ends between both writes.
        """
        downloads, _ = blobs
        images = parts.read(downloads, part)
        found = failures.outcomes(images)
        failed = failures.to_retry(images)
        if not pc.any(failed).as_py() or not (
            self._retry_failed or failures.share(found) > self._max_failed_share
        ):
            return
        wanted = images.filter(failed).select(["image_id", "image_url", "texts"])
        # Without images in the source itself, where a retry cannot help.
        nowhere = pa.array([""] * wanted.num_rows, pa.string())
        wanted = wanted.append_column("stored_at", nowhere)
        kept = pc.max(images["position"]).as_py() + 1
        again = self._fetch_and_screen(part, wanted, blobs, kept=kept)
        images = pa.concat_tables([images.filter(pc.invert(failed)), again])
        flow = parts.read_flow(downloads, part)
        thin = flow.filter(pc.equal(flow["stage"], "thin"))
        self._write(part, images.sort_by("image_id"), thin)

    def _fetch_and_screen(
        self, part: str, wanted: pa.Table, blobs: tuple[str, str], kept: int = 0
    ) -> pa.Table:
        return download_and_screen(
            wanted,
            blobs=blobs,
            kept=kept,
            fetch=self._fetch,
            screen=self._screen,
            source=self._source,
            cores=-(-(os.cpu_count() or 1) // self._processes),
            watch=failures.Watch(part, self._max_failed_share),
        )

    def _write(self, part: str, images: pa.Table, thin: pa.RecordBatch) -> None:
        flow = schema.sum_counts([thin, *_image_flow(images)], schema.FLOW)
        parts.write(f"{self._workdir}/downloads", part, images, flow)


def download_and_screen(
    wanted: pa.Table,
    *,
    blobs: tuple[str, str],
    fetch: Mapping,
    screen: Mapping,
    source: kinds.Spec,
    kept: int = 0,
    cores: int = 1,
    watch: Callable[[str], None] = lambda status: None,
) -> pa.Table:
    """Fetches images into one blob file, in the order in which they are screened.

    Args:
      wanted: image_id, image_url, stored_at, texts.
      blobs: folder and name of the file for the bytes of the images that pass.
      fetch: keyword arguments of download.fetch.
      screen: keyword arguments of screening.screen.
      source: its spec; images that it holds are read, not downloaded.
      kept: blobs that the file already has; new ones are appended.
      cores: images to screen at the same time; fewer where twice as many could fill
        half of fetch's max_held_bytes.
      watch: called with the status of each download.

    Returns:
      The rows of `wanted` as IMAGES, with `stage`: which of download and screen gave
      the status.
    """
    n = wanted.num_rows
    columns: dict[str, list] = {
        "status": [""] * n,
        "sha256": [""] * n,
        "fingerprint": [0] * n,
        "width": [0] * n,
        "height": [0] * n,
        "kept_as": [""] * n,
        "stage": ["download"] * n,
        "position": [-1] * n,
    }
    # Two a core: one waits while another is screened.
    held = min(2 * cores, max(1, fetch["max_held_bytes"] // fetch["max_bytes"] // 2))
    cv2.setNumThreads(1)  # the parallel parts are images, not rows of pixels

    def screened(
        body: tuple[int, str, bytes],
    ) -> tuple[int, str, screening.Screened | None]:
        index, status, content = body
        is_there = status == download.OK
        return index, status, screening.screen(content, **screen) if is_there else None

    with parts.blob_writer(*blobs) as write_blob:
        for blob in parts.read_blobs(*blobs, range(kept)) if kept else ():
            write_blob(blob)
        bodies: Iterator[tuple[int, str, bytes]] | None
        bodies = kinds.images(wanted["stored_at"].to_pylist(), source)
        if bodies is None:
            urls = wanted["image_url"].to_pylist()
            bodies = download.fetch(urls, held=held, **fetch)
        for index, status, image in threads.apply(
            screened, bodies, threads=cores, held=held
        ):
            watch(status)
            columns["status"][index] = status
            if image is None:
                continue
            columns["stage"][index] = "screen"
            columns["status"][index] = image.status
            if image.status != "ok":
                continue
            columns["position"][index] = write_blob(image.image)
            for key in ("sha256", "fingerprint", "width", "height"):
                columns[key][index] = getattr(image, key)
    for name, values in columns.items():
        kind = schema.IMAGES.field(name).type if name in schema.IMAGES.names else None
        wanted = wanted.append_column(name, pa.array(values, kind))
    return wanted.select([*schema.IMAGES.names, "stage"])


def _outcome_rows(found: Mapping[str, int]) -> pa.RecordBatch:
    columns = {
        "column": ["download"] * len(found),
        "value": list(found),
        "count": list(found.values()),
    }
    return schema.from_columns(columns, schema.TALLIES)


def _image_flow(images: pa.Table) -> Iterator[pa.RecordBatch]:
    """FLOW of download and screening: a dropped image drops all its texts."""
    entered = pc.sum(images["texts"]).as_py() or 0
    for stage in ("download", "screen"):
        here = pc.and_(
            pc.equal(images["stage"], stage), pc.not_equal(images["status"], "ok")
        )
        lost: Counter = Counter()
        for row in images.filter(here).select(["status", "texts"]).to_pylist():
            lost[row["status"]] += row["texts"]
        left = entered - sum(lost.values())
        yield drops.flow(stage, entered=entered, left=left, drops=lost)
        entered = left


class KeyByBytes(beam.DoFn):
    """IMAGES -> (first digits of the sha256, IMAGES), to group equal images."""

    def process(self, images: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Yields the rows of each group; dropped images, without bytes, are omitted."""
        ok = images.filter(pc.equal(images["status"], "ok"))
        heads = pc.utf8_slice_codeunits(ok["sha256"], 0, 2)
        for head in sorted(pc.unique(heads).to_pylist()):
            yield head, ok.filter(pc.equal(heads, head))


class FindRepeated(beam.DoFn):
    """(digits, IMAGES batches) -> the images that repeat another's bytes."""

    def process(
        self, element: tuple[str, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Yields those rows with their new status."""
        _, batches = element
        images = pa.Table.from_batches(batches, schema=schema.IMAGES)
        yield schema.one_batch(dedup.repeated_images(images))


class KeyByPartition(beam.DoFn):
    """IMAGES -> (partition, IMAGES)."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions

    def process(self, images: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields the rows of each partition."""
        yield from by_partition(images, self._partitions)


class WriteImages(beam.DoFn):
    """(partition, IMAGES batches) -> the final status of each image.

    The batches hold every image of the partition once, and the repeated ones a
    second time with their new status. Yields the texts of the repeated ones for the
    partitions of the images that are kept, and COUNTS of the survivors.
    """

    def __init__(
        self, workdir: str, partitions: int, *, draws: Mapping, rule: str
    ) -> None:
        self._workdir, self._partitions = workdir, partitions
        # Under v2 an image has one text, so it does not need those of its repeats.
        self._draws, self._moves = dict(draws), rule != "v2"

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[
        tuple[int, pa.RecordBatch] | Tagged[Literal["flow", "accepted"], pa.RecordBatch]
    ]:
        """Writes the part; yields MOVED rows, and the survivors' accepted draws."""
        partition, batches = element
        name = f"images of partition {partition}"
        yield from attempts.thrice(name, lambda: self._outputs(partition, batches))

    def _outputs(self, partition: int, batches: Iterable[pa.RecordBatch]) -> Iterator:
        part = parts.name(partition, self._partitions)
        table = pa.Table.from_batches(batches, schema=schema.IMAGES)
        repeated = table.filter(pc.equal(table["status"], "repeated_image"))
        again = pc.is_in(table["image_id"], repeated["image_id"].combine_chunks())
        images = pa.concat_tables([table.filter(pc.invert(again)), repeated])
        images = images.sort_by("image_id")
        ok = images.filter(pc.equal(images["status"], "ok"))
        flow = _dedup_flow(ok, repeated, moves=self._moves)
        parts.write(f"{self._workdir}/images", part, images, flow)
        yield Tagged("flow", flow)
        matches = parts.read(f"{self._workdir}/matches", part)
        _, accepted = steps.draw(_texts_of(ok, matches), **self._draws)
        yield Tagged("accepted", accepted)
        # Every partition with images rewrites its part of moved texts.
        yield partition, schema.one_batch(schema.MOVED.empty_table())
        if self._moves:
            texts = _texts_of(repeated, matches)
            kept, _ = steps.draw(texts, **self._draws)
            texts = texts.filter(pa.array(kept))
            rows = pc.index_in(texts["image_id"], repeated["image_id"].combine_chunks())
            moved = texts.append_column("kept_as", repeated["kept_as"].take(rows))
            yield from by_partition(
                schema.one_batch(moved), self._partitions, by="kept_as"
            )


def _dedup_flow(ok: pa.Table, repeated: pa.Table, *, moves: bool) -> pa.RecordBatch:
    """FLOW of repeated images, whose texts are moved or dropped."""
    lost, left = (pc.sum(images["texts"]).as_py() or 0 for images in (repeated, ok))
    texts = drops.flow(
        "image_dedup",
        entered=left if moves else left + lost,  # MergeTexts counts what is moved
        left=left,
        drops={} if moves else {"repeated_image": lost},
    )
    images = drops.flow(
        "image_dedup",
        unit="images",
        entered=ok.num_rows + repeated.num_rows,
        left=ok.num_rows,
        drops={"repeated_image": repeated.num_rows},
    )
    return schema.sum_counts([texts, images], schema.FLOW)


def _texts_of(images: pa.Table, matches: pa.Table) -> pa.Table:
    ids = images["image_id"].combine_chunks()
    return matches.filter(pc.is_in(matches["image_id"], ids))


class MergeTexts(beam.DoFn):
    """(partition, MOVED batches) -> texts that its images take over from repeats."""

    def __init__(
        self, workdir: str, partitions: int, *, draws: Mapping, most: int
    ) -> None:
        self._workdir, self._partitions = workdir, partitions
        self._draws, self._most = dict(draws), most

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch]:
        """Writes the part of new texts; yields their accepted draws."""
        partition, batches = element
        name = f"moved texts of partition {partition}"
        yield from attempts.thrice(name, lambda: self._outputs(partition, batches))

    def _outputs(
        self, partition: int, batches: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        moved = pa.Table.from_batches(batches, schema=schema.MOVED)
        own = parts.read(
            f"{self._workdir}/matches", parts.name(partition, self._partitions)
        )
        own = own.filter(pc.is_in(own["image_id"], pc.unique(moved["kept_as"])))
        kept, _ = steps.draw(own, **self._draws)
        new, lost = dedup.moved_texts(
            moved, own.filter(pa.array(kept)), most=self._most
        )
        flow = drops.flow(
            "image_dedup", entered=moved.num_rows, left=new.num_rows, drops=lost
        )
        part = parts.name(partition, self._partitions, MOVED_SUFFIX)
        parts.write(f"{self._workdir}/images", part, new, flow)
        yield Tagged("flow", flow)
        _, accepted = steps.draw(new, **self._draws)
        yield accepted
