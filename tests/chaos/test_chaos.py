"""The short trials of `python -m tests.chaos` find nothing wrong."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_what_machines_do_to_runs_loses_nothing():
  command = [sys.executable, '-m', 'tests.chaos', '--short']
  env = {**os.environ, 'XLA_FLAGS': ''}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count('\n') == 4
