#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM slice, by gcloud (after `ssh-add` of its key):
#
#   launch/tpu_vm.sh create NAME ZONE --accelerator-type=v5litepod-16 \
#     --version=v2-alpha-tpuv5-lite [--spot]
#   launch/tpu_vm.sh install NAME ZONE             the last commit of this checkout, on each worker
#   launch/tpu_vm.sh train NAME ZONE --config=configs/gpt2_xl.py --workdir=/shared/runs/xl
#   launch/tpu_vm.sh log | stop | delete NAME ZONE
#
# All workers must share the workdir (Filestore, gcsfuse). If data.cache_dir is there too, a
# gpt_jax.prepare before saves each worker doing it.
#
# Cost: every chip of the slice by the second, from `create` to `delete`, busy or not.
# Preemption: `stop`, or SIGTERM to any worker, makes all save and exit 75; `train` goes on. A spot
# slice is taken as a whole, with 30 s of warning at most, and not given back: the steps since the
# last checkpoint may be lost, and after `delete`, `create` and `install`, `train` goes on.
# Training outlives a lost connection; `log` follows it again.
#
# --dry-run in front prints the commands.
set -euo pipefail

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if (($# < 3)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
verb=$1 name=$2 zone=$3
shift 3
cd "$(dirname "$0")/.."

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
tpu() { run gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"; }
on() { tpu ssh --worker="$1" --command="$2"; }

# All-reduces that overlap with computation; off by default on a v5e, says OpenXLA's "Flags
# guidance". An unknown flag ends the process; libtpu 0.0.42 and 0.0.50 know it.
flags=${LIBTPU_INIT_ARGS---xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true}

# shellcheck disable=SC2016  # What is in single quotes is for the workers.
case $verb in
  create) tpu create "$@" ;;
  install)
    archive=/tmp/gpt_jax-$name.tar.gz
    run git archive --prefix=gpt_jax/ --output="$archive" HEAD
    run gcloud compute tpus tpu-vm scp --zone="$zone" --worker=all "$archive" "$name:gpt_jax.tar.gz"
    # The image's own Python is too old; uv brings one.
    on all 'tar -xzf gpt_jax.tar.gz && cd gpt_jax && python3 -m pip install --quiet uv &&
      python3 -m uv venv --quiet --clear --python=3.13 &&
      python3 -m uv pip install --quiet --python=.venv --editable ".[tpu]"'
    ;;
  train)
    on all "cd gpt_jax && : > train.log && export LIBTPU_INIT_ARGS=$(printf %q "$flags") && {
      nohup .venv/bin/python -m gpt_jax.train$(printf ' %q' "$@") < /dev/null >> train.log 2>&1 &"'
      echo $! > train.pid; tail --pid=$! --lines=+1 --follow train.log; wait $!; }'
    ;;
  log) on 0 'tail --pid="$(cat gpt_jax/train.pid)" --lines=50 --follow gpt_jax/train.log' ;;
  stop) on 0 'kill -TERM "$(cat gpt_jax/train.pid)"' ;;
  delete) tpu delete ;;
  *)
    echo "unknown command $verb: create, install, train, log, stop or delete" >&2
    exit 2
    ;;
esac
