#!/usr/bin/env bash
# Trains on all GPUs of this box, as one process:
#
#   launch/gpu.sh [--dry-run] --config=configs/gpt2_small.py --workdir=/disk/runs/gpt2_small
#
# Cost: the box, busy or idle, from its start until you stop it. Nothing here starts or stops one.
# Preemption: SIGTERM (and Ctrl-C) ends the step, saves and exits 75; the same command goes on. A
# box that goes without a signal loses the steps since its last checkpoint
# (train.checkpoint_every), and a workdir on its own disk.
#
# --dry-run prints the command. PYTHON chooses the interpreter. Your XLA_FLAGS come last and win.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi

# Overlap of collectives with computation, off by default: OpenXLA's "GPU optimization levels" (O1)
# and "Flags guidance", NVIDIA's JAX-Toolbox, "Environment variables". An unknown flag ends the
# process; these four exist in jaxlib 0.10.2 and 0.12.
xla_flags=(
  --xla_gpu_enable_latency_hiding_scheduler=true
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_all_reduce=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
)
# JAX takes 75 % of the memory otherwise.
command=(
  env XLA_FLAGS="${xla_flags[*]} ${XLA_FLAGS-}"
  XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  "${PYTHON:-python}" -m gpt_jax.train "$@"
)
if [[ $dry_run ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
exec "${command[@]}"
