"""Checks what the stages of a run left, and reopens downloads to retry them."""

from collections.abc import Mapping
from typing import Any

from absl import logging

from data_prep import drops
from data_prep.images import failures
from data_prep.stages import sums
from metaclip_jax import files
from metaclip_jax.data import records

PART = "outcomes.parquet"  # images by status of their download

_SHOWN = 5  # of what failed
_TEXTS_PER_PARTITION = 20_000  # with more, reading a record takes longer
_MANY_PARTITIONS = 10  # times those that are enough


def check_texts(folder: str) -> None:
    """Checks that a run's source files had texts, and warns if none of them matched.

    Args:
      folder: of the matched parts, with the sums of all source files.

    Raises ValueError if there was not a single text.
    """
    funnel, left = _texts(folder)
    if not left.get("parse"):
        raise ValueError(
            f"config.source: wanted texts, got none{drops.lost(funnel)}. Correct "
            "config.source.kind, paths or columns, and choose another --workdir"
        )
    if not left.get("match"):
        logging.warning("no text matched%s", drops.lost(funnel))


def check_partitions(folder: str, partitions: int) -> None:
    """Warns where partitions are many more than the matched texts fill.

    Args:
      folder: of the matched parts.
      partitions: config.partitions.
    """
    _, left = _texts(folder)
    texts = left.get("match", 0)
    enough = max(1, -(-texts // _TEXTS_PER_PARTITION))
    if partitions > _MANY_PARTITIONS * enough:
        logging.warning(
            "%s texts matched, which fill %s of %s partitions, and each makes several"
            " small files; --config.partitions=%d continues with fewer",
            *(f"{texts:,}", f"{enough:,}", f"{partitions:,}", enough),
        )


def _texts(folder: str) -> tuple[list[dict], dict[str, int]]:
    """Returns the funnel of a folder, and how many texts left each stage."""
    funnel = drops.funnel(sums.read_sum(folder, "flow.parquet"), sums.STAGES)
    left = {row["stage"]: row["out"] for row in funnel if row["unit"] == "texts"}
    return funnel, left


def check_failed(folder: str, *, most: int = 0) -> None:
    """Checks that nothing failed three times, but for `most` sources.

    Args:
      folder: of a stage, with the sum of its flow.
      most: how many sources may fail; they are counted as lost.

    Raises RuntimeError that lists what failed.
    """
    found: dict[str, list[str]] = {"sources": [], "partitions": []}
    for row in sums.read_sum(folder, "flow.parquet").to_pylist():
        if row["stage"] == drops.FAILED:
            found[row["unit"]].append(row["reason"])
    every = [*found["sources"], *found["partitions"]]
    for line in every:
        logging.error("failed three times: %s", line)
    sources, partitions = map(len, found.values())
    if partitions or sources > most:
        more = f"; and {len(every) - _SHOWN} more, in the log" * (len(every) > _SHOWN)
        cure = f"--max_failed_sources={sources} goes on without these sources"
        failure = RuntimeError(
            f"wanted at most {most} sources and no partition to fail three times, but "
            f"{sources} and {partitions} failed: {'; '.join(every[:_SHOWN])}{more}. "
            "Everything else of this stage is finished. The same command tries them "
            f"again{f'; {cure}' * bool(sources)}"
        )
        failure.add_note("\n".join(every))  # for `damage.find`
        raise failure


def report(output: str) -> None:
    """Prints the funnel of a finished dataset, and why it has no records if so."""
    card = files.read_json(files.path(output) / records.DATA_CARD)
    print(drops.render(card["funnel"]))
    print(f"{card['records']:,} records, {card['texts']:,} texts in {output}")
    if not card["records"]:
        logging.warning("0 records%s", drops.lost(card["funnel"]))


def read(folder: str) -> dict[str, int]:
    """Returns the number of images by download status."""
    return {
        row["value"]: row["count"] for row in sums.read_sum(folder, PART).to_pylist()
    }


def check(folder: str, max_failed_share: float) -> None:
    """Raises RuntimeError if more than that share of the downloads failed."""
    found = read(folder)
    if failures.too_many(found, max_failed_share):
        raise RuntimeError(
            f"wanted at most {max_failed_share:.0%} of the images to fail "
            f"(config.download.max_failed_share), but {failures.describe(found)}. The "
            "same command fetches again what may succeed now; a larger share goes on "
            "without these images"
        )
    if failures.share(found) > max_failed_share:  # of too few images to be an error
        logging.warning("%s", failures.describe(found))


def any_to_retry(folder: str, inputs: Mapping[str, Any]) -> bool:
    """Whether failed downloads may succeed now, in the folder of the images stage.

    Raises ValueError if the folder belongs to another run.
    """
    if files.finished(folder, inputs) is None:
        return True
    found = read(folder)
    if not failures.any_to_retry(found):
        logging.info("no download failed for a reason that may be temporary")
        return False
    logging.info("%s; retrying them", failures.describe(found))
    return True
