"""The steps of curation as functions from tables to tables, without Beam.

Each returns what it keeps and a Counter of what it drops, in texts. Entry counts
and keep probabilities are dicts: metadata code -> one vector by entry id.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from absl import logging

from data_prep import language, schema
from data_prep.matching import EveryText, Matcher, Reference
from metaclip_jax.data import balance, records

AnyMatcher = Matcher | Reference | EveryText
Vectors = Mapping[str, np.ndarray]
# Gets a reason, and the columns _SHOWN of what is dropped.
Reject = Callable[[str, pa.Table], None]
_SHOWN = ["image_id", "image_url", "text"]

# Which texts are drawn: every text by itself (MetaCLIP 1), one text of each image
# (MetaCLIP 2), or none, which leaves balancing to the trainer.
RULES = ("v1", "v2", "online")


def match(
    candidates: pa.RecordBatch,
    codes: Collection[str],
    matcher_of: Callable[[str], AnyMatcher],
    *,
    identify: language.LanguageIdentifier,
    reject: Reject = lambda reason, rows: None,
) -> tuple[pa.RecordBatch, Counter]:
    """Matches CANDIDATES with the metadata of their language; returns MATCHED.

    With one metadata matching comes first, since it is several times faster than
    language identification and drops half the texts; with several, a text's language
    decides its metadata.

    Args:
      candidates: CANDIDATES.
      codes: of the metadata.
      matcher_of: called with the codes that occur.
      identify: for texts whose language is not known.
      reject: gets some columns of what is dropped.
    """
    drops: Counter = Counter()
    table = pa.Table.from_batches([candidates])
    if len(codes) == 1:
        (code,) = codes
        table = _match_with(table, matcher_of(code), drops, reject)
        table = _with_language(table, codes, identify, drops, reject)
    else:
        table = _with_language(table, codes, identify, drops, reject)
        matched = [schema.MATCHED.empty_table()]
        for code in sorted(pc.unique(table["metadata"]).to_pylist()):
            rows = table.filter(pc.equal(table["metadata"], code))
            matched.append(_match_with(rows, matcher_of(code), drops, reject))
        table = pa.concat_tables(matched)
    return schema.one_batch(table.select(schema.MATCHED.names)), drops


def _match_with(
    table: pa.Table, matcher: AnyMatcher, drops: Counter, reject: Reject
) -> pa.Table:
    """Adds `entry_ids`; drops rows without any."""
    offsets, entry_ids = matcher.match(table["text"].combine_chunks())
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(entry_ids, pa.int32())
    )
    matched = np.diff(offsets) > 0
    drops["no_match"] += int(np.sum(~matched))
    if not matched.all():
        reject("no_match", table.select(_SHOWN).filter(pa.array(~matched)))
    return table.append_column("entry_ids", lists).filter(pa.array(matched))


def _with_language(
    table: pa.Table,
    available: Collection[str],
    identify: language.LanguageIdentifier,
    drops: Counter,
    reject: Reject,
) -> pa.Table:
    """Sets `language` and `metadata`; drops rows whose language has no metadata."""
    languages = language.resolve(
        table["text"].to_pylist(),
        declared=table["language"].to_pylist(),
        identified=_identified(table["page_text"], identify),
        identify=identify,
    )
    codes = {code: language.metadata_code(code, available) for code in set(languages)}
    wanted = pa.array([codes[code] for code in languages], pa.string())
    at = table.column_names.index("language")
    table = table.set_column(at, "language", pa.array(languages, pa.string()))
    table = table.drop_columns("page_text").append_column("metadata", wanted)
    drops["other_language"] += wanted.null_count
    if wanted.null_count:
        reject("other_language", table.select(_SHOWN).filter(wanted.is_null()))
    return table.filter(wanted.is_valid())


def _identified(
    page_texts: pa.ChunkedArray, identify: language.LanguageIdentifier
) -> list[str]:
    """Returns the language of each row's page, identified once for each text."""
    encoded = page_texts.combine_chunks().dictionary_encode()
    codes = language.of_pages(encoded.dictionary.to_pylist(), identify)
    return [codes[i] for i in encoded.indices.to_pylist()]


