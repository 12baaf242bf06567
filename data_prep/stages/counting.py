"""The stage from the pieces of the sources of metadata to parts of counts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from data_prep import schema
from data_prep.metadata import counts, pieces
from data_prep.stages import attempts, parts, pipelines, sums

Tagged = beam.pvalue.TaggedOutput
FLOW = "flow.parquet"
_CODES = pa.schema([("code", pa.string())])  # rows of a marker: language of each run


@dataclass(frozen=True)
class Counting:
    """Makes parts of counts, one of each piece of the sources.

    A part is finished when its marker, a small file with the flow, is in `folder`.

    Attributes:
      folder: for the parts.
      count: their number.
      options: of `pieces.count`.
      sources: the failures of those that the worker reads.
    """

    folder: str
    count: int
    options: pieces.Options
    sources: attempts.Sources = field(default_factory=attempts.Sources)

    def write(self, element: tuple[int, tuple]) -> Iterator[pa.RecordBatch]:
        """Writes the part of a piece, unless it is finished; yields its flow.

        A part is made again if its piece could not be read.
        """
        number, piece = element[0], pieces.Piece(*element[1])
        part = parts.name(number, self.count)

        def write(paths: list[str], flow: list[pa.RecordBatch]) -> None:
            runs = self.sources.read(
                paths, lambda _: pieces.count(piece, self.options, flow)
            )
            codes = counts.write(self.folder, part, runs)
            marker = pa.table([codes], schema=_CODES)
            total = schema.sum_counts(flow, schema.FLOW)
            parts.write(self.folder, part, marker, total)

        if not parts.is_whole(self.folder, part):
            for failed in self.sources.thrice([piece.path], write):
                yield Tagged("flow", failed)
            pipelines.release_memory()
        yield Tagged("flow", parts.read_flow(self.folder, part))


def run(
    folder: str,
    found: Sequence[pieces.Piece],
    options: pieces.Options,
    pipeline_options: beam.options.pipeline_options.PipelineOptions,
) -> None:
    """Counts all pieces whose part is not finished, and sums their flow."""
    elements = [(i, tuple(piece)) for i, piece in enumerate(found)]
    bar = pipelines.progress(folder, len(found), "count")
    with pipelines.new(pipeline_options, bar) as pipeline:
        stage = pipelines.tagged(Counting(folder, len(found), options).write)
        counted = pipelines.start(pipeline, elements) | "count" >> stage
        sums.write_sum(counted.flow, schema.FLOW, folder, FLOW)


def read_parts(folder: str, count: int) -> list[counts.Part]:
    """Returns the finished parts."""
    names = [parts.name(i, count) for i in range(count)]
    return [
        counts.Part(name, parts.read(folder, name)["code"].to_pylist())
        for name in names
    ]
