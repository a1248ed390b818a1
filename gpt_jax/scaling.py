"""Predict what a config will reach: python -m gpt_jax.scaling --config=configs/quickstart.py

Trains narrower models for fewer tokens, fits how the loss falls with both, and finds the best width
for a budget of FLOPs. Then it trains the config itself, unless --nocheck, and compares. Leaves
scaling.png and scaling.json in the workdir. The same command again resumes, and what is trained is
kept, so that widths and tokens can be added. Exit codes are those of train.
"""

import contextlib
import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import atomic, cli, errors, knobs, train, validation
from gpt_jax import config as config_lib

if TYPE_CHECKING:
  from gpt_jax.training import scaling_law

# What is trained by default, as shares of the config's own.
_WIDTHS, _TOKENS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2), (1 / 4, 1 / 2, 1, 2)
_FEWEST = 6  # runs, for a law of five numbers


def define_flags() -> flags.FlagValues:
  """Returns the command's flags."""
  values = flags.FlagValues()
  doc = 'Folder of the runs; runs/CONFIG_scaling by default.'
  flags.DEFINE_string('workdir', None, doc, flag_values=values)
  for name, doc in (
    ('widths', "Widths to train; from an eighth to half of the config's by default."),
    (
      'tokens',
      "Tokens to train for, such as 1e6; from a quarter of the config's to twice as many.",
    ),
    ('flops', "Budgets to find the best width for, such as 1e15; the config's by default."),
  ):
    flags.DEFINE_list(name, [], doc, flag_values=values)
  flags.DEFINE_boolean('check', True, 'Train the config itself too.', flag_values=values)
  return values


def main(values: flags.FlagValues, config: config_lib.Config) -> None:
  """Trains, fits, compares and draws."""
  grid, budgets = _check(values, config)
  folder = pathlib.Path(values.workdir or f'runs/{pathlib.Path(values.config).stem}_scaling')
  folder.mkdir(parents=True, exist_ok=True)
  print(f'{"width":>8}{"parameters":>14}{"tokens":>14}{"loss":>9}')
  runs = [_train(each, folder) for each in grid]
  from gpt_jax.downstream import pictures
  from gpt_jax.training import overview, scaling_law

  narrowest = overview.read(folder / _name(grid[0])).config.model
  fit, sizes = scaling_law.fit(runs), _sizes(narrowest, config.model.n_embd)
  print(f'\n{fit}')
  size, tokens = sizes[config.model.n_embd], _tokens(config)
  budgets = budgets or [size.flops * tokens]
  for flops in budgets:
    best = fit.law.best(sizes.values(), flops)
    low, high = fit.spread(lambda law: law.best(sizes.values(), flops).size.width)  # noqa: B023
    print(f'for {flops:.3g} FLOPs: width {best.size.width} ({low:.0f} to {high:.0f}), ', end='')
    print(f'{best.size.params:,} parameters, {best.tokens:,} tokens, loss {best.loss:.3f}')
  loss = fit.law.loss(size.params, tokens)
  low, high = fit.spread(lambda law: law.loss(size.params, tokens))
  print(f'for the config: loss {loss:.3f} ({low:.3f} to {high:.3f}) predicted', flush=True)
  trained = [_train(config, folder)] if values.check else []
  for run in trained:
    print(f'{run.loss:.3f} trained, {run.loss / loss - 1:+.1%}')
  picture = pictures.scaling(fit.law, runs, trained, list(sizes.values()))
  atomic.write_bytes(folder / 'scaling.png', pictures.png(picture))
  found = {'law': dataclasses.asdict(fit.law), 'loss': loss, 'between': [low, high]}
  found['runs'] = [run.size._asdict() | run._asdict() for run in runs + trained]
  atomic.write_json(folder / 'scaling.json', found)
  print(f'wrote {folder / "scaling.png"}')


