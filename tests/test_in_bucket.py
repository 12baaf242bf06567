"""The quick start wholly in a bucket, killed again and again: the bytes of the disk."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metaclip_jax import metric_rows
from tests import waiting

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
KILLS = 12  # at random moments
# Parts of names that differ from one file of a kind to the next.
NUMBERS = re.compile(r"[0-9a-f]{12,}|\d+")


def commands(finished, place, address):
    """The commands that the quick start showed, with all output below `place`.

    The web is served from the folder of the finished quick start. Conversion, check and
    export are added.
    """
    folder, shown = finished
    shown, _, _ = shown.partition("Try next:")
    lines = re.findall(r"^  \S+ -m (\S+ --.*)$", shown, re.MULTILINE)
    modules = ("examples.quickstart.build", "examples.quickstart.serve")
    made = []
    for line in lines:
        module, *flags = shlex.split(line)
        if module not in modules:
            flags = [flag.replace(f"{folder}/site/", f"{folder}/") for flag in flags]
            flags = [flag.replace(f"{folder}/", f"{place}/") for flag in flags]
            flags = [re.sub(r"127\.0\.0\.1:\d+", address, flag) for flag in flags]
            made.append([module, *flags])
    export = ["--format=parquet", f"--output={place}/export", f"{place}/dataset"]
    convert = [f"--model={place}/run", "--to=huggingface", f"--output={place}/model"]
    return [
        *made,
        ["metaclip_jax.convert", *convert],
        ["data_prep.verify", f"{place}/dataset"],
        ["data_prep.export", *export],
    ]


class Killed:
    """Runs commands that are killed, by `moments`, until they have ended well."""

    def __init__(self, bucket, moments):
        self.bucket, self.moments = bucket, moments
        self.kinds, self.kills = self._found(), 0

    def _found(self):
        names = (path.relative_to(self.bucket) for path in self.bucket.rglob("*"))
        return {NUMBERS.sub("N", str(name)) for name in names}

    def _is_due(self, end):
        if end is not None:
            return time.monotonic() > end
        return self._found() - self.kinds

    def run(self, command, environment):
        """Runs one command; kills it after each new kind of file, or at a moment."""
        while True:
            end = time.monotonic() + self.moments.pop() if self.moments else None
            is_killed = end is not None or self.moments is None
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            with process:
                while is_killed and process.poll() is None and not self._is_due(end):
                    time.sleep(0.02)
                if is_killed and process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    self.kills += 1
                output, _ = process.communicate(timeout=waiting.SECONDS)
            self.kinds |= self._found()
            if process.returncode != -signal.SIGKILL:
                assert process.returncode == 0, (command, output[-4000:])
                return


@pytest.fixture(scope="module")
def wanted(finished):
    """What the disk's commands gave, with those that the quick start does not run."""
    folder, _ = finished
    for module, *flags in commands(finished, folder, "")[-3:]:
        command = [sys.executable, "-m", module, *flags]
        subprocess.run(command, cwd=ROOT, check=True)
    return content(folder)


def content(folder):
    """The bytes of what the stages made, and the losses."""
    patterns = ("crawl/*.warc.gz", "metadata/*.parquet", "dataset/*-of-*")
    patterns += (
        "tokenizer.json",
        "model/*.safetensors",
        "export/*.parquet",
        "run/evaluation/*",
    )
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    losses = [row["loss"] for row in metric_rows.read(str(folder / "run"))]
    return found, losses


@pytest.mark.parametrize("how", ["after each kind of file", "at random"])
def test_all_stages_in_a_bucket_give_the_bytes_of_the_disk(
    finished, wanted, site_address, cloud_storage, tmp_path, how
):
    folder, _ = finished
    with cloud_storage(tmp_path / "buckets") as storage:
        storage.upload(folder / "held_out", folder / "site" / "pageviews.txt")
        bucket = tmp_path / "buckets" / "bucket1"
        seed = time.time_ns()
        rng = random.Random(seed)
        moments = [rng.uniform(1, 20) for _ in range(KILLS)]
        killed = Killed(bucket, moments if how == "at random" else None)
        for command in commands(finished, "gs://bucket1", site_address):
            killed.run(command, storage.environment)
    print(f"{killed.kills} kills, random moments from seed {seed}")
    assert killed.kills >= KILLS // 2
    (found, losses), (wanted_files, wanted_losses) = content(bucket), wanted
    assert losses == wanted_losses
    assert found.keys() == wanted_files.keys()
    assert [name for name in found if found[name] != wanted_files[name]] == []
