#!/usr/bin/env bash
# Everything that must pass: formatting, lint, types, import rules, tests. Arguments go to pytest.
# PYTHON chooses the interpreter (3.11 or newer), VENV the folder of the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable '.[test]'
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
"$venv/bin/mypy"
"$venv/bin/lint-imports"
# The order of the files is that of tests/conftest.py.
options=(--numprocesses=2 --dist=loadfile --no-loadscope-reorder)
# Most tests see two devices; those of the mesh need eight.
XLA_FLAGS=--xla_force_host_platform_device_count=8 "$venv/bin/python" -m pytest \
  "${options[@]}" tests/parallel "$@"
exec "$venv/bin/python" -m pytest "${options[@]}" --ignore=tests/parallel "$@"
