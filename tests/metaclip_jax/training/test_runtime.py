"""Starting JAX: where no cluster is found, the error is for users."""

import jax
import pytest

from metaclip_jax.training import runtime


def test_off_a_cluster_an_automatic_coordinator_is_refused_in_one_line(monkeypatch):
    def initialize():  # as JAX does, without its changes to this process
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ValueError, match="wanted a TPU pod or a Slurm job") as error:
        runtime.start_jax(cpu_devices=0, compilation_cache="", coordinator="auto")
    assert len(str(error.value).splitlines()) == 1
