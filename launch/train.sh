#!/usr/bin/env bash
# Trains as one process of a run, and succeeds only once the run is complete. Training that
# is asked to stop saves a checkpoint and ends without an error; here this is a failure, so
# that Kubernetes or Slurm starts it again.
set -euo pipefail

workdir=""
for flag; do [[ $flag != --workdir=* ]] || workdir="${flag#*=}"; done
python -m metaclip_jax.train --coordinator=auto "$@" &
trainer=$!
trap 'kill -TERM "$trainer" || true' TERM
# A signal ends `wait` before the trainer ends.
while kill -0 "$trainer" 2>/dev/null; do wait "$trainer" || true; done
wait "$trainer"
python -c '
import sys
from metaclip_jax import files
if not (files.path(sys.argv[1]) / files.MANIFEST).exists():
    sys.exit("The run is not complete; start it again.")' "$workdir"
