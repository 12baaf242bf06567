#!/usr/bin/env bash
# Trains on a Cloud TPU until the run is complete: makes the TPU VM if there is none,
# copies this checkout with its changes (but not files that git does not know) to every
# worker, installs it, and starts the same command on all of them. Each worker starts it
# again after an error, so that training outlives this terminal. Then this script shows
# the log of worker 0. It starts training again on workers where it was killed, say as
# they were rebooted, and after a preemption it makes the VM anew.
#
#   ./launch_tpu.sh --name=clip --zone=us-central2-b --type=v4-32 --spot -- \
#       --config=configs/metaclip.py:vit_b32_400m --workdir=gs://bucket/runs/b32
#
# Run it again at any time: where training runs already, it only shows the log. Other
# flags of training, or other code, need --stop first.
#
#   --spot      a VM that is cheaper and may be preempted
#   --reserved  a VM of your reservation
#   --queued    ask by a queued resource, which waits for capacity
#   --slices=N  N slices that train one run, by a queued resource; also for --stop
#   --version   the image of the TPU VM; by default what Google names for the type
#   --stop      stop training on all workers; each saves a checkpoint first
#   --delete    delete the VM; with training flags, once the run is complete
#   --dry_run   print all commands and when they are run, without running them
set -euo pipefail
cd "$(dirname "$0")"

# Writes a worker's state, which is never seen empty or half written.
say() {
  echo "$1" >../metaclip-jax.state.new
  mv ../metaclip-jax.state.new ../metaclip-jax.state
}

# What a worker runs: training, again after each error, unless five come in a row.
on_worker() {
  local failures=0 restarts=0 began trainer="" workdir="" flag
  for flag; do [[ $flag != --workdir=* ]] || workdir="${flag#*=}"; done
  trap 'if [[ -n $trainer ]]; then kill -TERM "$trainer" || true; wait "$trainer" || true; fi
    say stopped; exit' TERM
  echo $$ >../metaclip-jax.pid
  while true; do
    say "running $restarts"
    began=$SECONDS
    .venv/bin/python -m metaclip_jax.train --coordinator=auto "$@" &
    trainer=$!
    # Training that is asked to stop ends without an error, before the run is complete.
    if wait "$trainer" && .venv/bin/python -c '
import sys
from metaclip_jax import files
sys.exit(not (files.path(sys.argv[1]) / files.MANIFEST).exists())' "$workdir"; then
      say finished
      return
    fi
    trainer=""
    if ((SECONDS - began > 600)); then failures=0; fi
    failures=$((failures + 1)) restarts=$((restarts + 1))
    if ((failures == 5)); then
      say failed
      return 1
    fi
    echo "Training ended before the run is complete; it starts again."
    sleep "${LAUNCH_PAUSE_SECONDS:-30}"
  done
}
if [[ ${1-} == --on_worker ]]; then
  shift
  on_worker "$@"
  exit
fi

name="" zone="" type="" version="" spot="" queued="" slices=1 stop="" delete="" dry_run=""
while (($#)); do
  case "$1" in
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --type=*) type="${1#*=}" ;;
    --version=*) version="${1#*=}" ;;
    --spot | --reserved) spot="$1" ;;
    --queued) queued=1 ;;
    --slices=*) slices="${1#*=}" ;;
    --stop) stop=1 ;;
    --delete) delete=1 ;;
    --dry_run) dry_run=1 ;;
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit ;;
    --) shift; break ;;
    *) echo "wanted an option that --help lists, got $1" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $name || -z $zone ]]; then
  echo "wanted --name and --zone, got neither or one of them; --help shows an example" >&2
  exit 2
fi
if ! [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]; then
  echo "wanted --name of small letters, digits and -, as TPU VMs have, got $name" >&2
  exit 2
