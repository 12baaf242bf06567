import types

import jax
import jax.numpy as jnp
import pytest

from metaclip_jax.models import presets
from metaclip_jax.training import flops, losses, sharding


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_and_convolutions_are_counted():
    assert flops.count(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = flops.count(jnp.matmul, shape(2, 3, 5), shape(2, 5, 7))
    assert batched == 2 * 2 * 3 * 5 * 7
    conv = jax.lax.conv_general_dilated
    found = flops.count(
        lambda x, k: conv(x, k, (1, 1), "VALID"), shape(1, 3, 8, 8), shape(4, 3, 5, 5)
    )
    assert found == 2 * (4 * 4 * 4) * (3 * 5 * 5)


def test_loops_count_as_often_as_they_run():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=6)[0]

    assert flops.count(loop, shape(3, 5), shape(5, 5)) == 6 * 2 * 3 * 5 * 5
    # What is computed again counts again.
    gradient = jax.grad(lambda x, w: jnp.sum(jax.checkpoint(jnp.matmul)(x, w) ** 2))
    assert flops.count(gradient, shape(3, 5), shape(5, 5)) >= 2 * 2 * 3 * 5 * 5

    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="wanted loops of known length"):
        flops.count(until, shape(3, 3))


def test_what_devices_share_counts_as_on_one():
    def loss(mesh):
        return lambda x: losses.contrastive_loss(
            x, x, jnp.float32(1), mesh=mesh, batch_axes=sharding.BATCH_AXES, form="ring"
        )[0]

    one = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    eight = sharding.make_mesh(data=4, fsdp=2, tensor=1)
    assert flops.count(loss(one), shape(64, 16)) == 2 * 64 * 64 * 16
    assert flops.count(loss(eight), shape(64, 16)) == 2 * 64 * 64 * 16


def test_a_pair_of_vit_b32_is_six_flops_a_weight_and_token_and_attention():
    architecture = presets.architecture("vit_b32")
    found = flops.of_step(architecture, global_batch=1, patches=49)

    def tower(width: int, positions: int) -> int:
        block = positions * (12 * width**2 + 2 * positions * width)
        keys_and_values = positions * 2 * width**2
        read_out = 10 * width**2 + 2 * positions * width  # of one position
        return 11 * block + keys_and_values + read_out

    vision, text = tower(768, 50), tower(512, 77)
    patches = 49 * 32 * 32 * 3 * 768
    assert found == pytest.approx(6 * (vision + text + patches), rel=0.02)
    fewer = flops.of_step(architecture, global_batch=1, patches=24)
    assert found - fewer == pytest.approx(6 * vision * 25 / 50, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v4 lite", 138),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peaks_are_found_by_the_kind_of_device(kind, teraflops):
    device = types.SimpleNamespace(device_kind=kind)
    assert flops.peak(device) == (teraflops and teraflops * 1e12)


def test_a_cpu_has_no_peak():
    assert flops.peak(jax.devices()[0]) is None
