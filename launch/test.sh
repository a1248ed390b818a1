#!/usr/bin/env bash
# Everything that must pass: formatting, lint, types, import rules, tests. Arguments go to pytest.
# PYTHON chooses the interpreter (3.11 or newer), VENV where the environment is made.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --editable '.[test]'
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
"$venv/bin/mypy"
"$venv/bin/lint-imports"
# Files in their order: by the number of their tests, the longest would come last, on one core.
exec "$venv/bin/python" -m pytest --numprocesses=2 --dist=loadfile \
  --no-loadscope-reorder "$@"