fi
if ! [[ $slices =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "wanted --slices as a number of at least 1, got $slices" >&2
  exit 2
fi
poll="${LAUNCH_POLL_SECONDS:-30}"
answered="" # by gcloud, in this run
known=""    # the VM, or that it was asked for; this run has not deleted it
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() {
  printf '%q ' "$@"; printf '\n'
  if [[ -z $dry_run ]]; then "$@"; fi
}
# Only prints the command in a dry run, and otherwise only runs it.
quietly() {
  if [[ -n $dry_run ]]; then run "$@"; else "$@"; fi
}
tpu=(gcloud compute tpus)
at=("--zone=$zone")
group=tpu-vm nodes=("$name") first=(--worker=0) all=(--worker=all)
if ((slices > 1)); then
  # Google names the slices of a queued resource like this.
  queued=1 group=queued-resources nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
  first+=(--node=0) all+=(--node=all)
fi

# A connection that is dead ends in a minute.
ssh=("${tpu[@]}" "$group" ssh "$name" "${at[@]}"
  "--ssh-flag=-o ConnectTimeout=30 -o ServerAliveInterval=15")

# Prints the state of all slices: READY, or that of the first that is not; nothing if
# there is none.
vm_state() {
  local node found=""
  for node in "${nodes[@]}"; do
    found=$(state tpu-vm "$node") || return
    if [[ $found != READY ]]; then break; fi
  done
  echo "$found"
}

# Prints the state of a tpu-vm or of queued-resources; nothing if there is none.
state() {
  local field=state
  if [[ $1 == queued-resources ]]; then field=state.state; fi
  if ! quietly "${tpu[@]}" "$1" describe "$2" "${at[@]}" "--format=value($field)" 2>"$scratch/said"; then
    if ! grep -q NOT_FOUND "$scratch/said"; then
      cat "$scratch/said" >&2
      exit 1
    fi
  fi
}

# Deletes the VM; it may be gone already.
remove() {
  local asked=("${tpu[@]}" tpu-vm delete "$name" "${at[@]}" --quiet)
  if [[ -n $queued ]]; then
    asked=("${tpu[@]}" queued-resources delete "$name" "${at[@]}" --force --quiet)
  fi
  known=""
  if ! run "${asked[@]}" 2>"$scratch/said"; then
    cat "$scratch/said" >&2
    grep -q NOT_FOUND "$scratch/said"
  fi
}

# Starts the VM again; of several slices, those that are left go first.
restart() {
  if ((slices > 1)); then remove; else run "${tpu[@]}" tpu-vm start "$name" "${at[@]}"; fi
}

# Makes the VM, and tries again for as long as the zone has no capacity.
create() {
  local asked=("${tpu[@]}" tpu-vm create "$name" "${at[@]}" "--accelerator-type=$type" "--version=$version")
  if [[ -n $queued ]]; then
    asked=("${tpu[@]}" queued-resources create "$name" "${at[@]}"
      "--accelerator-type=$type" "--runtime-version=$version")
    if ((slices > 1)); then
      asked+=("--node-count=$slices" "--node-prefix=$name")
    else
      asked+=("--node-id=$name")
    fi
  fi
  until run "${asked[@]}" ${spot:+"$spot"} 2>"$scratch/said"; do
    cat "$scratch/said" >&2
    # Another launcher was faster.
    if grep -q ALREADY_EXISTS "$scratch/said"; then break; fi
    if grep -qi 'quota' "$scratch/said" ||
      ! grep -q '[Cc]apacity\|RESOURCE_EXHAUSTED\|UNAVAILABLE\|INTERNAL\|DEADLINE_EXCEEDED' \
        "$scratch/said"; then
      exit 1
    fi
    sleep "$poll"
  done
  known=1
}

# Sets `found` to the state that a command prints. The first failure of gcloud in this run
# is an error; later it may fail for a moment, as while a network is down.
ask() {
  local misses=0
  until found=$("$@"); do
    misses=$((misses + 1))
    if [[ -z $answered ]] || ((misses == 10)); then exit 1; fi
    sleep "$poll"
  done
  answered=1
  if [[ -n $found ]]; then known=1; fi
}

# Makes what is missing, but not again what another command has deleted.
make_missing() {
  if [[ -n $known ]]; then
    echo "The VM was deleted by another command; the same command makes it anew." >&2
    exit 1
  fi
  create
}

# Says a state that is waited for, once.
await() {
  if [[ $1 != "$waited" ]]; then echo "The $2 is $1; waiting."; fi
  waited="$1"
  sleep "$poll"
}

# Returns once the VM is ready; makes it if it is missing or was preempted.
make_vm() {
  local found waited=""
  while true; do
    if [[ -n $queued ]]; then
      ask state queued-resources "$name"
      case "$found" in
        ACTIVE) ;;
        "") make_missing; continue ;;
        SUSPENDED) remove; continue ;;
        FAILED) remove; await FAILED "queued resource"; continue ;;
        *) await "$found" "queued resource"; continue ;;
      esac
    fi
    ask vm_state
    case "$found" in
      READY) return ;;
      "") if [[ -z $queued ]]; then make_missing; else sleep "$poll"; fi ;;
      PREEMPTED | TERMINATED) remove ;;
      STOPPED) restart ;;
      *) await "$found" VM ;;
    esac
  done
}

