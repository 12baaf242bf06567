"""Starting JAX: where no cluster is found, the error is for users."""

import jax
import pytest

from metaclip_jax.training import runtime


def test_off_a_cluster_an_automatic_coordinator_is_refused_in_one_line(monkeypatch):
    # Without its changes to this process.
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    for name in ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="wanted a TPU pod, a Slurm job") as error:
        runtime.start_jax(cpu_devices=0, compilation_cache="", coordinator="auto")
    assert len(str(error.value).splitlines()) == 1
