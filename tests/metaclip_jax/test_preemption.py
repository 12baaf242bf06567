"""A drill: hosts of a pod vanish at random moments while the run is in a bucket.

Four processes play four hosts. Their dataset, tokenizer and workdir are on gs://, which
fake-gcs-server serves.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import pods

# Peers lose the connection at once; the rest is what a busy machine takes.
NOTICED_SECONDS = 240
# Between SIGTERM and SIGKILL: Google's 30 for a host's own cores, of which four hosts
# share what this machine has.
NOTICE_SECONDS = 300
FLAGS = ("--config.checkpoint_every_steps=3",)

PARAMETERS = """
import sys
import numpy as np
from metaclip_jax.inference import loading
np.savez(sys.argv[2], **loading.flat_params(loading.load(sys.argv[1]).params))
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, write_dataset, cloud_storage):
    """A local folder with the recipe, and the bucket with what it reads."""
    folder = tmp_path_factory.mktemp("drill")
    pods.prepare(folder, write_dataset, place="gs://bucket1")
    with cloud_storage() as storage:
        storage.upload(folder / "dataset", folder / "tokenizer.json")
        yield folder, storage.environment


def start(bucket, workdir, *, hosts, flags=(), **values):
    folder, environment = bucket
    return pods.start_all(
        folder,
        f"gs://bucket1/{workdir}",
        processes=hosts,
        flags=(*FLAGS, *flags),
        environment=environment,
        **values,
    )


def parameters(bucket, workdir):
    """The parameters of a run's newest checkpoint, by path."""
    folder, environment = bucket
    code = [sys.executable, "-c", PARAMETERS, f"gs://bucket1/{workdir}"]
    output = folder / f"{workdir}.npz"
    environment = environment | {"PYTHONPATH": str(pods.ROOT)}
    subprocess.run([*code, output], check=True, env=environment, cwd=folder)
    return dict(np.load(output))


@pytest.fixture(scope="module")
def undisturbed(bucket):
    """The parameters after a run that nothing disturbs, and its seconds."""
    began = time.monotonic()
    statuses, output = pods.ends(start(bucket, "undisturbed", hosts=4))
    assert statuses == [0] * 4, output
    return parameters(bucket, "undisturbed"), time.monotonic() - began


def assert_goes_on(bucket, workdir, wanted, *, hosts):
    """Starts all hosts again; the parameters are those of the undisturbed run.

    Returns what the first host wrote.
    """
    statuses, output = pods.ends(start(bucket, workdir, hosts=hosts))
    assert statuses == [0] * hosts, output
    found = parameters(bucket, workdir)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        if hosts == 4:
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        else:  # sums in another order
            np.testing.assert_allclose(
                value, wanted[name], rtol=1e-4, atol=1e-6, err_msg=name
            )
    return output[0]


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_a_pod_that_loses_a_host_goes_on_as_if_it_had_not(bucket, undisturbed, trial):
    wanted, seconds = undisturbed
    draws = random.Random(trial)
    workdir, victim = f"trial_{trial}", draws.randrange(4)
    started = start(bucket, workdir, hosts=4, flags=["--wait_seconds=60"])
    time.sleep(draws.uniform(0, seconds))
    os.killpg(started[victim].pid, signal.SIGKILL)  # a host with all that runs on it
    killed = time.monotonic()
    pods.ends(started)
    assert time.monotonic() - killed < NOTICED_SECONDS
    assert_goes_on(bucket, workdir, wanted, hosts=2 if trial % 2 else 4)


@pytest.mark.slow
def test_the_notice_of_a_preemption_saves_a_checkpoint(bucket, undisturbed):
    """SIGTERM on all hosts, while the one before is still on its way to the bucket.

    SIGKILL follows, but all have ended by themselves, and have saved that step.
    """
    wanted, _ = undisturbed
    save = {"function": "metaclip_jax.training.checkpoint.save", "argument": "^3$"}
    stops = save | {"sign": signal.SIGTERM, "notice_seconds": NOTICE_SECONDS}
    statuses, output = pods.ends(start(bucket, "notice", hosts=4, stops=stops))
    assert statuses == [0] * 4, output
    (step,) = map(int, re.findall(r"asked to stop: saved step (\d+)", output[0]))
    assert 3 < step < pods.STEPS
    said = assert_goes_on(bucket, "notice", wanted, hosts=4)
    assert f"goes on from step {step}" in said
