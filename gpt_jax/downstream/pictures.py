"""Figures of losses, of attention maps and of what attention is, and the page that shows a model.

Shapes in names: N layers, H heads, L positions or queries, M positions attended to or keys.
"""

import base64
import io
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colors, figure

from gpt_jax import progress
from gpt_jax.evaluation import exact_match
from gpt_jax.training import metrics

if TYPE_CHECKING:
  from gpt_jax.training import scaling_law

_BLUE, _ORANGE, _GREY = '#2563b8', '#d9730d', '#8a8f98'
# Small weights are seen too.
_MAP: Any = {'cmap': 'Blues', 'norm': colors.PowerNorm(0.5, 0, 1), 'interpolation': 'nearest'}


def png(fig: figure.Figure) -> bytes:
  """Returns a figure as a PNG file."""
  file = io.BytesIO()
  fig.savefig(file, format='png', dpi=120)
  return file.getvalue()


def loss(lines: list[metrics.Line], levels: Mapping[str, float]) -> figure.Figure:
  """Draws the losses in metrics, if there are any, with a line at each of up to three levels."""
  fig = figure.Figure(figsize=(8, 5), layout='constrained')
  ax = fig.subplots()
  for key, style, alpha in (('train/loss', '-', 0.4), ('val/loss', 'o-', 1)):
    steps, losses = metrics.column(lines, key)
    if steps:
      ax.plot(steps, losses, style, color=_BLUE, alpha=alpha, ms=4, label=key)
  styles = (('-', _GREY), ('--', _ORANGE), ('--', 'green'))  # the first two often coincide
  for (name, value), (style, color) in zip(levels.items(), styles, strict=False):
    ax.axhline(value, ls=style, color=color, label=f'{name}: {value:.2f}')
  ax.set(ylim=(0, None), xlabel='step', ylabel='loss (nats per token)')
  if not lines:
    ax.set(xlabel='', xticks=[])
  ax.grid(alpha=0.3)
  ax.legend(title='the loss, and what to compare it with', alignment='left')
  return fig


def shots(found: exact_match.ExactMatch) -> figure.Figure:
  """Draws the fraction of right responses against the number of shots, for each kind."""
  fig = figure.Figure(figsize=(8, 5), layout='constrained')
  ax = fig.subplots()
  for (kind, values), marker in zip(found.by_kind.items(), itertools.cycle('os^vDPX*<>h')):
    ax.plot(found.shots, values, f'{marker}-', ms=5, label=kind)
  ax.errorbar(found.shots, found.exact, found.exact_stderr, color='black', lw=2, label='all')
  ax.set_xscale('symlog', base=2, linthresh=1)
  ax.set_xticks(found.shots, map(str, found.shots), minor=False)
  ax.set(xlabel='shots: solved examples shown first', ylabel='exactly right', ylim=(-0.02, 1.02))
  ax.grid(alpha=0.3)
  fig.legend(loc='outside right upper')
  return fig


