"""The command as a scheduler sees it."""

import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from tests.training import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]

_CHILD = """
import sys, jax
counts = {}
jax.monitoring.register_event_listener(
  lambda name, **_: counts.update({name: counts.get(name, 0) + 1})
)
from gpt_jax import cli, train
try:
  cli.run(train.main, train.define_flags(), doc='', takes_config=True)
finally:
  print('misses', counts.get('/jax/compilation_cache/cache_misses', 0))
"""


def test_the_process_stops_with_75_and_resumes_without_compiling(tmp_path):
  config = runs.make_config(tmp_path)
  source, run = tmp_path / 'sea.py', tmp_path / 'run'
  source.write_text(
    'from gpt_jax import config as c\n'
    'from gpt_jax.config import *\n'
    f'def get_config():\n  return {config!r}\n'
  )
  command = [sys.executable, '-c', _CHILD, f'--config={source}', f'--workdir={run}']
  environment = {
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  options: dict[str, Any] = {'cwd': ROOT, 'env': environment, 'text': True}
  options |= {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  long = [*command, '--config.train.steps=100000', '--config.train.tensorboard=true']
  with subprocess.Popen(long, **options) as process:
    deadline = time.monotonic() + 240
    while not any('"step": 3,' in line for line in _lines(run / 'metrics.jsonl')):
      assert process.poll() is None and time.monotonic() < deadline, 'the run did not start'
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, messages = process.communicate(timeout=60)
  assert process.returncode == 75, messages
  assert 'Traceback' not in messages and 'parameters' in output
  assert list((run / 'tensorboard').glob('events*'))
  saved = max(int(path.name) for path in (run / 'checkpoints').iterdir() if path.name.isdigit())
  assert saved == json.loads(_lines(run / 'metrics.jsonl')[-1])['step']
  shorter, longer = (f'--config.train.steps={saved + n}' for n in (-1, 1))
  refused = subprocess.run([*command, shorter], **options, check=False)
  assert (refused.returncode, 'train.steps' in refused.stderr) == (2, True)
  finished = subprocess.run([*command, longer], **options, check=False)
  assert finished.returncode == 0, finished.stderr
  assert (run / 'loss.png').read_bytes().startswith(b'\x89PNG')
  assert 'misses 0' not in output and 'misses 0' in finished.stdout


def _lines(path):
  return path.read_text().splitlines() if path.exists() else []
