"""Measurements in processes of their own: ours, a peer's, and both in turn."""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import cpu_memory, errors, validation
from gpt_jax.benchmarks import figures
from gpt_jax.benchmarks import options as options_lib
from gpt_jax.parallel import mesh

_Figures = list[figures.Figure]


def measure(name: str, config: config_lib.Config, options: options_lib.Options) -> _Figures:
  """Calls a function of a module of this package, such as `train.measure`, in this process."""
  module, _, function = name.partition('.')
  mesh.start(config.mesh)
  call: Any = getattr(importlib.import_module(f'gpt_jax.benchmarks.{module}'), function)
  return call(config, options)


def run(
  name: str, config: config_lib.Config, options: options_lib.Options, **variables: str
) -> _Figures:
  """Does `measure` in a new process with these environment variables."""
  command = [sys.executable, '-m', 'gpt_jax.benchmarks.processes']
  spec = {'name': name, 'config': dataclasses.asdict(config), 'options': vars(options)}
  return [figures.Figure(*each) for each in _run(command, spec, key='config', **variables)]


def compare(mode: str, config: config_lib.Config, options: options_lib.Options) -> _Figures:
  """Measures gpt_jax and `options.peer` in turn; returns what both have, and the ratios.

  Raises `UserError` if one of them fails.
  """
  peer, _, folder = options.peer.partition(':')
  script = pathlib.Path(__file__).with_name('peers') / f'run_{peer}.py'
  once = dataclasses.replace(options, repeats=1, peer='')
  spec: dict[str, Any] = {'name': mode, 'config': dataclasses.asdict(config), 'options': vars(once)}
  spec |= {'folder': folder, 'vocab_size': config.model.padded_vocab_size}
  rounds: list[tuple[dict[str, figures.Figure], dict[str, float]]] = []
  for _ in range(options.repeats):
    ours = {each.name: each for each in run(f'{mode}.measure', config, once)}
    command, now = [options.peer_python, str(script)], {'began': time.time()}
    rounds.append((ours, _run(command, spec | now, key='peer')))
  found = []
  for name in rounds[0][1]:
    unit = rounds[0][0][name].unit
    us = figures.Figure(f'{name}, gpt_jax', unit, [ours[name].median for ours, _ in rounds])
    them = figures.Figure(f'{name}, {peer}', unit, [theirs[name] for _, theirs in rounds])
    ratio = us.median / them.median
    found += [us, them, figures.Figure(f'{name}, ratio', '×', [ratio], 'of the medians')]
  return found


def _run(command: list[str], spec: dict[str, Any], *, key: str, **variables: str) -> Any:
  """Returns the JSON in the last line that a program prints; `spec` is its standard input."""
  env, text = os.environ | variables, json.dumps(spec)
  done = subprocess.run(command, input=text, capture_output=True, text=True, env=env)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['it gives no reason'])[-1]
    raise errors.UserError(key, f'{command[0]} ended with {done.returncode}: {last}')
  return json.loads(done.stdout.splitlines()[-1])


if __name__ == '__main__':
  cpu_memory.keep()
  _given = json.load(sys.stdin)
  _how = options_lib.Options(**_given['options'])
  print(json.dumps(measure(_given['name'], validation.from_dict(_given['config']), _how)))
