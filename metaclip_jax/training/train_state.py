"""The state of a training run: step, parameters and optimizer."""

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
    """Returns the state's shapes and dtypes, for restoring a checkpoint."""
    return jax.eval_shape(
        lambda: _new(architecture, optimizer, jax.random.key(0)),
    )


def shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """Returns the sharding of each leaf of a (possibly abstract) state."""
    return sharding.tree_shardings(mesh, state)


def create(
    *,
    architecture: clip.Architecture,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
) -> TrainState:
    """Returns the state before the first step, created with its shardings.

    The values depend only on the seed, not on the mesh.
    """
    layout = shardings(mesh, abstract(architecture=architecture, optimizer=optimizer))
    return _run_once(
        lambda key: _new(architecture, optimizer, key), layout, mesh=mesh, seed=seed
    )


def create_params(
    *, architecture: clip.Architecture, mesh: Mesh, seed: int
) -> clip.Params:
    """Returns the parameters of `create` without the optimizer: the untrained model."""
    shapes = clip.param_shapes(architecture)
    return _run_once(
        lambda key: clip.init(architecture, key),
        sharding.tree_shardings(mesh, shapes),
        mesh=mesh,
        seed=seed,
    )


def place(params: clip.Params, *, mesh: Mesh) -> clip.Params:
    """Shards parameters, of which every process has a copy, over the mesh."""
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
    """Returns new(key) with the shardings of `layout`."""
    options: dict[str, int | bool] = {}
    if mesh.devices.flat[0].platform == "cpu":
        # Optimising code that runs once would take seconds.
        options["xla_backend_optimization_level"] = 0
        if jax.__version_info__ < (0, 11):
            # Set jax 0.10's default explicitly: of the two emitters, this one rounds
            # equally on every mesh. Later versions have only it, and not this option.
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
