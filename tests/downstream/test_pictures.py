"""Pictures show the numbers they are given, and the page shows texts as texts."""

import base64
import html
import json
import math
import re
import shutil
import struct
import subprocess
from typing import Any

import numpy as np
import pytest

from gpt_jax.downstream import pictures

_LINES = [
  {'step': 0, 'val/loss': 4.0},
  {'step': 5, 'train/loss': 3.0},
  {'step': 9, 'val/loss': 2.5},
]
_EVIL = '</script><script>document.title = "run"</script><b>&amp;"'


def _weights(*shape):
  """Random weights of a causal model, (N, H, L, L)."""
  scores = np.random.default_rng(1).normal(0, 2, (*shape, shape[-1]))
  return pictures.softmax(np.where(np.tri(shape[-1]), scores, -np.inf)).astype(np.float32)


def _shown(ax):
  """The numbers in the first image of axes."""
  return np.ma.filled(ax.images[0].get_array().astype(float), np.nan)


def test_a_softmax_is_shares_and_leaves_out_what_is_minus_infinity():
  shares = pictures.softmax(np.array([[0, 0, -np.inf], [1e4, 0, -1e4]]))
  np.testing.assert_allclose(shares, np.array([[0.5, 0.5, 0], [1, 0, 0]]))


@pytest.mark.parametrize('h', [0.05, 0.5, 3.0])
def test_attention_with_distances_is_kernel_regression(h):
  draw = np.random.default_rng(0)
  x_L, x_M, y_M = draw.uniform(0, 5, 7), draw.uniform(0, 5, 30), draw.normal(size=30)
  kernel_LM = np.exp(-((x_L[:, None] - x_M) ** 2) / (2 * h**2))
  wanted_L = kernel_LM @ y_M / kernel_LM.sum(-1)
  np.testing.assert_allclose(pictures.kernel_weights(x_L, x_M, h) @ y_M, wanted_L, atol=1e-9)


def test_a_bandwidth_goes_from_the_nearest_value_to_the_mean_of_all():
  x_M = np.arange(4.0)
  np.testing.assert_allclose(pictures.kernel_weights(np.array([1.2]), x_M, 0.01), [[0, 1, 0, 0]])
  np.testing.assert_allclose(pictures.kernel_weights(np.array([1.2]), x_M, 1e4), [[0.25] * 4])


def test_the_kernel_picture_has_weights_below_the_curve_they_make():
  axes: Any = pictures.kernel().axes
  for above, below in zip(axes[:3], axes[3:6], strict=True):
    samples, truth, found = above.lines
    np.testing.assert_allclose(_shown(below) @ samples.get_ydata(), found.get_ydata())
    assert np.abs(samples.get_ydata() - truth.get_ydata().mean()).max() < 8
  errors = [np.std(ax.lines[2].get_ydata() - ax.lines[1].get_ydata()) for ax in axes[:3]]
  assert errors[1] < min(errors[0], errors[2]), 'the middle bandwidth fits best'


def test_the_mask_picture_goes_from_a_mean_to_attention():
  axes: Any = np.array(pictures.mask().axes, object).reshape(3, 3)
  starts, weights = ([_shown(ax) for ax in column] for column in axes.T[:2])
  triangle = np.tri(8) / np.arange(1, 9)[:, None]
  np.testing.assert_allclose(weights[0], triangle)
  np.testing.assert_allclose(weights[1], triangle)
  assert np.abs(weights[2] - triangle).max() > 0.3
  for start, found, ax in zip(starts, weights, axes[:, 2], strict=True):
    np.testing.assert_allclose(found.sum(-1), 1)
    assert not np.triu(found, 1).any()
    values, means = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(found @ values, means)
    assert start is starts[0] or np.isnan(start[np.triu_indices(8, 1)]).all()
  cells = [text.get_text() for text in axes[1, 0].texts]
  assert (cells.count('−∞'), cells.count('0')) == (28, 36)


@pytest.mark.parametrize('shape', [(2, 3, 5), (1, 1, 1), (3, 14, 30)])
def test_each_map_stands_at_its_layer_and_head(shape):
  weights_NHLM = _weights(*shape)
  N, H, L = shape
  ax = pictures.attention(weights_NHLM).axes[0]
  shown, size = _shown(ax), _shown(ax).shape[0] // N
  assert shown.shape == (N * size, H * size) and size > L
  for n, h in np.ndindex(N, H):
    found_LM = shown[n * size :, h * size :][:L, :L]
    wanted_LM = np.where(np.tri(L), weights_NHLM[n, h], np.nan)
    np.testing.assert_allclose(found_LM, wanted_LM)
    assert n * size <= ax.get_yticks()[n] <= n * size + L
    assert h * size <= ax.get_xticks()[h] <= h * size + L