def scaling(
  law: 'scaling_law.Law',
  runs: 'Sequence[scaling_law.Run]',
  others: 'Sequence[scaling_law.Run]',
  sizes: 'Sequence[scaling_law.Size]',
) -> figure.Figure:
  """Draws a law over the runs that it was fitted to and `others`; and losses of sizes for budgets.

  The budgets are those of the runs with the most tokens.
  """
  fig = figure.Figure(figsize=(11, 4.5), layout='constrained')
  left, right = fig.subplots(1, 2, sharey=True)
  most = max(run.tokens for run in runs)
  tokens = np.geomspace(min(run.tokens for run in runs), most)
  for size in dict.fromkeys(run.size for run in (*runs, *others)):
    shown = [run for run in (*runs, *others) if run.size == size]
    style, mark = ('--', '*') if shown[0] in others else ('-', 'o')
    (line,) = left.plot(tokens, law.loss(size.params, tokens), style)
    color, label = line.get_color(), f'{size.width}, {size.params:,}'
    xy = [run.tokens for run in shown], [run.loss for run in shown]
    left.plot(*xy, mark, ms=12 if mark == '*' else 5, color=color, label=label)
    flops = size.flops * most
    losses = [law.loss(each.params, flops / each.flops) for each in sizes]
    right.plot([each.params for each in sizes], losses, style, color=color, label=f'{flops:.1e}')
    best = law.best(sizes, flops)
    right.plot(best.size.params, best.loss, 'v', color=color)
  counts = sorted({run.tokens for run in runs})
  left.set(xscale='log', xlabel='tokens', ylabel='validation loss (nats per token)')
  left.set_xticks(counts, [progress.short(count) for count in counts], minor=False)
  left.minorticks_off()
  losses = [run.loss for run in (*runs, *others)]
  right.set(xscale='log', xlabel='parameters', ylim=(0.8 * min(losses), 1.1 * max(losses)))
  left.legend(title='width, parameters (★ not fitted)')
  right.legend(title='FLOPs (▼ the best size for them)')
  for ax in (left, right):
    ax.grid(alpha=0.3)
  return fig


