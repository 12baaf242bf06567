"""CLIP in JAX, from records to trained, evaluated, exported models.

`metaclip_jax.load(name_or_path)` returns a model to use. Importing this package loads
neither jax nor anything else: curation reads its records module.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaclip_jax.inference import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from metaclip_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
