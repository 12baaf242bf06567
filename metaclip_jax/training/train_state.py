"""All that a training run carries from step to step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metaclip_jax.models import clip
from metaclip_jax.training import sharding


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
    return _run_once(
        lambda key: _new(architecture, optimizer, key), layout, mesh=mesh, seed=seed
    )


def create_params(
    *, architecture: clip.Architecture, mesh: Mesh, seed: int
) -> clip.Params:
    """Returns only the parameters that `create` starts from: the untrained model."""
    shapes = jax.eval_shape(lambda: clip.init(architecture, jax.random.key(0)))
    return _run_once(
        lambda key: clip.init(architecture, key),
        sharding.tree_shardings(mesh, shapes),
        mesh=mesh,
        seed=seed,
    )


def place(params: clip.Params, *, mesh: Mesh) -> clip.Params:
    """Puts parameters that every process holds on the mesh, as training has them."""
    return jax.tree.map(
        lambda leaf, where: jax.make_array_from_callback(
            np.shape(leaf), where, lambda rows: np.asarray(leaf)[rows]
        ),
        params,
        sharding.tree_shardings(mesh, params),
    )


def _run_once(
    new: Callable[[jax.Array], Any], layout: Any, *, mesh: Mesh, seed: int
) -> Any:
    """Calls new(key) with its results laid out over the mesh."""
    options: dict[str, int | bool] = {}
    if mesh.devices.flat[0].platform == "cpu":
        # A CPU takes seconds to optimise random number generators that run once.
        options["xla_backend_optimization_level"] = 0
        if jax.__version_info__ < (0, 11):
            # Of its two emitters, the one that is the default rounds alike on every
            # mesh. Later releases have no other, and no such option.
            options["xla_cpu_use_fusion_emitters"] = True
    run = jax.jit(new, out_shardings=layout, compiler_options=options or None)
    return run(jax.random.key(seed))


def _new(
    architecture: clip.Architecture,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> TrainState:
    params = clip.init(architecture, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )
