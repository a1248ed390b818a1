"""Measures training steps, taken as `training.loop` takes them, on random tokens."""

import functools
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.benchmarks import figures, matmul, trace
from gpt_jax.benchmarks import options as options_lib
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.data.batches import spans
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import input_pipeline, perf
from gpt_jax.training import program as program_lib

_WARM_UP, _TRACED = 3, 3  # steps


def measure(config: config_lib.Config, options: options_lib.Options) -> list[figures.Figure]:
  """Measures compiling, steps and memory; with `options.trace`, profiles some more steps."""
  jax.config.update('jax_enable_compilation_cache', False)
  began = time.perf_counter()
  program = build(config).compile()
  compiled = time.perf_counter() - began
  count = _WARM_UP + options.repeats * options.steps
  state, times = take_steps(program, program.init(), count + 1)
  seconds = np.diff(times[_WARM_UP - 1 :: options.steps]) / options.steps
  rate = program.tokens.size / seconds
  cost, dtype = perf.flops_per_token(program.config.model), program.config.model.dtype
  peak, source = _peak(dtype, options)
  formula = (
    '6 (N − N_wpe) + 12 n_layer n_embd L' if config.model.kind != 'lstm' else '6 (N − N_wte)'
  )
  memory = program.train_step.memory_analysis()
  in_step = mesh_lib.per_device_bytes((program.state, program.batch)) + memory.temp_size_in_bytes
  import resource  # POSIX alone has it

  unit = 1 if sys.platform == 'darwin' else 1024
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  found = [
    figures.Figure('compile', 's', [compiled], 'both steps, without a cache'),
    figures.Figure('step', 'ms', (1e3 * seconds).tolist()),
    figures.Figure('rate', 'tokens/s', rate.tolist()),
    figures.Figure('cost', 'MFLOP/token', [cost / 1e6], formula),
    figures.Figure('speed', 'GFLOP/s', (rate * cost / 1e9).tolist(), 'rate × cost'),
    figures.Figure('peak', 'GFLOP/s', [peak / 1e9], f'{dtype}, {source}'),
    figures.Figure('mfu', '%', (100 * rate * cost / peak).tolist(), 'speed / peak'),
    figures.Figure('step memory', 'MB', [in_step / 1e6], 'a device: arguments and temporaries'),
    figures.Figure('process memory', 'MB', [resident / 1e6], 'most ever resident'),
  ]
  if options.trace:
    more = functools.partial(take_steps, program, state, _TRACED)
    found += trace.measure(options.trace, program.train_step.as_text(), more, steps=_TRACED)
  return found


def build(config: config_lib.Config) -> program_lib.Program:
  """Returns the program of a config with a vocabulary, not compiled yet."""
  mesh, classes = mesh_lib.make_mesh(config), config.model.class_names or ('0', '1')
  tokenizer: Any = types.SimpleNamespace(kind='', vocab_size=config.model.vocab_size, mask_id=0)
  return program_lib.build(program_lib.resolve(config, tokenizer, classes, mesh), mesh)


def random_rows(config: config_lib.Config) -> Callable[[np.ndarray], batch_lib.Batch]:
  """Returns a function of the numbers of rows, int64 (R,), to their tokens; one segment in each."""
  L, size = config.row_length, 1 << 20
  rng = np.random.default_rng(config.data.seed)
  tokens = rng.integers(config.model.vocab_size, size=size + L + 1, dtype=np.int32)

  def rows(numbers: np.ndarray) -> batch_lib.Batch:
    whole_RL = tokens[(numbers * L % size)[:, None] + np.arange(L + 1)]
    inputs_RL, targets_RL = whole_RL[:, :-1], whole_RL[:, 1:]
    if config.task == 'classify':
      targets_RL = np.full_like(inputs_RL, batch_lib.IGNORED)
      targets_RL[:, -1] = numbers % len(config.model.class_names)
    segments_RL = np.ones_like(inputs_RL) if config.has_segments else None
    if config.model.kind != 'encoder_decoder':
      return batch_lib.Batch(inputs_RL, targets_RL, segments_RL)
    short = slice(spans.target_length(L) if config.task == 'spans' else L)
    return batch_lib.Batch(inputs_RL[:, short], targets_RL[:, short], segments_RL, inputs_RL)

  return rows


def take_steps(program: program_lib.Program, state: Any, count: int) -> tuple[Any, list[float]]:
  """Takes steps; donates `state`. Returns the new one, and when the host had each one's metrics.

  Those of the last step are missing: nothing is dispatched while it runs, so it takes another time.
  """
  times, pending = [], None
  rows = random_rows(program.config)
  for batch in input_pipeline.batches(rows, program.tokens, range(count)):
    with jax.transfer_guard('disallow'):
      state, metrics = program.train_step(state, batch)
    if mesh_lib.one_step_at_a_time():
      jax.block_until_ready(state)
    if pending is not None:
      jax.device_get(pending)
      times.append(time.perf_counter())
    pending = metrics
  jax.device_get(pending)
  return state, times


def _peak(dtype: str, options: options_lib.Options) -> tuple[float, str]:
  """Returns the peak FLOP/s of all devices together, and where it is from."""
  device = jax.devices()[0]
  devices = 1 if device.platform == 'cpu' else jax.device_count()  # CPUs' share the cores
  if (peak := perf.peak_flops(device.device_kind, dtype)) is not None:
    return peak * devices, f'data sheet of {device.device_kind}'
  large = matmul.largest(dtype, options)
  return large.median * 1e9 * devices, f'measured: {large.note}'
