"""Texts and pictures for the report, taken from the finished records.

Pictures are decoded and encoded again at thumbnail size, so that no untrusted bytes
reach the page.
"""

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_prep.report.load import EntryCounts
from metaclip_jax.data import decoding, records

_SCANNED = 20_000  # records in which texts of entries are sought
_CANDIDATES = 24  # texts of an entry to choose its examples from
_ENTRIES, _TEXTS = 6, 3  # shown of the head and of the tail; of an entry
_DROPPED = 6  # examples shown of a reason
_SIDE, _DROPPED_SIDE, _CARD_SIDE = 80, 96, 176  # px, about twice what a page shows


@dataclass(frozen=True)
class Example:
    """One text, and its image as a data: URI."""

    text: str
    thumbnail: str


@dataclass(frozen=True)
class EntryExamples:
    """One entry with its counts and a few of its texts."""

    entry: str
    pool: int
    kept: int
    examples: list[Example]


def thumbnail(image: bytes, *, side: int) -> str:
    """Returns the picture, at most side x side px, as a data: URI of a WebP.

    Returns "" for bytes that cannot or should not be decoded.
    """
    try:
        picture = decoding.decode(image)
    except decoding.UndecodableImage:
        return ""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    picture.save(encoded, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()


def head_and_tail(
    dataset: str, counts: EntryCounts
) -> tuple[list[EntryExamples], list[EntryExamples]]:
    """Picks entries of the head and of the tail with texts of the dataset.

    Looks at the first records only. Head entries are those with most matches in the
    pool; tail entries are sampled evenly over the range of counts. Without t, the upper
    half of the entries counts as the head.
    """
    opened = records.open_dataset(dataset)
    texts_of: dict[int, dict[str, int]] = {}  # entry id -> text -> record position
    scanned = range(min(_SCANNED, len(opened)))
    for position, record in enumerate(records.decoded(opened, scanned)):
        for index, text in enumerate(record.texts):
            if record.metadata[index] != counts.code:
                continue
            start, end = record.entry_offsets[index : index + 2]
            for entry_id in record.entry_ids[start:end].tolist():
                candidates = texts_of.setdefault(entry_id, {})
                if len(candidates) < _CANDIDATES:
                    candidates.setdefault(text, position)
    seen = np.isin(counts.entry_ids, np.fromiter(texts_of, np.int64, len(texts_of)))
    head = counts.head()
    if counts.t is None:
        head = np.arange(len(counts.pool)) < len(counts.pool) / 2
    head_rows = np.flatnonzero(head & seen)[:_ENTRIES]
    tail_rows = _spread(np.flatnonzero(~head & seen), _ENTRIES)
    used: set[int] = set()
    chosen = {
        row: _different_images(texts_of[int(counts.entry_ids[row])], used, _TEXTS)
        for row in (*head_rows.tolist(), *tail_rows.tolist())
    }
    shown = sorted(used)
    pictures = {
        position: thumbnail(record.image, side=_SIDE)
        for position, record in zip(shown, records.decoded(opened, shown), strict=True)
    }

    def show(row: int) -> EntryExamples:
        return EntryExamples(
            entry=counts.entries[row],
            pool=int(counts.pool[row]),
            kept=int(counts.kept[row]),
            examples=[Example(text, pictures[at]) for text, at in chosen[row]],
        )

    return [show(row) for row in head_rows], [show(row) for row in tail_rows]


def dropped(
    rows: Sequence[Mapping[str, Any]], funnel: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns reasons in the funnel's order with some examples each, pictures first.

    Args:
      rows: the sample of what was dropped, `load.rejects`.
      funnel: `load.funnel`, with how many texts each reason dropped.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in funnel:
        for reason, count in stage["drops"]:
            key = stage["stage"], reason
            own = [row for row in rows if (row["stage"], row["reason"]) == key]
            if not own or key in groups and stage["unit"] != "texts":
                continue
            own = sorted(own, key=lambda row: not row["picture"])[:_DROPPED]
            shown = [
                Example(
                    row["text"] or row["image_url"],
                    thumbnail(row["picture"], side=_DROPPED_SIDE),
                )
                for row in own
            ]
            groups[key] = {
                "stage": stage["stage"],
                "reason": reason,
                "count": count,
                "unit": stage["unit"],
                "examples": shown,
            }
    return list(groups.values())


def thumbnails(dataset: str, image_ids: Collection[str]) -> dict[str, str]:
    """Returns thumbnails by image id; ids that the dataset lacks are left out."""
    opened = records.open_dataset(dataset)
    wanted, result = set(image_ids), {}
    for record in records.decoded(opened, range(len(opened))):
        if record.image_id in wanted:
            result[record.image_id] = thumbnail(record.image, side=_CARD_SIDE)
        if len(result) == len(wanted):
            break
    return result


def _different_images(
    candidates: dict[str, int], used: set[int], wanted: int
) -> list[tuple[str, int]]:
    """Picks (text, record position), images not yet `used` first; adds to `used`."""
    fresh = {position: text for text, position in candidates.items()}
    ordered = sorted(fresh.items(), key=lambda item: (item[0] in used, item[0]))
    picked = [(text, position) for position, text in ordered[:wanted]]
    used.update(position for _, position in picked)
    return picked


def _spread(rows: np.ndarray, wanted: int) -> np.ndarray:
    """At most `wanted` of the rows, evenly spaced, first and last among them."""
    if len(rows) <= wanted:
        return rows
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(int)]