# Packs this checkout, once: after a preemption the same code is installed again.
pack() {
  local changed
  # A commit of the changes, if there are any; nothing changes here, as git's index is a
  # copy.
  cp "$(git rev-parse --git-path index)" "$scratch/index"
  # Files that were written again without a change would make `stash` fail.
  GIT_INDEX_FILE="$scratch/index" git update-index -q --refresh >/dev/null || true
  changed=$(GIT_INDEX_FILE="$scratch/index" git -c user.name=launcher \
    -c user.email=launcher@localhost stash create)
  run git archive --format=tar.gz --output="$archive" "${changed:-HEAD}"
}

# Prints the flags with which worker 0 trains, if it does.
read_flags() {
  quietly "${ssh[@]}" "${first[@]}" --command \
    'flock -n -s metaclip-jax.lock true || cat metaclip-jax.flags'
}

# Ends this run if worker 0 trains with other flags.
refuse_other_flags() {
  local found
  found=$(read_flags) || return
  if [[ -n $found && $found != "$flags" ]]; then
    echo "wanted to train with $flags, but $name trains with $found: --stop that first," \
      "or choose another --name" >&2
    exit 1
  fi
}

# Installs what was packed and starts training on all workers, unless they train already.
# Where it has ended since this run began to follow it, it ended for all.
start() {
  local install only_killed=""
  run "${tpu[@]}" "$group" scp "$archive" "$name:metaclip-jax.tar.gz" "${at[@]}" "${all[@]}" || return
  # The images' own Python is older than what we need; uv brings one.
  # shellcheck disable=SC2016 # the worker's shell expands it
  install='exec 9>metaclip-jax.installing && flock 9  # of another launcher
flock -n -s metaclip-jax.lock true || exit 0
mkdir -p metaclip-jax && tar -xzf metaclip-jax.tar.gz -C metaclip-jax &&
cd metaclip-jax && python3 -m pip install -q --user uv && uv="python3 -m uv" &&
$uv venv -q --allow-existing --python=3.11 .venv &&
$uv pip install -q --python=.venv -c constraints.txt -e ".[tpu]"'
  # A worker that hangs fails like others, and each that fails is named.
  # shellcheck disable=SC2016
  printf -v install 'timeout %q bash -c %q || { echo "$(hostname) did not install" >&2; exit 1; }' \
    "${LAUNCH_INSTALL_SECONDS:-1800}" "$install"
  run "${ssh[@]}" "${all[@]}" --command "$install" || return
  if [[ -z $new ]]; then
    only_killed='[[ ! -e metaclip-jax.state ]] || grep -q ^running metaclip-jax.state || exit 0'
  fi
  # Training has the lock for as long as it runs; others try it for a moment.
  run "${ssh[@]}" "${all[@]}" --command "flock metaclip-jax.installing true
exec 8>metaclip-jax.lock && flock -w 1 8 || exit 0
$only_killed
echo $(printf %q "$flags") >metaclip-jax.flags
echo running 0 >metaclip-jax.state.new && mv metaclip-jax.state.new metaclip-jax.state
setsid nohup metaclip-jax/launch_tpu.sh --on_worker $flags >metaclip-jax.log 2>&1 </dev/null &" || return
  new=""
}

# Prints worker 0's state, and its log without its first bytes. A worker that says it is
# running has the lock, or was killed.
read_log() {
  quietly "${ssh[@]}" "${first[@]}" --command \
    "if state=\$(flock -n -s metaclip-jax.lock cat metaclip-jax.state); then
  [[ \$state != running* ]] || state=killed
else
  state=\$(cat metaclip-jax.state)
fi
echo \$state; tail -c +$(($1 + 1)) metaclip-jax.log"
}

# Shows worker 0's log; returns the run's state, "restarted" if training has started again
# there, or "gone" if the VM is no longer ready.
follow() {
  local silent=0 vm more="$scratch/more"
  outcome=""
  while true; do
    # An answer without a state is none.
    if read_log "$seen" >"$more" && [[ -n $(head -n 1 "$more") ]]; then
      silent=0
      sed 1d "$more"
      seen=$((seen + $(sed 1d "$more" | wc -c)))
      outcome=$(head -n 1 "$more")
      if [[ $outcome != running* ]]; then return; fi
      if [[ $outcome != "running $restarts" ]]; then
        restarts="${outcome#running }" outcome=restarted
        return
      fi
    else
      silent=$((silent + 1))
    fi
    # gcloud may fail for a moment: then nothing is known, and the VM is not gone.
    if vm=$(vm_state) && [[ $vm != READY ]]; then outcome=gone; return; fi
    if ((silent == 10)); then outcome=silent; return; fi
    sleep "$poll"
  done
}

