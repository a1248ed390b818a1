#!/usr/bin/env bash
# Trains with N processes on this machine's CPUs, to try what several hosts do:
#
#   launch/local_processes.sh [--dry-run] 4 --config=configs/quickstart.py --workdir=runs/four
#
# Each process has mesh.cpu_devices devices; the batch size must be divisible by those of all.
#
# Cost: slower than one process, and the memory of N.
# Preemption: Ctrl-C or SIGTERM, here or to any one process, makes all save and exit 75; the same
# command goes on, with any N. After kill -9 of one the others end within
# processes.heartbeat_timeout; the steps since the last checkpoint are lost.
#
# Exits with the highest code of the processes. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 [--dry-run] NUMBER_OF_PROCESSES --config=… [--workdir=…]" >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')

pids=()
for ((index = 0; index < count; index++)); do
  command=(
    env JAX_PLATFORMS=cpu JAX_COORDINATOR_ADDRESS="127.0.0.1:$port"
    JAX_NUM_PROCESSES="$count" JAX_PROCESS_ID="$index" "$python" -m gpt_jax.train "$@"
  )
  if [[ $dry_run ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}" &
    pids+=("$!")
  fi
done
# Bash lets background processes ignore Ctrl-C, so it is passed on as SIGTERM.
trap 'signalled=1; kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM

highest=0
for pid in "${pids[@]}"; do
  signalled=1
  while [[ $signalled ]]; do # A signal ends the wait, not the process.
    signalled=
    code=0
    wait "$pid" || code=$?
  done
  ((code <= highest)) || highest=$code
done
exit "$highest"
