"""Measures `LanguageModel.generate`, greedy, on random prompts."""

import dataclasses
import functools
import time

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, models
from gpt_jax.benchmarks import figures
from gpt_jax.benchmarks import options as options_lib
from gpt_jax.generation import language_model


def measure(config: config_lib.Config, options: options_lib.Options) -> list[figures.Figure]:
  """Measures the time to the first token and the rate after it, for each number of rows.

  Raises `UserError` if prompt and new tokens are more than the context.
  """
  model = (
    language_model.load(options.model, dtype=options.dtype)
    if options.model
    else _random_model(config.model, options.dtype)
  )
  model = dataclasses.replace(model, tokenizer=None)  # no token ends a text
  L, new, most = options.prompt_tokens, options.new_tokens, model.config.block_size
  if L + new > most:
    problem = f'{L} + {new} (`prompt_tokens` + `new_tokens`) must be at most the context, {most}'
    raise errors.UserError('new_tokens', problem)
  dtype = model.config.dtype if options.dtype == 'auto' else options.dtype
  found = []
  for B in options.row_counts:
    prompts_BL = np.random.default_rng(0).integers(model.config.vocab_size, size=(B, L))
    both = [_generate(model, list(prompts_BL), new) for _ in range(1 + options.repeats)]
    first, rate = map(list, zip(*both[1:], strict=True))  # without the warm-up
    note = f'{B} × {new - 1} tokens after the first'
    found += [
      figures.Figure(f'first token × {B}', 'ms', first, f'{dtype}, {B} × {L} tokens'),
      figures.Figure(f'rate × {B}', 'tokens/s', rate, note),
    ]
  return found


def _random_model(model: config_lib.ModelConfig, dtype: str) -> language_model.LanguageModel:
  """Returns a model like those of `language_model.load`, with random parameters."""
  if dtype == 'auto':
    dtype = 'float32' if jax.default_backend() == 'cpu' else model.dtype
  model = dataclasses.replace(model, attention='xla')
  params = jax.jit(functools.partial(models.init, model))(jax.random.key(0))
  return language_model.LanguageModel(*models.for_inference(model, params, dtype), None)


def _generate(
  model: language_model.LanguageModel, prompts: list[np.ndarray], count: int
) -> tuple[float, float]:
  """Returns milliseconds to the first token, and the rate of those after it."""
  times = [(0, time.perf_counter())]  # tokens of a text, and when they were there

  def note(phase: str, done: int, total: int) -> None:
    times.append((done, time.perf_counter()))

  model.generate(prompts, max_new_tokens=count, temperature=0.0, progress=note)
  (_, began), (few, first), *_, (all_, end) = times
  return 1e3 * (first - began), (all_ - few) * len(prompts) / (end - first)
