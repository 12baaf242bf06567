"""Runs all evaluations that a data set allows, for any model."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tqdm

from metaclip_jax import files
from metaclip_jax.data import record_files
from metaclip_jax.evaluation import (
    association,
    classification,
    parquet,
    prompts,
    retrieval,
    statistics,
    webdataset,
)
from metaclip_jax.evaluation.encoder import (
    Encoder,
    ImageLike,
    OnBroken,
    Whole,
    check_image,
)
from metaclip_jax.evaluation.examples import (
    Embeddings,
    Examples,
    Result,
    Statistic,
    nested,
)
from metaclip_jax.evaluation.labelled import from_folder, from_tfds

_CHECKED = 256  # images read at a time to check them
_THREADS = 4

# Each module has names(examples), the names of its results, and measure(encoder,
# examples, embeddings), which returns a Statistic for each.
EVALUATIONS: tuple[ModuleType, ...] = (retrieval, classification, association)


def open_data(
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    prompts_path: str = "",
) -> Examples:
    """Opens data in any supported layout.

    Args:
      data: a dataset folder of curation (for retrieval, and for classification if it
        has a zero_shot.json), a folder in the hub's WebDataset layout or of Parquet
        files, a folder CLASS/IMAGE, or a TFDS dataset: a prepared folder or a name.
      split: of a dataset with several splits.
      data_dir: TFDS's folder of datasets; None = its default.
      prompts_path: JSON for `prompts.load_prompts`; "" = the default template and the
        data's class names.
    """
    asked = prompts.load_prompts(prompts_path) if prompts_path else None
    root = files.path(data)
    if (root / record_files.DATA_CARD).exists():
        from metaclip_jax.evaluation import held_out  # a slow import, of TFDS

        return held_out.load_held_out(data, asked)
    if webdataset.is_folder(data, split):
        return webdataset.open_folder(data, split=split, asked=asked)
    if parquet.is_folder(data, split):
        return parquet.open_folder(data, split=split, asked=asked)
    named = asked or prompts.Prompts()
    if root.is_dir() and not (root / "features.json").exists():
        return from_folder(data, named)
    return from_tfds(data, split, named, data_dir=data_dir)


def check_headers(examples: Examples) -> None:
    """Checks every image by its file's structure, which is much faster than decoding.

    Raises:
      ValueError: some are not images, truncated or cannot be read; the message names
        them.
    """
    broken: list[str] = []

    def check(name: str, image: ImageLike) -> None:
        try:
            check_image(image)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            broken.append(f"{name} ({error})")

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(examples.names), _CHECKED):
            rows = np.arange(start, min(start + _CHECKED, len(examples.names)))
            names = [examples.names[row] for row in rows.tolist()]
            list(pool.map(check, names, examples.read(rows)))
    if broken:
        raise ValueError(
            f"{examples.source}: {len(broken)} of {len(examples.names)} images are"
            f" broken: {', '.join(sorted(broken)[:5])}. Repair or remove them, or skip"
            " them with --skip_broken"
        )


def embed(
    encoder: Encoder,
    examples: Examples,
    *,
    show: bool = False,
    on_broken: OnBroken | None = None,
) -> Embeddings:
    """Embeds all images and texts.

    Args:
      encoder: of the model.
      examples: to embed.
      show: whether to show a progress bar on a terminal.
      on_broken: see `Encoder.encode_images`.

    Raises:
      ValueError: an image cannot be decoded; the message names it.
    """
    whole, rows = examples.whole, examples.rows
    if whole is not None:
        of = _embed_whole(encoder, whole, show=show, skip=on_broken is not None)
        for place, row in enumerate(rows.tolist()):
            if on_broken is not None and row in of.broken:
                on_broken(place, of.broken[row])
        return Embeddings(of.embeddings[rows], encoder.encode_texts(examples.texts))
    total = len(examples.names)
    with tqdm.tqdm(
        total=total,
        desc=examples.source[-32:],
        unit="image",
        leave=False,  # a table follows
        disable=None if show else True,
    ) as bar:

        def read(rows: np.ndarray) -> Sequence[Any]:
            bar.update(len(rows))
            return examples.read(rows)

        image = encoder.encode_images(
            read,
            names=lambda row: f"{examples.source}: {examples.names[row]}",
            total=total,
            on_broken=on_broken,
        )
    return Embeddings(image, encoder.encode_texts(examples.texts))


def _embed_whole(encoder: Encoder, whole: Examples, *, show: bool, skip: bool) -> Whole:
    """Embeds an image set of which subsets are measured, and caches the last set."""
    found = encoder.wholes.get("last")
    if found is None or found.key is not whole or (found.broken and not skip):
        broken: dict[int, Exception] = {}
        embeddings = embed(
            encoder, whole, show=show, on_broken=broken.__setitem__ if skip else None
        )
        found = Whole(whole, embeddings.image, broken)
        encoder.wholes["last"] = found
    return found


def names(examples: Examples) -> tuple[str, ...]:
    """Returns the names of all results that `results` yields for these examples."""
    return tuple(name for module in EVALUATIONS for name in module.names(examples))


def results(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Yields the results of every evaluation that these examples allow.

    Args:
      encoder: embeds the classes.
      examples: of the embeddings.
      embeddings: from `embed`.
      resamples: of each interval's bootstrap.
    """
    for module in EVALUATIONS:
        if module.names(examples):
            found = module.measure(encoder, examples, embeddings)
            for name, one in found.items():
                yield statistics.result(name, one, resamples=resamples)