def count(matches: pa.Table) -> pa.RecordBatch:
    """Returns COUNTS: how many texts of MATCHES each entry matches."""
    vectors = {
        code: np.bincount(ids) for code, _, _, ids in _by_metadata(matches) if ids.size
    }
    return to_counts(vectors)


def to_counts(vectors: Vectors) -> pa.RecordBatch:
    """Returns COUNTS, sparse: one row per entry with a count above zero."""
    codes: list[str] = []
    entry_ids, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for code in sorted(vectors):
        nonzero = np.flatnonzero(vectors[code])
        codes += [code] * nonzero.size
        entry_ids.append(nonzero)
        counts.append(vectors[code][nonzero].astype(np.uint64))
    return schema.from_columns(
        {
            "metadata": codes,
            "entry_id": np.concatenate(entry_ids).astype(np.int32),
            "count": np.concatenate(counts),
        },
        schema.COUNTS,
    )


def to_vectors(counts: pa.RecordBatch, sizes: Mapping[str, int]) -> dict:
    """Returns {code: uint64[entries]} from COUNTS; `sizes` is entries per code."""
    vectors = {code: np.zeros(n, np.uint64) for code, n in sizes.items()}
    for code, entry_ids, numbers in _runs(counts):
        if code in vectors:
            np.add.at(vectors[code], entry_ids, numbers)
    return vectors


