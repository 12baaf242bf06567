#!/usr/bin/env bash
# Trains on a Cloud TPU: makes the TPU VM if there is none, copies this checkout with its
# changes (but not files that git does not know) to every worker, installs it, and starts
# the same command on all of them.
#
#   ./launch_tpu.sh --name=clip --zone=us-central2-b --type=v4-32 -- \
#       --config=configs/metaclip.py:vit_b32_400m --workdir=gs://bucket/runs/b32
#
# Run it again after a preemption: the VM is made anew, and training goes on from its
# last checkpoint. --spot asks for a VM that is cheaper and may be preempted.
# --version is the image of the TPU VM; by default what Google names for the type.
# --dry_run prints the commands without running them.
set -euo pipefail
cd "$(dirname "$0")"

name="" zone="" type="" version="" spot="" dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --spot) spot=1 ;;
    --dry_run) dry_run=1 ;;
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
    --) shift; break ;;
    *) echo "unknown option $1: see the head of $0" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $name || -z $zone || -z $type || $# -eq 0 ]]; then
  echo "wanted --name, --zone, --type and, after --, the flags of metaclip_jax.train" >&2
  exit 2
fi

if [[ -z $version ]]; then
  case "$type" in
    v[234]-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) echo "no image is known for --type=$type: give --version, one of those that" \
         "'gcloud compute tpus tpu-vm versions list --zone=$zone' prints" >&2; exit 2 ;;
  esac
fi

run() {
  printf '%q ' "$@"; printf '\n'
  if [[ -z $dry_run ]]; then "$@"; fi
}
tpu=(gcloud compute tpus tpu-vm)
at=("--zone=$zone")
everywhere=("${tpu[@]}" ssh "$name" "${at[@]}" --worker=all --command)

state=""
if [[ -z $dry_run ]]; then
  state=$("${tpu[@]}" describe "$name" "${at[@]}" --format='value(state)' 2>/dev/null) || true
fi
case "$state" in
  PREEMPTED | TERMINATED)
    run "${tpu[@]}" delete "$name" "${at[@]}" --quiet
    state="" ;;
  STOPPED) run "${tpu[@]}" start "$name" "${at[@]}" ;;
esac
if [[ -z $state ]]; then
  run "${tpu[@]}" create "$name" "${at[@]}" "--accelerator-type=$type" \
    "--version=$version" ${spot:+--spot}
fi

archive="$(mktemp -d)/metaclip-jax.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
# A commit of the changes, if there are any; nothing changes here.
changed=$(git -c user.name=launcher -c user.email=launcher@localhost stash create)
run git archive --format=tar.gz --output="$archive" "${changed:-HEAD}"
run "${tpu[@]}" scp "$archive" "$name:metaclip-jax.tar.gz" "${at[@]}" --worker=all

# The images' own Python is older than what we need; uv brings one.
install='mkdir -p metaclip-jax && tar -xzf metaclip-jax.tar.gz -C metaclip-jax &&
cd metaclip-jax && python3 -m pip install -q --user uv && uv="python3 -m uv" &&
$uv venv -q --allow-existing --python=3.11 .venv &&
$uv pip install -q --python=.venv -c constraints.txt -e ".[tpu]"'
run "${everywhere[@]}" "$install"

printf -v flags '%q ' "$@"
train=".venv/bin/python -m metaclip_jax.train --coordinator=auto $flags"
run "${everywhere[@]}" "cd metaclip-jax && $train"