class Embedded(NamedTuple):
    """Decodable images with their embeddings; `skipped`: the others' errors by name."""

    examples: Examples
    embeddings: Embeddings
    skipped: dict[str, str]


def embed_usable(
    encoder: Encoder, examples: Examples, *, skip_broken: bool = False
) -> Embedded:
    """Embeds all images and texts, with a progress bar.

    With `skip_broken`, images that cannot be decoded are skipped with their texts.

    Raises:
      ValueError: an image cannot be decoded, or all are skipped.
    """
    broken: dict[int, Exception] = {}
    embeddings = embed(
        encoder,
        examples,
        show=True,
        on_broken=broken.__setitem__ if skip_broken else None,
    )
    if not broken:
        return Embedded(examples, embeddings, {})
    rows = np.setdiff1d(np.arange(len(examples.names)), list(broken))
    if not len(rows):
        raise ValueError(
            f"{examples.source}: wanted at least one usable image, but all"
            f" {len(broken)} are broken; restore the files"
        )
    return Embedded(
        examples.take(rows),
        Embeddings(embeddings.image[rows], embeddings.text[examples.texts_of(rows)]),
        {str(examples.names[row]): str(broken[row]) for row in sorted(broken)},
    )


def evaluate(
    encoder: Encoder, examples: Examples, *, resamples: int, skip_broken: bool = False
) -> dict[str, Any]:
    """Embeds and measures the examples; returns `numbers`.

    Raises:
      ValueError: an image cannot be decoded, or all are skipped.
    """
    embedded = embed_usable(encoder, examples, skip_broken=skip_broken)
    return numbers(encoder, embedded, resamples=resamples)


def numbers(encoder: Encoder, embedded: Embedded, *, resamples: int) -> dict[str, Any]:
    """Returns all results as JSON (`examples.nested`), with counts and "skipped"."""
    examples, embeddings, skipped = embedded
    found = nested(results(encoder, examples, embeddings, resamples=resamples))
    if "zero_shot" in found:
        found["zero_shot"] |= {
            "images": len(examples.labelled),
            "classes": len(examples.class_names),
        }
    return found | ({"skipped": skipped} if skipped else {})


def statistic(encoder: Encoder, embedded: Embedded, name: str) -> Statistic:
    """Returns the result `name`, one of `names`, as a function of weights."""
    examples, embeddings, _ = embedded
    for module in EVALUATIONS:
        if name in module.names(examples):
            found: Statistic = module.measure(encoder, examples, embeddings)[name]
            return found
    raise ValueError(f"wanted one of {', '.join(names(examples))}, got {name}")
