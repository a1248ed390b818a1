"""Pictures show what was measured: the curves of a run, or of several beside each other."""

from typing import Any
from unittest import mock

import pytest
from matplotlib import axes, image

from gpt_jax.training import plot


def _lines(losses: dict[int, float], *, minutes: float = 1, **others: float) -> list[Any]:
  """The evaluations of a run, and a training line before each."""
  lines = []
  for step, loss in losses.items():
    lines.append({'step': step, 'train/loss': loss, 'time': step * minutes * 60})
    lines.append({'step': step, 'val/loss': loss, 'time': step * minutes * 60, **others})
  return lines


@pytest.fixture
def drawn(monkeypatch):
  """The arguments of each curve: of its axes, x and y."""
  curves = mock.Mock(wraps=axes.Axes.plot)
  monkeypatch.setattr(axes.Axes, 'plot', lambda *args, **options: curves(*args, **options))
  return curves


def test_runs_are_compared_over_steps_and_minutes(drawn, tmp_path):
  runs = {'a': _lines({0: 9.0, 2: 3.0, 4: 2.0, 6: 2.5}), 'b': _lines({2: 4.0, 4: 3.5}, minutes=2)}
  runs['none'] = [{'step': 1, 'train/loss': 3.0, 'time': 9.0}]
  plot.compare(runs, tmp_path / 'compare.png', key='val/loss')
  found = [(*call.args[1:3], call.kwargs) for call in drawn.call_args_list]
  curves = [(xs, ys, options['label']) for xs, ys, options in found]
  assert curves == [
    ([2, 4, 6], [3.0, 2.0, 2.5], 'a'),
    ([2, 4, 6], [3.0, 2.0, 2.5], 'a'),
    ([2, 4], [4.0, 3.5], 'b'),
    ([4, 8], [4.0, 3.5], 'b'),
    ([], [], 'none'),
    ([], [], 'none'),
  ]
  assert [options['markevery'] for _, _, options in found[::2]] == [[1], [1], []]
  assert image.imread(tmp_path / 'compare.png').shape[:2] == (540, 1320)


def test_more_runs_than_colors_can_be_told_apart(drawn, tmp_path):
  runs = {str(i): _lines({2: float(i)}) for i in range(25)}
  plot.compare(runs, tmp_path / 'compare.png', key='val/loss')
  styles = [call.args[3] for call in drawn.call_args_list[::2]]
  assert len({(i % 10, style) for i, style in enumerate(styles)}) == 25


@pytest.mark.parametrize(
  ('others', 'text'), [({}, '2.000'), ({'val/error': 0.25, 'val/accuracy': 0.75}, '75.0% right')]
)
def test_the_best_model_is_marked_where_its_loss_is(tmp_path, monkeypatch, others, text):
  annotate = mock.Mock()
  monkeypatch.setattr(axes.Axes, 'annotate', annotate)
  losses = {0: 9.0, 2: 2.0, 4: 2.0}
  plot.draw(_lines(losses, **others), tmp_path / 'loss.png', title='a run')
  assert annotate.call_args.args[:2] == (text, (2, 2.0))
