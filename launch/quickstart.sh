#!/usr/bin/env bash
# From nothing to a small GPT that writes: environment, training, samples. About 3 minutes on 2 cores.
# PYTHON chooses the interpreter (3.11 or newer), VENV where the environment is made.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable .
"$venv/bin/python" -m gpt_jax.train --config=configs/quickstart.py "$@"
exec "$venv/bin/python" -m gpt_jax.sample --model=runs/quickstart --num_samples=2
