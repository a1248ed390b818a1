"""loss.png: training and validation loss over steps."""

import pathlib

from gpt_jax import atomic
from gpt_jax.training import metrics


def draw(lines: list[metrics.Line], path: pathlib.Path, *, title: str) -> None:
  """Draws the losses in `lines` to the PNG file `path`."""
  from matplotlib import figure

  fig = figure.Figure(figsize=(8, 5), layout='constrained')  # no pyplot: no global state
  ax = fig.subplots()
  ax.plot(*metrics.column(lines, 'train/loss'), color='tab:blue', alpha=0.6, lw=1, label='train')
  ax.plot(
    *metrics.column(lines, 'val/loss'),
    color='tab:orange',
    marker='o',
    markersize=4,
    label='validation',
  )
  if best := metrics.best(lines):
    step, loss = best
    ax.annotate(f'{loss:.3f}', (step, loss), (0, 8), textcoords='offset points', ha='right')
  ax.set(title=title, xlabel='step', ylabel='loss (nats per token)')
  ax.grid(alpha=0.3)
  ax.legend()
  with atomic.open_file(path) as file:
    fig.savefig(file, format='png', dpi=120)
