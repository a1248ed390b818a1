"""Measures a new process from its start to its first training step, in parts."""

import importlib
import tempfile
import time

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import user_cache
from gpt_jax.benchmarks import figures, processes
from gpt_jax.benchmarks import options as options_lib


def measure(config: config_lib.Config, options: options_lib.Options) -> list[figures.Figure]:
  """Measures it with an empty cache of compiled programs (cold) and with a filled one (warm)."""
  values: dict[str, list[float]] = {}
  for _ in range(options.repeats):
    with tempfile.TemporaryDirectory() as cache:
      for kind in ('cold', 'warm'):
        variables = {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_ENABLE_COMPILATION_CACHE': 'true'}
        began = time.time()
        parts = processes.run('startup.first_step', config, options, **variables)
        ends = [began, *(part.median for part in parts)]
        for part, seconds in zip(parts, np.diff(ends).tolist(), strict=True):
          values.setdefault(f'{kind} {part.name}', []).append(seconds)
        values.setdefault(f'{kind} start', []).append(ends[-1] - began)
  return [
    figures.Figure(name, 's', each, 'all of it' if 'start' in name else '')
    for name, each in values.items()
  ]


def first_step(config: config_lib.Config, _: options_lib.Options) -> list[figures.Figure]:
  """Takes a first step as `gpt_jax.train` does; returns when each part of it ended, since 1970."""
  from gpt_jax.benchmarks import train

  importlib.import_module('gpt_jax.training.loop')  # with all that it needs
  ends = {'imports': time.time()}
  user_cache.enable_compilation_cache()
  program = train.build(config)
  ends['build'] = time.time()
  program = program.compile()
  ends['compile'] = time.time()
  state = program.init()
  ends['parameters'] = time.time()
  train.take_steps(program, state, 1)
  ends['first step'] = time.time()
  return [figures.Figure(name, 's', [end]) for name, end in ends.items()]
