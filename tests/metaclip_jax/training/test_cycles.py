"""What the TPU compiler estimates, read from the text of its programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from metaclip_jax import plan
from metaclip_jax.training import compiled, cycles, sharding

# Two nested loops, and collectives in both forms; a fusion's inside is not counted.
PROGRAM = """\
HloModule jit_step, entry_computation_layout={()->f32[]}

%inside (p.0: f32[8]) -> f32[8] {
  ROOT %dot.9 = f32[8]{0} add(%p.0, %p.0), backend_config={"estimated_cycles":"7"}
}

%less (p.1: s32[], p.2: s32[]) -> pred[] {
  ROOT %lt.1 = pred[] compare(%p.1, %p.2), direction=LT
}

%inner_condition (p.3: (s32[], f32[8])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(5)
  ROOT %c.1 = pred[] fusion(%i.1, %limit.1), kind=kLoop, calls=%less
}

%inner_body (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f.1 = f32[8]{0} fusion(%g.1), calls=%inside, backend_config={"estimated_cycles":"10"}
  %all-reduce.1 = (bf16[4,2]{1,0}, f32[]) all-reduce(%a, %b), to_apply=%less
}

%outer_condition (p.5: (s32[], f32[8])) -> pred[] {
  %limit.2 = s32[] constant(3)
  ROOT %c.2 = pred[] compare(%i.2, %limit.2), direction=LT
}

%outer_body (p.6: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w.2 = (s32[], f32[8]) while(%t.1), condition=%inner_condition, body=%inner_body
  %f.2 = f32[8] fusion(%g.2), calls=%inside, backend_config={"estimated_cycles":"100"}
}

ENTRY %main (p.7: f32[8]) -> f32[8] {
  %s.1 = (f32[8], f32[16]) all-gather-start(%p.7), dimensions={0}
  %d.1 = f32[16]{0} all-gather-done(%s.1)
  %w.1 = (s32[], f32[8]) while(%t.2), condition=%outer_condition, body=%outer_body
  ROOT %f.3 = f32[8]{0} copy(%g.3), backend_config={"estimated_cycles":"1000"}
}
"""


def test_loops_count_as_often_as_they_run():
    found = cycles.estimate(PROGRAM)
    assert found.cycles == 1_000 + 3 * (100 + 5 * 10)
    assert found.collective_bytes == {
        "all-gather": 16 * 4,
        "all-reduce": 3 * 5 * (8 * 2 + 4),
    }


def test_a_loop_without_a_limit_is_refused():
    text = PROGRAM.replace("constant(3)", "parameter(0)")
    with pytest.raises(ValueError, match=r"wanted a loop .* got \[\] for w.1"):
        cycles.estimate(text)


def test_a_longer_loop_costs_a_real_compiler_more(tmp_path):
    pytest.importorskip("libtpu", reason="needs libtpu: pip install 'jax[tpu]'")
    where = plan.describe_slice("v5e:2x2")
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=where.devices)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=rows)

    def estimate(length):
        @jax.jit
        def function(x):
            def step(x, _):
                return jnp.tanh(x @ (x.T @ x)), None

            return jax.lax.scan(step, x, None, length=length)[0]

        return compiled.compile(
            function.lower(x), topology=where.name, cache=str(tmp_path)
        )

    four, eight = estimate(4), estimate(8)
    assert 1.8 < eight.cycles / four.cycles < 2.1
    for found, length in ((four, 4), (eight, 8)):  # x.T @ x is a sum over devices
        assert found.collective_bytes["all-reduce"] >= length * 256 * 256 * 2
    assert estimate(4) == four  # from the cache
    assert len(list(tmp_path.iterdir())) == 2


def test_an_all_reduce_moves_its_bytes_twice():
    chip = compiled.Chip(hertz=1e9, link_bytes=100.0)
    moved = {"all-reduce": 50, "all-gather": 100}
    assert compiled.transfer_seconds(moved, chip) == 2.0
