"""Finds the images of a dataset that are most similar to a text or an image.

    python -m metaclip_jax.search --embeddings=DIR --dataset=DIR \\
        --query="a red car" --output=sheet.html

reads the output of metaclip_jax.embed, prints the best images, and renders them as a
contact sheet: a self-contained HTML file or a PNG, by the name's ending.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from metaclip_jax import files, predict
from metaclip_jax.cli import command
from metaclip_jax.data import decoding, embeddings, records, sheet
from metaclip_jax.inference import model_flags

_SIDE = 256  # pixels of a picture on the sheet


class Hit(NamedTuple):
    """A found image: its position in the dataset, and its cosine with the query."""

    position: int
    image_id: str
    score: float


class Picture(NamedTuple):
    """A hit with its texts and thumbnail; `jpeg` is b"" if it cannot be decoded."""

    hit: Hit
    texts: tuple[str, ...]
    jpeg: bytes


def nearest(folder: str, query: np.ndarray, *, count: int) -> list[Hit]:
    """Returns the images with the highest cosine with a query, best first.

    On ties the image with the lower position is first. Only one part of the embeddings
    is in memory at a time.

    Args:
      folder: the output of metaclip_jax.embed.
      query: f32[E], unit norm.
      count: most hits; images without an embedding are never hits.

    Raises:
      ValueError: the query has another width.
    """
    if query.shape != (embeddings.read_manifest(folder)["embed_dim"],):
        raise ValueError(
            f"wanted a query of {embeddings.read_manifest(folder)['embed_dim']}"
            f" channels, as {folder} has, got {query.shape}; use the same model"
        )
    best: list[Hit] = []
    start = 0
    for part in embeddings.read_parts(folder):
        scores = part.embedding @ query
        usable = np.array([status == embeddings.OK for status in part.status], bool)
        rows = np.flatnonzero(usable)
        rows = rows[np.argsort(-scores[rows], kind="stable")[:count]]
        best += [
            Hit(start + row, part.image_ids[row], float(scores[row]))
            for row in rows.tolist()
        ]
        best = sorted(best, key=lambda hit: (-hit.score, hit.position))[:count]
        start += len(part.status)
    return best


def read_pictures(dataset: records.Dataset, hits: Sequence[Hit]) -> list[Picture]:
    """Reads the hits' texts and makes thumbnails of their images.

    Raises:
      ValueError: another dataset was embedded.
    """
    positions = [hit.position for hit in hits if hit.position < len(dataset)]
    read = [records.decode(data) for data in records.read(dataset, positions)]
    if [record.image_id for record in read] != [hit.image_id for hit in hits]:
        raise ValueError(
            f"{dataset.folder} is not the dataset that was embedded: its image ids"
            " differ; give --dataset the one that metaclip_jax.embed read"
        )
    return [
        Picture(
            hit, record.texts, decoding.thumbnail(record.image, side=_SIDE, quality=90)
        )
        for hit, record in zip(hits, read, strict=True)
    ]


def table(pictures: Sequence[Picture]) -> str:
    """Formats the hits, one per line: rank, cosine, image id and first text."""
    lines = [f"{'rank':>4} {'cosine':>7} {'image_id':<24} text"]
    for rank, picture in enumerate(pictures, 1):
        text = predict.printable(picture.texts[0] if picture.texts else "")
        lines.append(
            f"{rank:>4} {picture.hit.score:>7.4f} {picture.hit.image_id:<24} {text}"
        )
    return "\n".join(lines)


def to_sheet(query: str, pictures: Sequence[Picture]) -> sheet.Sheet:
    """Returns the contact sheet of the hits, best first.

    The images are re-encoded, so that no stranger's bytes reach the browser.
    """
    cells = [
        sheet.Cell(
            jpeg=picture.jpeg,
            text=picture.texts[0] if picture.texts else "",
            note=f"{rank}   {picture.hit.score:.3f}",
            others=picture.texts[1:],
        )
        for rank, picture in enumerate(pictures, 1)
    ]
    note = "Each with its rank and its cosine with the query."
    return sheet.Sheet(title=query, cells=cells, note=note)


def main(argv: Sequence[str]) -> None:
    """Searches from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if bool(values.query) == bool(values.image):
        got = "both" if values.query else "neither"
        raise app.UsageError(
            f'wanted either --query="a text" or --image=FILE, got {got}; give one'
        )
    command.check_output("--output", values.output, ".html", ".png")
    manifest = embeddings.read_manifest(values.embeddings)
    dataset = records.open_dataset(values.dataset)
    # The query needs the model and the dtype of the embeddings.
    name = values.model or manifest["model"]
    values.dtype = manifest["dtype"]
    model = model_flags.load(values, name)
    if model.fingerprint != manifest["inputs"]["model"]:
        raise ValueError(
            f"{values.embeddings} is of another model: wanted the fingerprint"
            f" {manifest['inputs']['model']}, got {model.fingerprint} of {name}; give"
            " --model the same model, or embed again"
        )
    query = (
        model.embed_texts([values.query])
        if values.query
        else model.embed_images([values.image])
    )
    hits = nearest(values.embeddings, query[0], count=values.top)
    pictures = read_pictures(dataset, hits)
    print(table(pictures))
    if values.output:
        shown = to_sheet(values.query or values.image, pictures)
        png = values.output.endswith(".png")
        files.write_bytes(values.output, sheet.render(shown, png=png))


if __name__ == "__main__":
    model_flags.define(required=False)
    flags.DEFINE_string("embeddings", None, "Output folder of embed.", required=True)
    flags.DEFINE_string("dataset", None, "Dataset that was embedded.", required=True)
    flags.DEFINE_string("query", "", "Text to search by.")
    flags.DEFINE_string("image", "", "Image file to search by, instead of a text.")
    flags.DEFINE_integer("top", 24, "Number of images to find.", lower_bound=1)
    flags.DEFINE_string("output", "", "Contact sheet, .html or .png; empty = none.")
    command.run(main)
