"""The stage from the pieces of the sources of metadata to parts of counts."""

from collections.abc import Iterator, Sequence

import apache_beam as beam
import pyarrow as pa

from data_prep import schema
from data_prep.metadata import counts, pieces
from data_prep.stages import (
    arrow_coder,  # noqa: F401  registers the coder of RecordBatch
    attempts,
    parts,
    pipelines,
    sums,
)

Tagged = beam.pvalue.TaggedOutput
FLOW = "flow.parquet"
_CODES = pa.schema([("code", pa.string())])  # rows of a marker: language of each run


class CountPieces(beam.DoFn):
    """A piece of a source -> a part of counts, and its flow.

    Elements have one row: `part`, and the fields of `pieces.Piece`. A finished part is
    not made again, unless its piece could not be read. A part is finished when its
    marker, a small file with the flow, is in `folder`.
    """

    def __init__(self, folder: str, count: int, options: pieces.Options) -> None:
        self._folder, self._count, self._options = folder, count, options
        self._sources = attempts.Sources()

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Writes the part."""
        (row,) = element.to_pylist()
        part = parts.name(row.pop("part"), self._count)
        piece = pieces.Piece(**row)

        def write(paths: list[str], flow: list[pa.RecordBatch]) -> None:
            runs = self._sources.read(
                paths, lambda _: pieces.count(piece, self._options, flow)
            )
            codes = counts.write(self._folder, part, runs)
            marker = pa.table([codes], schema=_CODES)
            parts.write(
                self._folder, part, marker, schema.sum_counts(flow, schema.FLOW)
            )

        if not parts.is_whole(self._folder, part):
            for failed in self._sources.thrice([piece.path], write):
                yield Tagged("flow", failed)
            pipelines.release_memory()
        yield Tagged("flow", parts.read_flow(self._folder, part))


def run(
    folder: str,
    found: Sequence[pieces.Piece],
    options: pieces.Options,
    pipeline_options: beam.options.pipeline_options.PipelineOptions,
) -> None:
    """Counts all pieces whose part is not finished, and sums their flow."""
    elements = [
        pa.RecordBatch.from_pylist([{"part": i, **piece._asdict()}])
        for i, piece in enumerate(found)
    ]
    with (
        pipelines.progress(folder, len(found), "count"),
        pipelines.new(pipeline_options) as pipeline,
    ):
        stage = CountPieces(folder, len(found), options)
        counted = pipelines.start(pipeline, elements) | "count" >> pipelines.tagged(
            stage
        )
        sums.write_sum(counted.flow, schema.FLOW, folder, FLOW)


def read_parts(folder: str, count: int) -> list[counts.Part]:
    """Returns the finished parts."""
    names = [parts.name(i, count) for i in range(count)]
    return [
        counts.Part(name, parts.read(folder, name)["code"].to_pylist())
        for name in names
    ]
