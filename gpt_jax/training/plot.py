"""Pictures of losses: loss.png of a run, and several runs beside each other."""

import math
import pathlib
from collections.abc import Mapping, Sequence

from gpt_jax import atomic
from gpt_jax.training import metrics


def draw(lines: Sequence[metrics.Line], path: pathlib.Path, *, title: str) -> None:
  """Draws the losses in `lines` to the PNG file `path`."""
  from matplotlib import figure

  fig = figure.Figure(figsize=(8, 5), layout='constrained')  # no pyplot: no global state
  ax = fig.subplots()
  ax.plot(*metrics.column(lines, 'train/loss'), color='tab:blue', alpha=0.6, lw=1, label='train')
  steps, losses = metrics.column(lines, 'val/loss')
  ax.plot(steps, losses, color='tab:orange', marker='o', markersize=4, label='validation')
  unit = 'document' if any('val/error' in line for line in lines) else 'token'
  if best := metrics.best(lines):
    step, score = best
    text = f'{score:.3f}' if unit == 'token' else f'{1 - score:.1%} right'
    place = (step, losses[steps.index(step)])
    ax.annotate(text, place, (0, 8), textcoords='offset points', ha='right')
  ax.set(title=title, xlabel='step', ylabel=f'loss (nats per {unit})')
  ax.grid(alpha=0.3)
  ax.legend()
  with atomic.open_file(path) as file:
    fig.savefig(file, format='png', dpi=120)


def compare(runs: Mapping[str, Sequence[metrics.Line]], path: pathlib.Path, *, key: str) -> None:
  """Draws `key` of trained models over steps and over time, a curve for each run; marks the best.

  `runs` are the lines of each by its name, for the legend. The picture is a PNG file at `path`.
  """
  from matplotlib import figure

  fig = figure.Figure(figsize=(11, 4.5), layout='constrained')
  axes = fig.subplots(1, 2, sharey=True)
  for i, (name, lines) in enumerate(runs.items()):
    measured = [line for line in lines if key in line and line['step']]
    best_step, _ = metrics.best(lines) or (0, 0.0)
    style = ('-', '--', ':')[i // 10 % 3]  # there are ten colors
    marks = [k for k, line in enumerate(measured) if line['step'] == best_step]
    for ax, x, per in zip(axes, ('step', 'time'), (1, 60), strict=True):
      xs, values = (
        [line.get(x, math.nan) / per for line in measured],
        [line[key] for line in measured],
      )
      ax.plot(xs, values, style, marker='o', markersize=7, markevery=marks, label=name)
      ax.grid(alpha=0.3)
  unit = 'loss (nats per token)' if key == 'val/loss' else key.removeprefix('val/')
  axes[0].set(xlabel='step', ylabel=f'validation {unit}')
  axes[1].set(xlabel='minutes')
  axes[1].legend(title='● best')
  with atomic.open_file(path) as file:
    fig.savefig(file, format='png', dpi=120)
