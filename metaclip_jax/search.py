"""Finds the images of a dataset that fit a text or another image best.

    python -m metaclip_jax.search --embeddings=DIR --dataset=DIR \
        --query="a red car" --output=sheet.html

reads what metaclip_jax.embed wrote, prints the best images and renders them as a
contact sheet: one HTML file that needs nothing else, or a PNG, by the name's ending.
"""

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

from metaclip_jax import files, model_flags, predict
from metaclip_jax.data import embeddings, images, records

_SIDE = 256  # pixels of a picture on the sheet
_COLUMNS = 6  # of the PNG
_LINE = 20  # pixels below each picture of the PNG

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem;
  padding: 0 1rem; color: #1d2733; background: #fff; }
.sheet { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; }
figcaption { overflow-wrap: anywhere; font-size: 13px; } b { color: #35618e; }
"""


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


def render_html(query: str, found: Sequence[Picture]) -> str:
    """The contact sheet as HTML; all that strangers wrote is escaped.

    The pictures are encoded anew, so that no stranger's bytes reach the browser.
    """
    figures = "".join(
        f'<figure><img alt="" src="data:image/jpeg;base64,'
        f'{base64.b64encode(picture.jpeg).decode()}">'
        f"<figcaption><b>{picture.hit.score:.3f}</b> "
        f"{html.escape(' · '.join(picture.texts))}</figcaption></figure>"
        for picture in found
    )
    title = html.escape(query)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f'<div class="sheet">{figures}</div></html>\n'
    )


def render_png(found: Sequence[Picture]) -> bytes:
    """The contact sheet as a PNG: pictures in rows, each with its rank and cosine."""
    columns = min(_COLUMNS, max(len(found), 1))
    rows = max(1, math.ceil(len(found) / columns))
    sheet = Image.new("RGB", (columns * _SIDE, rows * (_SIDE + _LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, picture in enumerate(found):
        left = place % columns * _SIDE
        top = place // columns * (_SIDE + _LINE)
        if picture.jpeg:
            small = Image.open(io.BytesIO(picture.jpeg))
            sheet.paste(small, (left + (_SIDE - small.width) // 2, top))
        said = f"{place + 1}   {picture.hit.score:.3f}"
        draw.text((left + 4, top + _SIDE + 4), said, fill="black")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _thumbnail(data: bytes) -> bytes:
    """The image within _SIDE x _SIDE pixels as JPEG; empty if it cannot be decoded."""
    try:
        image = images.open_eval(data)
    except images.UndecodableImage:
        return b""
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def main(argv: Sequence[str]) -> None:
    """Searches from the command line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; use --flags")
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
    if values.output.endswith(".html"):
        sheet = render_html(values.query or values.image, found).encode()
        files.write_bytes(values.output, sheet)
    elif values.output:
        files.write_bytes(values.output, render_png(found))


if __name__ == "__main__":
    model_flags.define(required=False)
    flags.DEFINE_string("embeddings", None, "Folder of embed.", required=True)
    flags.DEFINE_string("dataset", None, "Dataset that was embedded.", required=True)
    flags.DEFINE_string("query", "", "Text to look for.")
    flags.DEFINE_string("image", "", "Or the image to look for others like it.")
    flags.DEFINE_integer("top", 24, "Images to find.", lower_bound=1)
    flags.DEFINE_string("output", "", "Contact sheet, .html or .png; empty = none.")
    app.run(main)