def add_counts(batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
    """Returns the sum of COUNTS, as `schema.sum_counts` does, but with less memory."""
    vectors: dict[str, np.ndarray] = {}
    for batch in batches:
        for code, entry_ids, numbers in _runs(batch):
            vector = vectors.setdefault(code, np.zeros(0, np.uint64))
            if vector.size <= entry_ids.max():
                wider = np.zeros(int(entry_ids.max()) + 1, np.uint64)
                wider[: vector.size] = vector
                vector = vectors[code] = wider
            np.add.at(vector, entry_ids, numbers)
    return to_counts(vectors)


def _runs(counts: pa.RecordBatch) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (code, int32 entry ids, uint64 counts) of rows that follow each other."""
    runs = pc.run_end_encode(counts["metadata"])
    entry_ids, numbers = (counts[name].to_numpy() for name in ("entry_id", "count"))
    start = 0
    for code, stop in zip(
        runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True
    ):
        yield code, entry_ids[start:stop], numbers[start:stop]
        start = stop


def to_matches(
    unique: pa.Table, *, seed: int, rule: str, scores: np.ndarray | None = None
) -> pa.Table:
    """Returns MATCHES: the texts with their keys, and whether the rule draws them.

    Args:
      unique: MATCHED rows, each (image, text) once, sorted by both.
      seed: of the choice of texts.
      rule: one of RULES.
      scores: f64[n], by which the texts exchange their keys; None: they keep them.
    """
    drawn = np.ones(unique.num_rows, bool)
    if rule == "v2":
        images = unique["image_id"].combine_chunks().dictionary_encode()
        sizes = np.bincount(images.indices, minlength=len(images.dictionary))
        keys = balance.image_keys(images.dictionary)
        chosen = balance.choose_texts(keys, sizes, seed=seed)
        drawn[:] = False
        drawn[np.cumsum(sizes) - sizes + chosen] = True
    keys = records.text_keys(unique["image_id"].to_pylist(), unique["text"].to_pylist())
    if scores is not None:
        # A text that is not drawn has no use for a small draw.
        scores = np.where(drawn, scores, np.nan)
        for _, rows, offsets, entry_ids in _by_metadata(unique):
            keys[rows] = balance.keys_by_score(
                seed, keys[rows], offsets, entry_ids, scores[rows]
            )
    unique = unique.append_column("text_key", pa.array(keys))
    return unique.append_column("drawn", pa.array(drawn))


def draw(
    matches: pa.Table, *, seed: int, keep_probability: Vectors
) -> tuple[np.ndarray, pa.RecordBatch]:
    """Draws once for every match; keeps a text if any of its matches is accepted.

    Args:
      matches: MATCHES; texts that are not `drawn` have no accepted match.
      seed: of the draws: the same seed draws the same numbers for the same texts.
      keep_probability: f64[entries] for each metadata code.

    Returns:
      bool[n], the kept texts, and COUNTS of the accepted draws.
    """
    keys, drawn = (matches[name].to_numpy() for name in ("text_key", "drawn"))
    kept = np.zeros(matches.num_rows, bool)
    accepted: dict[str, np.ndarray] = {}
    for code, rows, offsets, entry_ids in _by_metadata(matches):
        p = balance.match_probabilities(keep_probability[code], entry_ids)
        hits = balance.accepted_draws(seed, keys[rows], offsets, entry_ids, p)
        hits &= np.repeat(drawn[rows], np.diff(offsets))
        kept[rows] = balance.kept_texts(offsets, hits)
        accepted[code] = np.bincount(entry_ids[hits])
    return kept, to_counts(accepted)


def sample(matches: pa.Table, *, images: int, partition: int) -> pa.RecordBatch:
    """Returns SAMPLE: all texts of at most `images` images, chosen by hash.

    Takes the images with the smallest suffix of their id, a hash: its prefix already
    determines the partition. `weight` is how many images of this
    partition each of them represents.

    Args:
      matches: MATCHES of one partition, the texts of an image together.
      images: the most images to take.
      partition: its number, kept in the rows.
    """
    ids = matches["image_id"].combine_chunks()
    ends = pc.utf8_slice_codeunits(ids, 8)
    unique = pc.unique(ends).sort()
    taken = unique[:images]
    weight = len(unique) / max(len(taken), 1)
    rows = np.flatnonzero(pc.is_in(ends, taken).to_numpy(zero_copy_only=False))
    some = matches.take(pa.array(rows))
    columns = {name: some[name] for name in some.column_names}
    columns |= {"partition": partition, "weight": weight}
    return schema.from_columns(columns, schema.SAMPLE)


def recount(
    accepted: Vectors,
    thin: Vectors,
    t: Mapping[str, int],
    *,
    pool: Vectors,
    drawn_counts: Vectors,
) -> dict[str, np.ndarray]:
    """Returns keep probabilities for the survivors that restore the expected draws.

    An entry gets as many accepted draws as without losses: t times the share of its
    matches that is drawn (all with v1). Logs entries that lost more than the slack and
    so get fewer.
    """
    keep = {}
    for code in accepted:
        if code not in t:
            keep[code] = thin[code]
            continue
        target = t[code] * drawn_counts[code] / np.maximum(pool[code], 1)
        short = balance.short_entries(thin[code], accepted[code], target).size
        if short:
            logging.warning(
                "%s: %d head entries lost more than the slack and stay below t; "
                "raise config.balance.slack",
                code,
                short,
            )
        keep[code] = balance.final_probability(thin[code], accepted[code], target)
    return keep


def survivors(accepted: Vectors, thin: Vectors) -> dict[str, np.ndarray]:
    """Estimates each entry's count in a pool of only downloadable images.

    Only accepted draws are an unbiased sample of an entry's matches (a kept text brings
    its other matches along), so the estimate is accepted draws / thinning probability;
    exact if nothing was thinned.
    """
    return {code: accepted[code] / thin[code] for code in accepted}


def text_probabilities(matches: pa.Table, keep_probability: Vectors) -> np.ndarray:
    """Returns f64[n], the probability that each text is kept if it is drawn."""
    chance = np.zeros(matches.num_rows)
    for code, rows, offsets, entry_ids in _by_metadata(matches):
        p = balance.match_probabilities(keep_probability[code], entry_ids)
        chance[rows] = balance.text_probability(offsets, p)
    return chance


def counts_table(
    entries: Mapping[str, Sequence[str]], vectors: Mapping[str, Vectors]
) -> pa.Table:
    """Returns metadata, entry_id, entry and one column per named vector."""
    codes = sorted(entries)
    sizes = [len(entries[code]) for code in codes]
    ids = [np.arange(n, dtype=np.int32) for n in sizes]
    columns = {
        "metadata": np.repeat(codes, sizes),
        "entry_id": np.concatenate(ids),
        "entry": [entry for code in codes for entry in entries[code]],
    }
    for name, by_code in vectors.items():
        columns[name] = np.concatenate([by_code[code] for code in codes])
    return pa.table(columns)


def _by_metadata(
    matches: pa.Table,
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (code, row numbers, int64 offsets, int32 entry ids) per metadata."""
    for code in sorted(pc.unique(matches["metadata"]).to_pylist()):
        rows = np.flatnonzero(pc.equal(matches["metadata"], code).to_numpy())
        lists = matches["entry_ids"].take(pa.array(rows)).combine_chunks()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        yield code, rows, offsets - offsets[:1], lists.flatten().to_numpy()


