"""Measures a model on any data: in training, by its workdir, by its name, alike."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tqdm

from metaclip_jax import files
from metaclip_jax.data import records
from metaclip_jax.evaluation import (
    association,
    classification,
    parquet,
    prompts,
    retrieval,
    webdataset,
)
from metaclip_jax.evaluation import encoder as encoders
from metaclip_jax.evaluation.encoder import Encoder, ImageLike
from metaclip_jax.evaluation.examples import (
    Embeddings,
    Examples,
    Result,
    Statistic,
    nested,
)
from metaclip_jax.evaluation.held_out import load_held_out
from metaclip_jax.evaluation.labelled import from_folder, from_tfds

_CHECKED = 256  # images read at a time to check them
_THREADS = 4

# Each has names(examples), what it measures on them, and run(encoder, examples,
# embeddings, resamples=), which yields a Result for each of those names.
EVALUATIONS: Mapping[str, ModuleType] = {
    "retrieval": retrieval,
    "classification": classification,
    "association": association,
}


def open_data(
    data: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    prompts_path: str = "",
) -> Examples:
    """Opens whatever `data` is.

    Args:
      data: a dataset folder as curation writes it (retrieval, and classification where
        it holds a zero_shot.json), a folder in the hub's WebDataset layout or of
        Parquet files, a folder class/image, or what TFDS knows: a prepared folder or a
        name.
      split: of a dataset that has several.
      data_dir: where TFDS keeps datasets; None = its default.
      prompts_path: JSON as `prompts.load_prompts` reads it; "" = the default template
        and the data's own names.
    """
    asked = prompts.load_prompts(prompts_path) if prompts_path else None
    root = files.path(data)
    if (root / records.DATA_CARD).exists():
        return load_held_out(data, asked)
    if webdataset.is_folder(data, split):
        return webdataset.open_folder(data, split=split, asked=asked)
    if parquet.is_folder(data, split):
        return parquet.open_folder(data, split=split, asked=asked)
    named = asked or prompts.Prompts(None, prompts.DEFAULT_TEMPLATES)
    if root.is_dir() and not (root / "features.json").exists():
        return from_folder(data, named)
    return from_tfds(data, split, named, data_dir=data_dir)


def check_headers(examples: Examples) -> None:
    """Looks at the start of every image, which takes a fraction of decoding them.

    Raises:
      ValueError: some are no images, or are cut off; names them.
      FileNotFoundError: a path leads nowhere.
    """
    broken: list[str] = []

    def check(name: str, image: ImageLike) -> None:
        try:
            encoders.check_image(image)
        except ValueError as error:
            broken.append(f"{name} ({error})")

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(examples.names), _CHECKED):
            rows = np.arange(start, min(start + _CHECKED, len(examples.names)))
            names = [examples.names[row] for row in rows.tolist()]
            list(pool.map(check, names, examples.read(rows)))
    if broken:
        raise ValueError(
            f"{examples.source}: {len(broken)} of {len(examples.names)} images are"
            f" broken: {', '.join(sorted(broken)[:5])}. Repair or remove them, or leave"
            " them out with --skip_broken"
        )


def embed(
    encoder: Encoder,
    examples: Examples,
    *,
    show: bool = False,
    on_broken: encoders.OnBroken | None = None,
) -> Embeddings:
    """Embeds all images and texts.

    Args:
      encoder: of the model.
      examples: what is embedded.
      show: whether a terminal sees a progress bar.
      on_broken: see `Encoder.encode_images`.

    Raises:
      ValueError: an image cannot be decoded; names it.
    """
    whole, rows = examples.whole, examples.rows
    if whole is not None:
        of = _embed_whole(encoder, whole, show=show, skip=on_broken is not None)
        for place, row in enumerate(rows.tolist()):
            if on_broken is not None and row in of.broken:
                on_broken(place, of.broken[row])
        return Embeddings(of.embeddings[rows], encoder.encode_texts(examples.texts))
    total = len(examples.names)
    with tqdm.tqdm(total=total, unit="image", disable=None if show else True) as bar:

        def read(rows: np.ndarray) -> list[Any]:
            bar.update(len(rows))
            return examples.read(rows)

        image = encoder.encode_images(
            read,
            names=lambda row: f"{examples.source}: {examples.names[row]}",
            total=total,
            on_broken=on_broken,
        )
    return Embeddings(image, encoder.encode_texts(examples.texts))


def _embed_whole(
    encoder: Encoder, whole: Examples, *, show: bool, skip: bool
) -> encoders.Whole:
    """Embeds images that are measured in parts; the last ones stay in memory."""
    found = encoder.wholes.get("last")
    if found is None or found.key is not whole or (found.broken and not skip):
        broken: dict[int, ValueError] = {}
        embeddings = embed(
            encoder, whole, show=show, on_broken=broken.__setitem__ if skip else None
        )
        found = encoders.Whole(whole, embeddings.image, broken)
        encoder.wholes["last"] = found
    return found


def names(examples: Examples) -> tuple[str, ...]:
    """The names of all numbers that `results` yields for these examples."""
    return tuple(n for module in EVALUATIONS.values() for n in module.names(examples))


def results(
    encoder: Encoder, examples: Examples, embeddings: Embeddings, *, resamples: int
) -> Iterator[Result]:
    """Yields the numbers of every evaluation that these examples allow.

    Args:
      encoder: embeds the classes.
      examples: what was embedded.
      embeddings: from `embed`.
      resamples: of the bootstrap behind each interval.
    """
    for module in EVALUATIONS.values():
        if module.names(examples):
            yield from module.run(encoder, examples, embeddings, resamples=resamples)


class Embedded(NamedTuple):
    """Images that can be decoded, their embeddings; the others and why they cannot."""

    examples: Examples
    embeddings: Embeddings
    skipped: dict[str, str]


def embed_usable(
    encoder: Encoder, examples: Examples, *, skip_broken: bool = False
) -> Embedded:
    """Embeds all images and texts, with a progress bar.

    With `skip_broken`, images that cannot be decoded are left out, with their texts.

    Raises:
      ValueError: an image cannot be decoded, or all are left out.
    """
    broken: dict[int, ValueError] = {}
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
        raise ValueError(f"{examples.source}: all {len(broken)} images are broken")
    return Embedded(
        examples.take(rows),
        Embeddings(embeddings.image[rows], embeddings.text[examples.texts_of(rows)]),
        {str(examples.names[row]): str(broken[row]) for row in sorted(broken)},
    )


def evaluate(
    encoder: Encoder, examples: Examples, *, resamples: int, skip_broken: bool = False
) -> dict[str, Any]:
    """The numbers as JSON files hold them, see `numbers`; embeds first.

    Raises:
      ValueError: an image cannot be decoded, or all are left out.
    """
    embedded = embed_usable(encoder, examples, skip_broken=skip_broken)
    return numbers(encoder, embedded, resamples=resamples)


def numbers(encoder: Encoder, embedded: Embedded, *, resamples: int) -> dict[str, Any]:
    """`examples.nested`, with counts; "skipped" holds images that were left out."""
    examples, embeddings, skipped = embedded
    found = with_counts(
        results(encoder, examples, embeddings, resamples=resamples), examples
    )
    return found | ({"skipped": skipped} if skipped else {})


def statistic(encoder: Encoder, embedded: Embedded, name: str) -> Statistic:
    """How the number `name`, one of `names`, follows from the images."""
    examples, embeddings, _ = embedded
    for module in EVALUATIONS.values():
        if name in module.names(examples):
            found: Statistic = module.statistic(encoder, examples, embeddings, name)
            return found
    raise ValueError(f"want one of {', '.join(names(examples))}, got {name}")


def with_counts(found: Iterator[Result], examples: Examples) -> dict[str, Any]:
    """`examples.nested`, with how many images and classes "zero_shot" is of."""
    scores = nested(found)
    if "zero_shot" in scores:
        scores["zero_shot"] |= {
            "images": len(examples.labelled),
            "classes": len(examples.class_names),
        }
    return scores
