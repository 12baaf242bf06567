"""Memory of the contrastive loss and its gradient, compiled for TPU slices.

    python -m benchmarks.loss_memory             # about three minutes, needs libtpu

Compiles the loss ahead of time for 8 and 32 v5p chips, without a TPU, and reads the
compiler's memory plan per device. Embeddings have width 512 and are not counted. Forms:

- full: all logits on each device (B x B);
- gathered: a device's rows (b x B) against all gathered embeddings, the usual way;
- ring: one chunk of logits at a time (b x 1,024).

Inf-CL (arXiv 2410.17243) reports a global batch of 4M on 8 A800 and 12M on 32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metaclip_jax import plan
from metaclip_jax.cli import command
from metaclip_jax.training import losses, sharding

_WIDTH = 512
_MIB = 2**20


def full_logits(image: jax.Array, text: jax.Array, scale: jax.Array) -> jax.Array:
    """The softmax loss, as for one device."""
    logits = scale * jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
    own = jnp.diagonal(logits)
    rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    return jnp.mean(rows + columns - 2 * own) / 2


def needed(where: plan.Slice, form: str, batch: int) -> int:
    """Returns the bytes per device of loss and gradient, without the embeddings.

    Raises:
        jax.errors.JaxRuntimeError: the program does not fit.
    """
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=where.devices)

    def loss(image: jax.Array, text: jax.Array, scale: jax.Array) -> jax.Array:
        if form == "full":
            # As if no sharding were given.
            image, text = (
                jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))
                for x in (image, text)
            )
            return full_logits(image, text, scale)
        value, _ = losses.contrastive_loss(
            image,
            text,
            scale,
            mesh=mesh,
            batch_axes=sharding.BATCH_AXES,
            form=form,
        )
        return value

    return _compile(loss, mesh, batch)


def _compile(loss: Callable[..., jax.Array], mesh: Mesh, batch: int) -> int:
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    one = sharding.replicated(mesh)
    embeddings = jax.ShapeDtypeStruct((batch, _WIDTH), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=one)
    gradient = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        out_shardings=(one, (rows, rows, one)),
    )
    memory = gradient.lower(embeddings, embeddings, scale).compile().memory_analysis()
    assert memory is not None
    # The two figures differ; the larger one is the safe one.
    return max(
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
    )


def main(argv: Sequence[str]) -> None:
    """Prints a line per size, and the ratios."""
    command.refuse_arguments(argv)
    jax.config.update("jax_platforms", "cpu")
    small, large = plan.describe_slice("v5p:2x2x2"), plan.describe_slice("v5p:2x4x4")
    mark = 32_768
    found = {}
    for where in (small, large):
        for form in ("full", "gathered", "ring"):
            size = found[where.chips, form] = needed(where, form, mark)
            print(
                f"  {form:9} {where.chips:2} devices, batch {mark:>10,}:"
                f" {size / _MIB:10,.0f} MiB"
            )
    for where, batches in (
        (small, (131_072, 1_048_576, 4_194_304)),
        (large, (131_072, 1_048_576, 4_194_304, 12_582_912)),
    ):
        for batch in batches:
            size = needed(where, "ring", batch)
            print(
                f"  ring      {where.chips:2} devices, batch {batch:>10,}:"
                f" {size / _MIB:10,.0f} MiB, {size * where.chips / batch:,.0f} bytes"
                " per row of the device"
            )
    for chips in (small.chips, large.chips):
        ring = found[chips, "ring"]
        print(
            f"loss memory: {found[chips, 'gathered'] / ring:.1f}x less as a ring than"
            f" with gathered rows, at a batch of {mark:,} on {chips} devices\n"
            f"loss memory: {found[chips, 'full'] / ring:.0f}x less as a ring than with"
            f" all logits, at a batch of {mark:,} on {chips} devices"
        )
    print("4M on 8 and 12M on 32 chips compile and fit")


if __name__ == "__main__":
    command.run(main)
