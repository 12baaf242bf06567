"""Exact duplicates: of (image, text) rows, and of images with the same bytes."""

import pyarrow as pa
import pyarrow.compute as pc


def sort_and_drop_repeats(table: pa.Table) -> pa.Table:
    """Returns the rows of a MATCHES table with unique (image_id, text), sorted.

    Of equal pairs the one with the smallest text source and page URL stays, so
    the result depends on the set of rows and not on their order.
    """
    order = ["image_id", "text", "text_source", "page_url"]
    table = table.sort_by([(k, "ascending") for k in order]).combine_chunks()
    if table.num_rows == 0:
        return table
    ids, texts = (table[k].combine_chunks() for k in ("image_id", "text"))
    again = pc.and_(
        pc.equal(ids[1:], ids[:-1]),
        pc.equal(texts[1:], texts[:-1]),
    )
    first = pa.concat_arrays([pa.array([True]), pc.invert(again)])
    return table.filter(first)


def repeated_images(images: pa.Table) -> pa.Table:
    """Returns the rows of an IMAGES table whose bytes belong to a smaller image_id.

    Only rows with status "ok" are compared, by sha256. The row with the smallest
    image_id of each group is not returned: it stays.
    """
    ok = images.filter(pc.equal(images["status"], "ok")).sort_by(
        [("sha256", "ascending"), ("image_id", "ascending")]
    )
    ok = ok.combine_chunks()
    if ok.num_rows == 0:
        return ok
    digests = ok["sha256"].combine_chunks()
    again = pc.equal(digests[1:], digests[:-1])
    return ok.filter(pa.concat_arrays([pa.array([False]), again]))
