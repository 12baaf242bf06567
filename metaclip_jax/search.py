"""Finds the images of a dataset that fit a text or another image best.

    python -m metaclip_jax.search --embeddings=DIR --dataset=DIR \\
        --query="a red car" --output=sheet.html

reads what metaclip_jax.embed wrote, prints the best images and renders them as a
contact sheet: one HTML file that needs nothing else, or a PNG, by the name's ending.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from metaclip_jax import files, predict
from metaclip_jax.cli import command
from metaclip_jax.data import decoding, embeddings, records, sheet
from metaclip_jax.data.image_tags import UndecodableImage
from metaclip_jax.inference import model_flags

_SIDE = 256  # pixels of a picture on the sheet


class Hit(NamedTuple):
    """An image that was found: its place in the dataset, its cosine with the query."""

    position: int
    image_id: str
    score: float


class Picture(NamedTuple):
    """A hit as it is shown. `jpeg` is empty where the image cannot be decoded."""

    hit: Hit
    texts: tuple[str, ...]
    jpeg: bytes


def nearest(folder: str, query: np.ndarray, *, count: int) -> list[Hit]:
    """The images whose embeddings are nearest to a query, best first.

    Of equal scores the image that comes first in the dataset is first. One part is in
    memory at a time.

    Args:
      folder: of metaclip_jax.embed.
      query: f32[E], unit norm.
      count: how many at most; images without an embedding are never found.
    """
    if query.shape != (embeddings.read_manifest(folder)["embed_dim"],):
        raise ValueError(
            f"want a query of {embeddings.read_manifest(folder)['embed_dim']}"
            f" channels, as {folder} has, got {query.shape}; is it the same model?"
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


def pictures(dataset: records.Dataset, hits: Sequence[Hit]) -> list[Picture]:
    """Reads the hits' texts and makes small pictures of their images.

    Raises:
      ValueError: the dataset is another than the one that was embedded.
    """
    positions = [hit.position for hit in hits if hit.position < len(dataset)]
    read = [records.decode(data) for data in records.read(dataset, positions)]
    if [record.image_id for record in read] != [hit.image_id for hit in hits]:
        raise ValueError(
            f"{dataset.folder} is not the dataset that was embedded: other images stand"
            " in its places; give --dataset the one that metaclip_jax.embed read"
        )
    return [
        Picture(hit, record.texts, _thumbnail(record.image))
        for hit, record in zip(hits, read, strict=True)
    ]


def table(found: Sequence[Picture]) -> str:
    """The hits, a line each: rank, cosine, image id and first text."""
    lines = [f"{'rank':>4} {'cosine':>7} {'image_id':<24} text"]
    for rank, picture in enumerate(found, 1):
        text = predict.printable(picture.texts[0] if picture.texts else "")
        lines.append(
            f"{rank:>4} {picture.hit.score:>7.4f} {picture.hit.image_id:<24} {text}"
        )
    return "\n".join(lines)


def to_sheet(query: str, found: Sequence[Picture]) -> sheet.Sheet:
    """Returns the contact sheet of what was found, best first.

    The pictures are encoded anew, so that no stranger's bytes reach the browser.
    """
    cells = [
        sheet.Cell(
            jpeg=picture.jpeg,
            text=picture.texts[0] if picture.texts else "",
            note=f"{rank}   {picture.hit.score:.3f}",
            others=picture.texts[1:],
        )
        for rank, picture in enumerate(found, 1)
    ]
    note = "Each with its rank and its cosine with the query."
    return sheet.Sheet(title=query, cells=cells, note=note)


def _thumbnail(data: bytes) -> bytes:
    """The image within _SIDE x _SIDE pixels as JPEG; empty if it cannot be decoded."""
    try:
        image = decoding.decode(data)
    except UndecodableImage:
        return b""
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def main(argv: Sequence[str]) -> None:
    """Searches from the command line."""
    command.refuse_arguments(argv)
    values = flags.FLAGS
    if bool(values.query) == bool(values.image):
        raise app.UsageError('want either --query="a text" or --image=FILE')
    if values.output and not values.output.endswith((".html", ".png")):
        raise app.UsageError(f"--output={values.output} must end in .html or .png")
    manifest = embeddings.read_manifest(values.embeddings)
    dataset = records.open_dataset(values.dataset)
    # The embeddings' own model, computed as they were.
    name = values.model or manifest["model"]
    values.dtype = manifest["dtype"]
    model = model_flags.load(values, name)
    if model.fingerprint != manifest["inputs"]["model"]:
        raise ValueError(
            f"{values.embeddings} was made by another model: wanted the fingerprint"
            f" {manifest['inputs']['model']}, and {name} has {model.fingerprint}; give"
            " --model the same one, or embed again"
        )
    query = (
        model.embed_texts([values.query])
        if values.query
        else model.embed_images([values.image])
    )
    found = pictures(dataset, nearest(values.embeddings, query[0], count=values.top))
    print(table(found))
    if values.output:
        shown = to_sheet(values.query or values.image, found)
        png = values.output.endswith(".png")
        files.write_bytes(values.output, sheet.render(shown, png=png))


if __name__ == "__main__":
    model_flags.define(required=False)
    flags.DEFINE_string("embeddings", None, "Folder of embed.", required=True)
    flags.DEFINE_string("dataset", None, "Dataset that was embedded.", required=True)
    flags.DEFINE_string("query", "", "Text to look for.")
    flags.DEFINE_string("image", "", "Or the image to look for others like it.")
    flags.DEFINE_integer("top", 24, "Images to find.", lower_bound=1)
    flags.DEFINE_string("output", "", "Contact sheet, .html or .png; empty = none.")
    command.run(main)
