"""Folders of metadata as `data_prep.build_metadata` writes them, from given entries."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from data_prep.metadata import store
from metaclip_jax import files


def save(
    folder: epath.PathLike, metadata: Mapping[str, store.Metadata], **facts: Any
) -> None:
    """Writes a Parquet file for each code, and a manifest with the facts."""
    written = {code: store.write(folder, one) for code, one in metadata.items()}
    files.write_manifest(folder, inputs={}, metadata=written, **facts)
