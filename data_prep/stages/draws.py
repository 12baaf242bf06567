"""Draws by keep probabilities in a file, which the workers of a machine map together.

A pipeline sends each of its stages to every worker, and the metadata of all languages
have tens of millions of entries.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_prep import schema
from data_prep.matching import local_copies
from data_prep.stages import steps
from metaclip_jax import files

_KEEP = pa.schema(
    [("metadata", pa.string()), ("keep_probability", pa.large_list(pa.float64()))]
)


@dataclass(frozen=True)
class Draws:
    """Draws for the matches of texts, see `steps.draw`.

    Attributes:
      path: of the file of keep probabilities.
      seed: of the draws.
    """

    path: str
    seed: int

    @classmethod
    def save(
        cls, folder: str, keep_probability: steps.Vectors, *, seed: int
    ) -> "Draws":
        """Writes f64[entries] for each metadata code into a file in `folder`.

        Its name has a hash of the content, since workers cache what they map.
        """
        vectors = [np.asarray(v, np.float64) for v in keep_probability.values()]
        columns = {"metadata": list(keep_probability), "keep_probability": vectors}
        rows = schema.from_columns(columns, _KEEP)
        content = pa.BufferOutputStream()
        with pa.ipc.new_file(content, rows.schema) as writer:
            writer.write_batch(rows)
        data = content.getvalue().to_pybytes()
        path = f"{folder}/keep-{hashlib.sha256(data).hexdigest()[:16]}"
        files.write_bytes(path, data)
        return cls(path, seed)

    def __call__(self, matches: pa.Table) -> tuple[np.ndarray, pa.RecordBatch]:
        """Returns what `steps.draw` does for MATCHES."""
        return steps.draw(matches, seed=self.seed, keep_probability=_mapped(self.path))


@functools.cache
def _mapped(path: str) -> dict[str, np.ndarray]:
    with pa.memory_map(str(local_copies.shared(path))) as file:
        rows = pa.ipc.open_file(file).read_all()
    codes, vectors = rows.columns
    return {
        code.as_py(): vector.values.to_numpy()
        for code, vector in zip(codes, vectors, strict=True)
    }