def test_losses_are_drawn_with_what_to_compare_them_with():
  levels = {'ln V': math.log(50), 'untrained': 4.1, 'trained': 2.4}
  ax: Any = pictures.loss(_LINES, levels).axes[0]
  curves, lines = ax.lines[:2], ax.lines[2:]
  assert [list(zip(*line.get_data(), strict=True)) for line in curves] == [
    [(5, 3.0)],
    [(0, 4.0), (9, 2.5)],
  ]
  assert [line.get_ydata()[0] for line in lines] == list(levels.values())
  texts = ' '.join(text.get_text() for text in ax.get_legend().get_texts())
  assert all(f'{name}: {value:.2f}' in texts for name, value in levels.items())
  ax = pictures.loss([], levels).axes[0]
  assert len(ax.lines) == 3 and not ax.get_xlabel()


def test_figures_become_png_files():
  data = pictures.png(pictures.attention(_weights(1, 2, 4)))
  assert data.startswith(b'\x89PNG') and min(struct.unpack('>II', data[16:24])) > 100


def test_packed_weights_are_those_up_to_the_diagonal():
  weights_NHLM = _weights(2, 2, 5)
  values = np.frombuffer(base64.b64decode(pictures.packed(weights_NHLM)), '<u2') / 65535
  wanted = [weights_NHLM[n, h, i, j] for n, h, i, j in np.ndindex(2, 2, 5, 5) if j <= i]
  np.testing.assert_allclose(values, wanted, atol=1e-5)


def _data(token=_EVIL):
  guess = [[[token, 0.75], ['b', 0.25]], token, 0.75, 1]
  return {
    'title': token,
    'summary': 'small',
    'prompt': [token, 'a', 'b'],
    'next': [guess, guess, [guess[0], None, 0.0, 0]],
    'lens': [[guess] * 3] * 2,
    'generation': [guess],
    'parameters': [['wte', '3 × 4']],
    'loss': base64.b64encode(b'png').decode(),
    'heads': [1, 2],
    'attention': pictures.packed(_weights(1, 2, 3)),
  }


def test_the_page_holds_its_data_whatever_the_texts_are():
  text = pictures.page(_data()).decode()
  (held,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
  assert json.loads(held) == _data()
  assert '<' not in held and text.count('<script') == 2


def test_the_page_needs_no_network():
  text = pictures.page(_data('a')).decode()
  assert "default-src 'none'" in text
  assert not re.findall(r'https?:|//[a-z]|<link|@import|\bsrc=|\bhref=|fetch\(|url\(', text)


@pytest.fixture(scope='module')
def browse(tmp_path_factory):
  """A function that opens a page in a browser, runs a script in it, and returns what it is then."""
  browser = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
  )
  if browser is None:
    pytest.skip('no Chromium to open the page in')

  def run(data, script):
    path = tmp_path_factory.mktemp('page') / 'index.html'
    path.write_bytes(pictures.page(data) + f'<script>{script}</script>'.encode())
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom', path.as_uri()]
    command.append(f'--user-data-dir={path.parent}/profile')
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    return done.stdout.decode()

  return run


_POINT = """
const node = {node}, box = node.getBoundingClientRect()
const at = {{ clientX: box.left + {x}, clientY: box.top + {y}, bubbles: true }}
node.dispatchEvent(new MouseEvent('mousemove', at))
"""


def _tip(page):
  (tip,) = re.findall(r'<div id="tip"[^>]*block[^>]*>(.*?)</div>', page, re.DOTALL)
  return html.unescape(tip)


def test_a_browser_shows_tokens_as_text_and_runs_nothing_of_them(browse):
  page = browse(_data(), '')
  body = page[page.index('<h1>') :]
  assert (
    '<title>Inside the model</title>' in page and body.count(html.escape(_EVIL, quote=False)) > 5
  )
  for name in ('next', 'attention', 'lens', 'generation', 'parameters', 'loss'):
    assert f'<div id="{name}"' in body


@pytest.mark.parametrize('head', [0, 1])
def test_pointing_at_a_cell_of_the_chosen_head_shows_its_weight(browse, head):
  weights_NHLM, data = _weights(1, 2, 3), _data('x')
  # Cells are 26 pixels wide, behind labels of one character.
  point = _POINT.format(node="document.getElementById('map')", x=20 + 26 + 5, y=20 + 2 * 26 + 5)
  page = browse(data, f"document.querySelectorAll('#heads canvas')[{head}].click();{point}")
  assert _tip(page) == f'from b (2) to a (1): {weights_NHLM[0, head, 2, 1]:.4f}'
  assert f'layer 0, head {head}' in page


def test_pointing_at_a_token_shows_what_it_looks_at_or_what_was_expected(browse):
  data = _data('x')
  node = "document.getElementById('strip').children[1]"
  tip = _tip(browse(data, _POINT.format(node=node, x=1, y=1)))
  found = dict(line.split('%  ')[::-1] for line in tip.splitlines()[1:])
  weights_M = _weights(1, 2, 3)[0, 0, 1]
  assert found.keys() == {'x', 'a'} and float(found['a']) == pytest.approx(
    100 * weights_M[1], abs=0.1
  )
  node = "document.getElementById('next').children[1]"
  assert '75.0 %, rank 1' in _tip(browse(data, _POINT.format(node=node, x=1, y=1)))


def test_a_page_of_one_section_has_no_others(browse):
  page = browse({name: _data('x')[name] for name in ('title', 'summary', 'prompt', 'next')}, '')
  assert page.count('<h2>') == 1 and '<div id="next"' in page
