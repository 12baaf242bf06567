"""All that a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from metaclip_jax import sharding
from metaclip_jax.models import clip


class TrainState(NamedTuple):
    """A pytree whose paths start with step, params or opt_state."""

    step: jax.Array  # int32[], batches consumed so far; also the data position
    params: clip.Params
    opt_state: Any


def abstract(
    *, architecture: clip.Architecture, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns shapes and dtypes only: what to restore a checkpoint into."""
    return jax.eval_shape(
        lambda: _new(architecture, optimizer, jax.random.key(0)),
    )


def shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """Returns the layout of each leaf of a (possibly abstract) state."""
    return sharding.tree_shardings(mesh, state)


def create(
    *,
    architecture: clip.Architecture,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """Returns the state before the first step, each leaf born on its own devices.

    The values depend on the seed alone, not on the mesh.
    """
    layout = shardings(mesh, abstract(architecture=architecture, optimizer=optimizer))
    new = jax.jit(
        lambda key: _new(architecture, optimizer, key),
        out_shardings=layout,
    )
    return new(jax.random.key(seed))


def _new(
    architecture: clip.Architecture,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    params = clip.init(architecture, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )
