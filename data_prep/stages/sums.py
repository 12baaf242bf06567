"""Sums over a pipeline's output, as Parquet files."""

import functools
from collections.abc import Callable, Iterable, Sequence

import apache_beam as beam
import pyarrow as pa

from data_prep import drops, schema
from data_prep.stages import arrow_coder, parts, steps

Merge = Callable[[Iterable[pa.RecordBatch]], pa.RecordBatch]  # of rows of one schema

# In pipeline order: the rows of the data card's funnel.
TEXT_STAGES = (
    "parse",
    "match",
    "dedup",
    "thin",
    "download",
    "screen",
    "image_dedup",
    "balance",
)
STAGES = ("read", *TEXT_STAGES)  # files and pages are read


class _Merge(beam.CombineFn):
    """Merges the rows of a schema over a pipeline."""

    def __init__(self, of: pa.Schema, merge: Merge) -> None:
        self._schema, self._merge = of, merge

    def create_accumulator(self) -> pa.RecordBatch:
        """No rows yet."""
        return schema.one_batch(self._schema.empty_table())

    def add_input(self, total: pa.RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Adds the rows of one batch."""
        return self._merge([total, rows])

    def merge_accumulators(self, totals: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
        """Adds the rows of several workers."""
        return self._merge(totals)

    def get_accumulator_coder(self) -> beam.coders.Coder:
        """Without it Beam pickles the rows that workers exchange."""
        return arrow_coder.RecordBatchCoder()

    def extract_output(self, total: pa.RecordBatch) -> pa.RecordBatch:
        """The rows of all."""
        return total


def read_sum(folder: str, part: str) -> pa.RecordBatch:
    """Returns the sums that a pipeline wrote."""
    return schema.one_batch(parts.read(folder, part))


def write_sum(
    rows: beam.PCollection,
    of: pa.Schema,
    folder: str,
    part: str,
    *,
    merge: Merge | None = None,
) -> beam.PCollection:
    """Writes the sum of rows of schema `of` to the Parquet file folder/part.

    The counts of rows that agree in all other columns are summed, or `merge` is called.

    Raises TypeError if `rows` have no Arrow type: Beam would silently use pickle.
    """
    if rows.element_type is not pa.RecordBatch:
        raise TypeError(f"{part}: wanted RecordBatches, got {rows.element_type}")
    if merge is None:
        sum_counts = functools.partial(schema.sum_counts, schema=of)
        merge = steps.add_counts if of == schema.COUNTS else sum_counts
    name = part.removesuffix(".parquet")
    # The stage of `rows` sums them before they pass through the runner. It would not
    # if an empty sum were added to them, for no rows.
    whole = beam.CombineGlobally(_Merge(of, merge)).without_defaults()
    total = rows | f"sum {name}" >> whole.with_output_types(pa.RecordBatch)
    nothing = beam.Create([schema.one_batch(of.empty_table())], reshuffle=False)
    once = rows.pipeline | f"no {name}" >> nothing.with_output_types(pa.RecordBatch)
    return once | f"write {name}" >> beam.Map(
        _write, beam.pvalue.AsList(total), folder, part
    )


def _write(
    nothing: pa.RecordBatch, totals: Sequence[pa.RecordBatch], folder: str, part: str
) -> None:
    """Writes the only sum, or `nothing` if there are no rows."""
    parts.write(folder, part, pa.Table.from_batches([*totals, nothing][:1]))


def funnel(workdir: str) -> list[dict]:
    """Returns what entered, left and was dropped at each stage of a finished run."""
    folders = ("matched", "matches", "downloads", "images", "balance")
    flows = [read_sum(f"{workdir}/{name}", "flow.parquet") for name in folders]
    # So that each stage has a row, also if nothing entered it.
    flows += [drops.flow(stage, entered=0, left=0, drops={}) for stage in TEXT_STAGES]
    return drops.funnel(schema.sum_counts(flows, schema.FLOW), STAGES)


def read_tallies(folder: str, part: str) -> dict[str, dict[str, int]]:
    """Returns kept texts by language, by text source and by metadata."""
    found: dict[str, dict] = {"language": {}, "text_source": {}, "metadata": {}}
    for row in read_sum(folder, part).to_pylist():
        found[row["column"]][row["value"]] = row["count"]
    return found
