#!/usr/bin/env bash
# Measures on one GPU what the README says of the CPU, about ten minutes on an H100:
#
#   [NANOGPT=../nanoGPT PEER_PYTHON=../torch/bin/python] launch/measure_gpu.sh [--dry-run] OUT
#
# Writes into the folder OUT what each measurement prints, and its JSON. With NANOGPT (a checkout)
# and PEER_PYTHON (one with PyTorch and transformers), these run in turn with gpt_jax. A measurement
# that fails is named, and the others go on. No network is needed; TEXT, a file with tiny
# Shakespeare, is trained on to the end too.
#
# Cost: the machine, for these minutes.
# Preemption: what was measured before stays in OUT.
#
# --dry-run prints the commands. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=1
  shift
fi
if [[ $# != 1 || $1 == -* ]]; then
  echo "usage: $0 [--dry-run] OUT" >&2
  exit 2
fi
out=$1 failed=0
[[ $dry_run ]] || mkdir -p "$out"
train_peer=() decode_peer=()
if [[ ${NANOGPT-} ]]; then
  peer=("--peer_python=${PEER_PYTHON:-python}" --peer_compile)
  train_peer=("--peer=nanogpt:$NANOGPT" "${peer[@]}")
  decode_peer=(--peer=transformers "${peer[@]}")
fi

measure() { # NAME COMMAND…
  local name=$1
  shift
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo "${json:+> $(printf %q "$json")}"
    return
  fi
  echo "$name"
  timeout 240 "$@" 2>&1 >"${json:-/dev/stdout}" | tee "$out/$name.txt" || {
    echo "$name failed" >&2
    failed=1
  }
}
bench() { # NAME MODE CONFIG OPTIONS…
  local name=$1 mode=$2 config=$3 json=$out/$1.json
  shift 3
  measure "$name" "${PYTHON:-python}" -m gpt_jax.bench "$mode" "--config=configs/$config.py" \
    --json "$@"
}
rows() { # sequences in a step, all in one part
  echo "--config.train.batch_size=$1" --config.train.gradient_accumulation=1 --repeats=3
}

# shellcheck disable=SC2046 # the options are words
{
  bench small train gpt2_small $(rows 32) "${train_peer[@]}"
  bench small_trace train gpt2_small $(rows 32) "--trace=$out/trace"
  bench small_deterministic train gpt2_small $(rows 32) --config.train.deterministic=true
  bench medium train gpt2_medium $(rows 16)
  bench large train gpt2_large $(rows 8)
  bench xl train gpt2_xl $(rows 4)
  bench shakespeare train shakespeare_char $(rows 64) "${train_peer[@]}"
  bench decode decode gpt2_small --rows=1,256 --repeats=3 "${decode_peer[@]}"
  bench start startup gpt2_small $(rows 32) --repeats=1
}
if [[ ${TEXT-} ]]; then
  measure run "${PYTHON:-python}" -m gpt_jax.train --config=configs/shakespeare_char.py \
    "--config.data.source=text:$TEXT" "--workdir=$out/run"
fi
exit "$failed"
