#!/usr/bin/env bash
# Trains on GPU hosts of a Slurm cluster until the run is complete: requeues the job after a
# time limit, a preemption or the loss of a host, and training goes on from its checkpoint.
# Submit it in the checkout, with the environment active, and the flags of training:
#
#   sbatch --nodes=8 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#       --config=configs/metaclip.py:vit_l14_400m --config.data.worker_count=1 \
#       --workdir=/shared/runs/l14 ...
#
# One process a GPU: as many tasks a node as it has GPUs.
#SBATCH --job-name=clip
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --time=24:00:00
set -euo pipefail

# JAX gives each process the GPU of its local number, so all must see all of the node.
if srun --gpu-bind=none --kill-on-bad-exit=0 launch/train.sh "$@"; then
  echo "The run is complete."
  exit
fi
# A job that ends this soon would fail each time.
if ((SECONDS < ${LAUNCH_LEAST_SECONDS:-600})); then
  echo "Training failed within ${LAUNCH_LEAST_SECONDS:-600} seconds: see above. Submit it again." >&2
  exit 1
fi
echo "Training ended before the run is complete; it starts again."
scontrol requeue "$SLURM_JOB_ID"