# The trainers get the signal by their shells, save, and leave the lock.
stop_training() {
  # shellcheck disable=SC2016 # the worker's shell expands it
  run "${ssh[@]}" "${all[@]}" --command \
    'flock -n -s metaclip-jax.lock true || kill -TERM "$(cat metaclip-jax.pid)"
flock -s metaclip-jax.lock true'
}

if [[ -z $dry_run ]] && ! command -v gcloud >/dev/null; then
  echo "wanted gcloud on PATH, got none; https://cloud.google.com/sdk/docs/install" >&2
  exit 1
fi
if [[ -n $stop ]]; then stop_training; fi
if (($# == 0)); then
  if [[ -n $delete ]]; then remove; fi
  if [[ -n $stop$delete ]]; then exit; fi
fi
case " $*" in
  *" --workdir=gs://"*) ;;
  *) echo "wanted, after --, the flags of metaclip_jax.train with a --workdir on gs://," \
       "since the VM's disk is lost with it" >&2; exit 2 ;;
esac
if [[ -z $type ]]; then
  echo "wanted --type, for example v4-32, got none" >&2
  exit 2
fi
if [[ -z $version ]]; then
  case "$type" in
    v[234]-*) version="tpu-ubuntu2204-base" ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *)
      echo "no image is known for --type=$type: give --version, one of those that" \
        "'gcloud compute tpus tpu-vm versions list --zone=$zone' prints" >&2
      exit 2 ;;
  esac
fi

archive="$scratch/metaclip-jax.tar.gz"
new=1 # the VM, to this run
printf -v flags '%q ' "$@"
flags="${flags% }"
if [[ -n $dry_run ]]; then
  echo "# At first:"
  pack
  echo "# Then, and every $poll seconds while training runs, the VM's state:"
  if [[ -n $queued ]]; then state queued-resources "$name"; fi
  for node in "${nodes[@]}"; do state tpu-vm "$node"; done
  echo "# If there is no VM, again and again until the zone has capacity:"
  create
  echo "# Once it is ready, the flags with which it trains already:"
  read_flags
  echo "# If there are no others:"
  start
  echo "# This starts on each worker, up to five errors in a row:"
  run .venv/bin/python -m metaclip_jax.train --coordinator=auto "$@"
  echo "# Every $poll seconds, with the number of bytes that were read:"
  read_log 0
  echo "# If the VM was preempted or has failed, before all of the above is run again:"
  remove
  echo "# If it was stopped, also before all of the above:"
  restart
  echo "# With --stop:"
  stop_training
  if [[ -n $delete ]]; then
    echo "# Once the run is complete:"
  else
    echo "# With --delete, once the run is complete:"
  fi
  remove
  exit
fi

pack
attempts=0 # to start training, or to start it again where it was killed, in a row
seen=0     # bytes of worker 0's log
restarts=0 # of training on worker 0
while true; do
  make_vm
  began=$SECONDS
  if refuse_other_flags && start; then
    follow
  else
    outcome="not started"
  fi
  if ((SECONDS - began > 600)); then attempts=0; fi
  case "$outcome" in
    finished) echo "The run is complete."; break ;;
    gone) new=1 attempts=0 seen=0 restarts=0; echo "The VM is gone; it is made anew." ;;
    # A worker without training, say after a reboot, makes the others fail.
    restarted) attempts=0 ;;
    killed) seen=0 restarts=0; echo "Training was killed on worker 0; it starts again." ;;&
    killed | "not started")
      attempts=$((attempts + 1))
      if ((attempts == 5)); then
        echo "wanted all workers to install, start and go on, got what is above 5 times" >&2
        exit 1
      fi
      sleep "$poll" ;;
    failed)
      echo "Training failed five times in a row: see above. The VM is still there;" \
        "--delete deletes it." >&2
      exit 1 ;;
    stopped) echo "Training was stopped; the same command continues."; exit ;;
    *)
      echo "wanted an answer of worker 0, got none ten times. Training may go on: run" \
        "the same command again, or --delete the VM." >&2
      exit 1 ;;
  esac
done
if [[ -n $delete ]]; then remove; fi
