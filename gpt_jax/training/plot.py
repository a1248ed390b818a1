"""loss.png: training and validation loss over steps."""

import os
import pathlib

from gpt_jax.training import metrics


def draw(lines: list[metrics.Line], path: str | os.PathLike[str], *, title: str) -> None:
  """Draws the losses in `lines` to the PNG file `path`, replacing it atomically."""
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  path = pathlib.Path(path)
  fig = figure.Figure(
    figsize=(8, 5), layout='constrained'
  )  # no pyplot: no global state, no display
  backend_agg.FigureCanvasAgg(fig)
  ax = fig.subplots()
  ax.plot(*metrics.column(lines, 'train/loss'), color='tab:blue', alpha=0.6, lw=1, label='train')
  steps, losses = metrics.column(lines, 'val/loss')
  ax.plot(steps, losses, color='tab:orange', marker='o', markersize=4, label='validation')
  if losses:
    best = min(range(len(losses)), key=losses.__getitem__)
    ax.annotate(
      f'{losses[best]:.3f}',
      (steps[best], losses[best]),
      xytext=(0, 8),
      textcoords='offset points',
      ha='right',
    )
  ax.set(title=title, xlabel='step', ylabel='loss (nats a token)')
  ax.grid(alpha=0.3)
  ax.legend()
  part = path.with_name(path.name + '.part')
  fig.savefig(part, format='png', dpi=120)
  part.replace(path)
