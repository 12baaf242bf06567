"""MetaCLIP in JAX. `metaclip_jax.load` loads a model that embeds and classifies.

Importing the package imports neither jax nor Beam: `load` is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaclip_jax.inference.model import Model as Model
    from metaclip_jax.inference.model import load as load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from metaclip_jax.inference import model as inference

        return getattr(inference, name)
    raise AttributeError(f"metaclip_jax has no attribute {name!r}")
