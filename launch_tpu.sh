#!/usr/bin/env bash
# Trains on a Cloud TPU: makes the TPU VM if there is none, copies this checkout to
# every worker, installs it, and starts the same command on all of them.
#
#   ./launch_tpu.sh --name=clip --zone=us-central2-b --type=v4-32 -- \
#       --config=configs/vit_b32_400m.py --workdir=gs://bucket/runs/b32
#
# Run it again after a preemption: training goes on from its last checkpoint.
# --dry_run prints the commands without running them.
set -euo pipefail
cd "$(dirname "$0")"

name="" zone="" type="" version="tpu-ubuntu2204-base" dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --dry_run) dry_run=1 ;;
    --) shift; break ;;
    *) echo "unknown option $1: see the head of $0" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $name || -z $zone || -z $type || $# -eq 0 ]]; then
  echo "wanted --name, --zone, --type and, after --, the flags of metaclip_jax.train" >&2
  exit 2
fi

run() {
  printf '%q ' "$@"; printf '\n'
  if [[ -z $dry_run ]]; then "$@"; fi
}
tpu=(gcloud compute tpus tpu-vm)
at=("--zone=$zone")
everywhere=("${tpu[@]}" ssh "$name" "${at[@]}" --worker=all --command)

if [[ -n $dry_run ]] || ! "${tpu[@]}" describe "$name" "${at[@]}" >/dev/null 2>&1; then
  run "${tpu[@]}" create "$name" "${at[@]}" "--accelerator-type=$type" "--version=$version"
fi

archive="$(mktemp -d)/metaclip-jax.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git archive --format=tar.gz --output="$archive" HEAD
run "${tpu[@]}" scp "$archive" "$name:metaclip-jax.tar.gz" "${at[@]}" --worker=all

install='mkdir -p metaclip-jax && tar -xzf metaclip-jax.tar.gz -C metaclip-jax &&
cd metaclip-jax && python3 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'
run "${everywhere[@]}" "$install"

printf -v flags '%q ' "$@"
run "${everywhere[@]}" "cd metaclip-jax && .venv/bin/python -m metaclip_jax.train --coordinator=auto $flags"