def _check(
  values: flags.FlagValues, config: config_lib.Config
) -> tuple[list[config_lib.Config], list[float]]:
  """Returns what to train, and the budgets; raises `UserError` for what is invalid."""
  if config.task != 'next_token' or config.model.kind != 'gpt':
    problem = 'must be next_token, of a Transformer (`model.kind=gpt`), for a law of its loss'
    raise errors.UserError('task', problem)
  numbers = {}
  for name in ('widths', 'tokens', 'flops'):
    try:
      texts: Any = values[name].value
      numbers[name] = sorted(set(map(float, texts)))
      if not all(0 < number < math.inf for number in numbers[name]):
        raise ValueError
    except ValueError:
      problem = f'{values[name].value} must be numbers above 0, such as 64,1e6'
      raise errors.UserError(name, problem) from None
  widths = numbers['widths'] or [share * config.model.n_embd for share in _WIDTHS]
  tokens = numbers['tokens'] or [share * _tokens(config) for share in _TOKENS]
  if len(widths) < 2 or len(tokens) < 2 or len(widths) * len(tokens) < _FEWEST:
    problem = f'{len(widths)} widths and {len(tokens)} tokens are too few to fit a law of both'
    raise errors.UserError('widths', problem, 'give at least 2 and 3 of them')
  grid = [resized(config, width, count) for width in widths for count in tokens]
  for each in grid:
    validation.validate(each)
  return grid, numbers['flops']


def resized(config: config_lib.Config, width: float, tokens: float) -> config_lib.Config:
  """Returns `config` with another width, trained for another number of tokens.

  Heads keep their width as far as it divides that of the model; the warm-up and a last decay keep
  their share of the steps. The learning rate grows as the square root of the width falls.
  """
  width, model, optimizer = round(width), config.model, config.optimizer
  steps = max(1, round(tokens / (config.train.batch_size * config.row_length)))
  heads = [n for n in range(1, width + 1) if width % n == 0 and width // n >= model.head_width]
  faster, shorter = (model.n_embd / width) ** 0.5, steps / config.train.steps
  changes = {
    'model.n_embd': width,
    'model.n_head': max(heads, default=1),
    'train.steps': steps,
    'train.eval_every': steps,
    'train.checkpoint_every': steps,
    'optimizer.learning_rate': optimizer.learning_rate * faster,
    'optimizer.min_learning_rate': optimizer.min_learning_rate * faster,
    'optimizer.warmup_steps': round(optimizer.warmup_steps * shorter),
    'optimizer.decay_steps': round(optimizer.decay_steps * shorter),
  }
  resized: config_lib.Config = knobs.replace(config, changes)
  return resized


def _train(config: config_lib.Config, folder: pathlib.Path) -> 'scaling_law.Run':
  """Trains, or goes on, or finds it done; what training prints goes to a file."""
  from gpt_jax.training import overview, scaling_law

  path = folder / _name(config)
  with (folder / 'log.txt').open('a') as log, contextlib.redirect_stdout(log):
    train.train(config, path)
  run = overview.read(path)
  size = _size(run.config.model)
  losses = [line['val/loss'] for line in run.lines if 'val/loss' in line]
  found = scaling_law.Run(size, _tokens(config), losses[-1])
  print(f'{size.width:>8}{size.params:>14,}{found.tokens:>14,}{found.loss:>9.4f}', flush=True)
  return found


def _name(config: config_lib.Config) -> str:
  return f'width{config.model.n_embd}_steps{config.train.steps}'


def _tokens(config: config_lib.Config) -> int:
  return config.train.steps * config.train.batch_size * config.row_length


def _sizes(narrowest: config_lib.ModelConfig, width: int) -> 'dict[int, scaling_law.Size]':
  """Sizes of many widths from that of a model to eight times `width`."""
  import numpy as np

  from gpt_jax.training import scaling_law

  first, three = narrowest.n_embd, (1, 2, 3)
  models = (dataclasses.replace(narrowest, n_embd=n, n_head=1) for n in three)
  _, params, flops = zip(*map(_size, models), strict=True)
  widths = sorted({*range(first, 8 * width + 1, max(1, first // 4)), width})
  # Both are polynomials of degree 2, and shapes are slow to find.
  of_all = [np.polyval(np.polyfit(three, values, 2), widths) for values in (params, flops)]
  return {
    w: scaling_law.Size(w, round(n), float(f)) for w, n, f in zip(widths, *of_all, strict=True)
  }


def _size(model: config_lib.ModelConfig) -> 'scaling_law.Size':
  from gpt_jax import models
  from gpt_jax.training import perf, scaling_law

  params = models.parameter_count(model) - model.block_size * model.n_embd
  return scaling_law.Size(model.n_embd, params, perf.flops_per_token(model))


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True, sections=(), reports=True)