def tally(matches: pa.Table) -> pa.RecordBatch:
    """Returns TALLIES of the columns that the data card shows."""
    rows = [
        (column, each["values"], each["counts"])
        for column in ("language", "text_source", "metadata")
        for each in pc.value_counts(matches[column]).to_pylist()
    ]
    found = schema.from_rows(rows, schema.TALLIES)
    return schema.sum_counts([found], schema.TALLIES)


def images_of(matches: pa.Table) -> pa.Table:
    """Returns image_id, image_url, stored_at, texts and text_hash, by image_id."""
    images = matches.group_by("image_id").aggregate(
        [("image_url", "min"), ("stored_at", "min"), ("text", "count"), ("text", "min")]
    )
    names = ["image_id", "image_url", "stored_at", "texts", "text_hash"]
    images = images.rename_columns(names).sort_by("image_id")
    hashes = [
        xxhash.xxh3_64_intdigest(text.casefold().encode())
        for text in images["text_hash"].to_pylist()
    ]
    at = len(names) - 1
    return images.set_column(at, "text_hash", pa.array(hashes, pa.uint64()))


def to_records(
    matches: pa.Table, images: pa.Table, bodies: Iterable[bytes]
) -> Iterator[records.Record]:
    """Joins texts and images into records, one per image of `images`.

    Args:
      matches: MATCHES rows, sorted by image_id.
      images: IMAGES rows in the same order, each with at least one text.
      bodies: the bytes of each of those images.
    """
    texts = itertools.groupby(matches.to_pylist(), lambda text: text["image_id"])
    for (image_id, of_image), image, body in zip(
        texts, images.to_pylist(), bodies, strict=True
    ):
        if image_id != image["image_id"]:
            raise AssertionError(f"wanted texts of {image['image_id']}, got {image_id}")
        yield _record(image, body, list(of_image))


def _record(image: Mapping, body: bytes, texts: Sequence[Mapping]) -> records.Record:
    entry_ids = [text["entry_ids"] for text in texts]
    lengths = [len(ids) for ids in entry_ids]
    return records.Record(
        image=body,
        image_id=image["image_id"],
        image_url=image["image_url"],
        page_url=texts[0]["page_url"],
        sha256=image["sha256"],
        width=image["width"],
        height=image["height"],
        texts=tuple(text["text"] for text in texts),
        text_sources=tuple(text["text_source"] for text in texts),
        languages=tuple(text["language"] for text in texts),
        metadata=tuple(text["metadata"] for text in texts),
        entry_ids=np.array(list(itertools.chain(*entry_ids)), np.int32),
        entry_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