def attention(weights_NHLM: np.ndarray) -> figure.Figure:
  """Draws the maps of all heads, a row for each layer."""
  N, H, L, _ = weights_NHLM.shape
  size = L + max(1, L // 12)
  canvas = np.full((N, size, H, size), np.nan)
  maps_NHLM = np.where(np.tri(L), weights_NHLM, np.nan)
  canvas[:, :L, :, :L] = maps_NHLM.transpose(0, 2, 1, 3)
  inches = min(1.8, max(0.6, 12 / H))
  fig = figure.Figure(figsize=(inches * H + 1.8, inches * N + 0.8), layout='constrained')
  ax = fig.subplots()
  image = ax.imshow(canvas.reshape(N * size, H * size), **_MAP)
  ax.set_xticks(np.arange(H) * size + L / 2, [f'head {h}' if H < 13 else str(h) for h in range(H)])
  ax.set_yticks(np.arange(N) * size + L / 2, [f'layer {n}' for n in range(N)])
  ax.tick_params(length=0, labeltop=True, labelbottom=False)
  ax.spines[:].set_visible(False)
  ax.set_title(f'{L} tokens: each row is a token, and shows where it looks')
  fig.colorbar(image, shrink=0.4, aspect=25, label='attention weight')
  return fig


def softmax(scores: np.ndarray) -> np.ndarray:
  """Returns the softmax over the last axis, which has a finite score."""
  powers = np.exp(scores - scores.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def kernel_weights(queries_L: np.ndarray, keys_M: np.ndarray, bandwidth: float) -> np.ndarray:
  """Returns softmax(-(query - key)² / 2 bandwidth²) over the keys, (L, M)."""
  return softmax(-((queries_L[:, None] - keys_M) ** 2) / (2 * bandwidth**2))


def kernel() -> figure.Figure:
  """Draws kernel regression (Nadaraya 1964, Watson 1964) as attention, with three bandwidths."""
  draw = np.random.default_rng(0)
  keys_M, queries_L = np.sort(draw.uniform(0, 5, 50)), np.linspace(0, 5, 100)
  curve_M, curve_L = (2 * np.sin(2 * x) + x for x in (keys_M, queries_L))
  values_M = curve_M + draw.normal(0, 0.5, 50)
  fig = figure.Figure(figsize=(12, 7.5), layout='constrained')
  axes = fig.subplots(2, 3, sharey='row')
  for ax, below, h in zip(*axes, (0.05, 0.25, 1.0), strict=True):
    weights_LM = kernel_weights(queries_L, keys_M, h)
    ax.plot(keys_M, values_M, 'o', color=_GREY, ms=4, label='samples: keys $x_i$, values $y_i$')
    ax.plot(queries_L, curve_L, '--', color=_ORANGE, label='the curve without noise')
    ax.plot(queries_L, weights_LM @ values_M, color=_BLUE, lw=2, label='attention $f(x)$')
    ax.set(title=f'bandwidth h = {h}', xlabel='query x', ylim=(-2, 9))
    image = below.imshow(weights_LM, aspect='auto', extent=(0, 50, 5, 0), **_MAP)
    below.set(xlabel='key i')
  axes[0, 0].legend(loc='upper left')
  axes[1, 0].set(ylabel='query x')
  fig.colorbar(image, ax=axes, shrink=0.5, pad=0.01, label='attention weight')
  formula = r'$f(x) = \sum_i\, \mathrm{softmax}_i\left(-(x - x_i)^2 / 2h^2\right)\, y_i$'
  fig.suptitle(f'Attention is a weighted mean of values:  {formula}', fontsize=15)
  return fig


def mask() -> figure.Figure:
  """Draws three means of what came before, from a triangle of ones to masked attention."""
  seen_LM, values_M = np.tri(8), np.array([1, 3, 2, 6, 5, 4, 7, 5])
  scores_LM = np.random.default_rng(3).normal(0, 2, (8, 8)).round(1)
  fig = figure.Figure(figsize=(10.5, 10), layout='constrained')
  for axes, title, start_LM, mean in zip(
    fig.subplots(3, 3),
    ('ones up to the diagonal', 'zeros, −∞ above the diagonal', 'scores q·k, −∞ above it'),
    (seen_LM, *(np.where(seen_LM, scores, -np.inf) for scores in (0, scores_LM))),
    ('the mean of all values so far', 'the same mean', 'the mean that the scores ask for'),
    strict=True,
  ):
    masked = np.isinf(start_LM).any()
    weights_LM = softmax(start_LM) if masked else start_LM / start_LM.sum(-1, keepdims=True)
    _cells(axes[0], start_LM, title)
    _cells(axes[1], weights_LM, 'softmax of each row' if masked else 'each row divided by its sum')
    axes[2].plot(values_M, 'o', color=_GREY, label='values')
    axes[2].plot(weights_LM @ values_M, 'o-', color=_BLUE, ms=4, label='weights × values')
    axes[2].set(title=mean, xlabel='position', ylim=(0, 10))
    axes[2].legend(loc='upper left', ncols=2)
  fig.suptitle('From averages to masked attention', fontsize=15)
  return fig


def _cells(ax: Any, values_LM: np.ndarray, title: str) -> None:
  """Draws a matrix with its numbers: blue above 0, red below, grey at −∞."""
  most = np.abs(values_LM[np.isfinite(values_LM)]).max(initial=1) * 1.7  # pale behind the numbers
  ax.imshow(np.where(np.isinf(values_LM), np.nan, values_LM), cmap='RdBu', vmin=-most, vmax=most)
  ax.set(title=title, xticks=[], yticks=[], facecolor='#e6e6e6')
  for (i, j), value in np.ndenumerate(values_LM):
    text = f'{round(value, 2):g}' if math.isfinite(value) else '−∞'
    ax.text(j, i, text, ha='center', va='center', fontsize=8)


def packed(weights_NHLM: np.ndarray) -> str:
  """Returns weights up to the diagonal, row after row, in 16 bits and base64, for the page."""
  lower = weights_NHLM[..., *np.tril_indices(weights_NHLM.shape[-1])]
  return base64.b64encode(np.round(lower * 65535).astype('<u2').tobytes()).decode()


def page(data: Mapping[str, Any]) -> bytes:
  """Returns the HTML page that shows `data`, whatever its texts hold, and needs no network."""
  values = json.dumps(data, separators=(',', ':')).replace('<', r'\u003c')
  template = pathlib.Path(__file__).with_name('page.html').read_text(encoding='utf-8')
  return template.replace('"DATA"', values).encode()
