"""The command compares runs in a table and a picture, or names what is no run."""

from typing import Any

import pytest
from matplotlib import image

from gpt_jax import cli, plot
from gpt_jax.training import plot as plot_lib
from tests import raised, run_folders


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """A function that runs the command beside some runs, and returns what it prints."""
  monkeypatch.chdir(tmp_path)
  rates = [(1, 5.0), (2, 80.0), (3, 90.0), (4, 1e4)]
  lines = [{'step': s, 'perf/tokens_per_second': rate, 'time': 6.0 * s} for s, rate in rates]
  lines += run_folders.evaluated({10: 1.5, 20: 1.75})
  sizes: dict[str, Any] = {'model__n_layer': 1, 'model__n_head': 1}
  sizes |= {'model__n_embd': 8, 'model__block_size': 8}
  run_folders.write(tmp_path / 'a', lines=lines, **sizes)
  run_folders.write(tmp_path / 'b', lines=run_folders.evaluated({10: 2.5}), **sizes)
  run_folders.write(tmp_path / 'new' / 'a', **sizes)
  run_folders.write(tmp_path / 'words', data__tokenizer='word', **sizes)
  run_folders.write(tmp_path / 'damaged')
  (tmp_path / 'damaged' / 'metrics.jsonl').write_text('[]\n')
  classify: dict[str, Any] = {'model__classes': 'no,yes', 'task': 'classify'}
  classify |= {'data__label_field': 'x'}
  for name, right in (('sorts', 0.75), ('guesses', 0.5)):
    measured = {'val/error': 1 - right, 'val/accuracy': right}
    lines = run_folders.evaluated({20: 0.3}, **measured)
    run_folders.write(tmp_path / name, lines=lines, **classify, **sizes)

  def run(*args):
    values = plot.define_flags()
    plot.main(*cli.parse(values, ['plot', *args], takes_config=False, takes_words=True))
    out, messages = capsys.readouterr()
    return [line.split() for line in out.splitlines()], messages

  return run


def test_runs_are_compared_in_a_table_and_a_picture(command):
  rows, messages = command('a', '--output=both.png', 'b', 'b')
  # 80 and 90 are ordinary; the first step compiles. 9 · 8 and 8 · 8 of embeddings, 872 of a block.
  assert rows[1] == ['a', '20', '1.5000', '10', '90', '0:02:00', '1,024']
  assert rows[2][:4] == ['b', '10', '2.5000', '10'] and rows[2][-2:] == ['0:01:00', '1,024']
  assert rows[3] == ['wrote', 'both.png'] and len(rows) == 4 and messages == ''
  assert image.imread('both.png').ndim == 3


def test_runs_of_one_name_are_told_apart_by_their_paths(command):
  rows, _ = command('a', 'new/a', 'b/')
  assert [row[0] for row in rows[1:4]] == ['a', 'new/a', 'b']
  assert rows[2] == ['new/a', '0', '0:00:00', '1,024']  # nothing was measured


def test_classifiers_are_compared_by_their_accuracy(command, monkeypatch):
  keys = []
  monkeypatch.setattr(plot_lib, 'compare', lambda *_, key: keys.append(key))
  rows, _ = command('sorts', 'guesses')
  assert [row[2] for row in rows[1:3]] == ['75.0%', '50.0%'] and keys == ['val/accuracy']
  command('a', 'b')
  assert keys[1:] == ['val/loss']


def test_losses_of_different_tokens_come_with_a_warning(command):
  assert 'tokenizers' in command('a', 'words')[1]


@pytest.mark.parametrize(
  ('args', 'keys'),
  [
    ([], ['command line']),
    (['a', 'none', 'damaged'], ['none', 'damaged/metrics.jsonl']),
    (['.'], ['.']),
    (['a', 'sorts'], ['command line']),
    (['a', '--output=b'], ['output']),
    (['a', '--output=none/x.png'], ['output']),
    (['a', '--outptu=x.png'], ['--outptu=x.png']),
  ],
)
def test_what_is_invalid_is_named(command, args, keys):
  assert [error.key for error in raised.user_error(command, *args).all] == keys
