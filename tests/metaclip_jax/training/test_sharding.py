import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from metaclip_jax.models import layers
from metaclip_jax.training import sharding


def test_a_mesh_takes_all_devices():
    mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(16, 1, 1), (1, 1, 1), (-1, 3, 1), (-1, 16, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    data, fsdp, tensor = sizes
    with pytest.raises(ValueError, match="there are 8; change mesh"):
        sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1 .* tensor=0"):
        sharding.make_mesh(data=8, fsdp=1, tensor=0)


def test_hosts_of_gpus_are_slices_only_where_that_is_asked_for():
    class Gpu:
        platform, device_kind = "gpu", "H100"

        def __init__(self, number):
            self.id, self.slice_index = number, number // 4

    gpus = [Gpu(number) for number in range(8)]
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1, devices=gpus)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    mesh = sharding.make_mesh(data=-1, fsdp=4, tensor=1, slices=2, devices=gpus)
    for number, part in enumerate(mesh.devices):
        assert {gpu.slice_index for gpu in part.flat} == {number}
    with pytest.raises(ValueError, match="multiple of the 2 slices"):
        sharding.make_mesh(data=1, fsdp=8, tensor=1, slices=2, devices=gpus)


def test_a_batch_that_devices_cannot_share_is_refused():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_global_batch(8, mesh)
    with pytest.raises(
        ValueError, match="global_batch=10 .* multiple of 4.*nearest: 8"
    ):
        sharding.check_global_batch(10, mesh)
    with pytest.raises(ValueError, match="nearest: 4"):
        sharding.check_global_batch(0, mesh)


def test_optimizer_leaves_lie_where_their_parameters_lie():
    path = "text/blocks/mlp/fc1/kernel"
    spec = PartitionSpec(None, "fsdp", "tensor")
    assert sharding.partition_spec(path) == spec
    assert sharding.partition_spec(f"opt_state/0/mu/{path}") == spec
    assert sharding.partition_spec("opt_state/0/count") == PartitionSpec()


@pytest.mark.parametrize("path", ["image/blocks/gate/kernel", "image/kernel", "xstep"])
def test_a_parameter_without_a_rule_is_an_error_that_names_it(path):
    with pytest.raises(ValueError, match=f"no sharding rule matches {path}"):
        sharding.partition_spec(path)


def test_a_shape_that_does_not_divide_is_an_error_that_names_it():
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=8)
    tree = {"text": {"blocks": {"attn": {"qkv": {"bias": jnp.zeros((2, 3, 6, 4))}}}}}
    with pytest.raises(ValueError, match=r"qkv/bias .*: 6 does not divide by mesh.ten"):
        sharding.tree_shardings(mesh, tree)


def test_batch_rows_keep_their_order_over_the_devices():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = np.arange(8, dtype=np.int32)
    tokens = sharding.put_batch(mesh, {"tokens": rows})["tokens"]
    np.testing.assert_array_equal(tokens, rows)
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(2,)}
    assert tokens.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 1)
    np.testing.assert_array_equal(sharding.process_run(mesh, 8), rows)
    assert len(jax.devices()) == 8


def test_a_layer_is_collected_over_fsdp_and_stays_split_over_tensor():
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    shape = layers.BlockShape(
        width=16, heads=4, mlp_width=32, activation="gelu_tanh", causal=False,
        attention="xla", dtype="float32", epsilon=1e-6, unroll=False,
    )  # fmt: skip
    init = layers.siglip_init(width=16, mlp_width=32)
    _, layer = nnx.split(layers.Block(shape, init, rngs=nnx.Rngs(0)))
    named = nnx.to_pure_dict(layer)
    held = jax.device_put(named, sharding.tree_shardings(mesh, {"last": named})["last"])
    nnx.replace_by_pure_dict(layer, held)
    collected = jax.jit(sharding.layer_collector(mesh))(layer)
    for before, after in zip(*map(jax.tree.leaves, (layer, collected)), strict=True):
        split = {axis for axis in before.sharding.spec if axis}
        assert {axis for axis in after.sharding.spec if axis} == split - {"fsdp"}
        np.testing.assert_array_equal(before, after)
    kernel = nnx.to_pure_dict(collected)["mlp"]["fc1"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "tensor")
