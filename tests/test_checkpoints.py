"""The command that looks after checkpoints says which are intact, and leaves one of them."""

import json
import shutil
import sys

import jax.numpy as jnp
import pytest

from gpt_jax import checkpoints as command
from gpt_jax import cli
from gpt_jax.training import lock
from gpt_jax.weights import checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'run'
  with checkpoints.Checkpoints(folder / 'checkpoints', keep=9) as opened:
    for step, score in ((2, 0.5), (4, 0.25), (6, None)):
      opened.save(step, {'params': {'w': jnp.ones(step)}}, score=score, identity={})
  return folder


@pytest.fixture
def run(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def _call(capsys, monkeypatch, *words):
  """Returns exit code, output and messages."""
  monkeypatch.setattr(sys, 'argv', ['checkpoints', *map(str, words)])
  try:
    cli.run(command.main, command.define_flags(), doc='', words=())
  except SystemExit as e:
    return e.code, *capsys.readouterr()
  return 0, *capsys.readouterr()


def _damage(run, step):
  next((run / 'checkpoints' / str(step)).rglob('d/*')).write_bytes(b'')


def test_list_shows_them_all(run, capsys, monkeypatch):
  code, output, _ = _call(capsys, monkeypatch, 'list', run)
  rows = [line.split() for line in output.splitlines()]
  assert code == 0
  assert [row[0] for row in rows] == ['step', '2', '4', '6']
  assert [row[-1] == 'best' for row in rows] == [False, False, True, False]


def test_verify_names_what_is_damaged(run, capsys, monkeypatch):
  code, output, _ = _call(capsys, monkeypatch, 'verify', run)
  assert (code, output.count('intact')) == (0, 3)
  _damage(run, 4)
  code, output, _ = _call(capsys, monkeypatch, 'verify', run)
  assert (code, output.count('intact'), output.count('is damaged')) == (2, 2, 1)
  assert _call(capsys, monkeypatch, 'list', run)[0] == 0  # reads no arrays


def test_json_has_a_line_for_each(run, capsys, monkeypatch):
  _damage(run, 4)
  for action, code, has_problem in (('list', 0, []), ('verify', 2, [4])):
    got, output, messages = _call(capsys, monkeypatch, action, run, '--json')
    found = [json.loads(line) for line in output.splitlines()]
    assert (got, messages) == (code, '')
    assert [(each['step'], each['score']) for each in found] == [(2, 0.5), (4, 0.25), (6, None)]
    assert [each['step'] for each in found if each['best']] == [4]
    assert [each['step'] for each in found if each['problem']] == has_problem
  _, output, _ = _call(capsys, monkeypatch, 'remove', run, 2, 4, '--json')
  assert [json.loads(line) for line in output.splitlines()] == [{'removed': 2}, {'removed': 4}]


def _steps(run):
  return sorted(path.name for path in (run / 'checkpoints').iterdir())


def test_remove_leaves_the_last_intact_one(run, capsys, monkeypatch):
  assert _call(capsys, monkeypatch, 'remove', run, 2)[0] == 0
  assert _steps(run) == ['4', '6']
  _damage(run, 4)
  for steps in (('6',), ('4', '6')):
    code, _, message = _call(capsys, monkeypatch, 'remove', run, *steps)
    assert code == 2
    assert 'intact' in message
  assert _steps(run) == ['4', '6']
  assert _call(capsys, monkeypatch, 'remove', run, 4)[0] == 0
  assert _steps(run) == ['6']


def test_nothing_is_removed_while_a_training_runs(run, capsys, monkeypatch):
  with lock.locked(run):
    code, _, message = _call(capsys, monkeypatch, 'remove', run, 2)
  assert (code, 'in use' in message) == (2, True)
  assert _steps(run) == ['2', '4', '6']


@pytest.mark.parametrize(
  'words',
  [[], ['lst', 'run'], ['list'], ['list', 'nowhere'], ['list', 'run', '2'], ['verify', 'run', 'x']]
  + [['remove', 'run'], ['remove', 'run', '3'], ['remove', 'run', 'two'], ['remove', 'run', '-2']],
  ids=' '.join,
)
def test_wrong_words_are_user_errors(run, capsys, monkeypatch, words):
  monkeypatch.chdir(run.parent)
  code, output, message = _call(capsys, monkeypatch, *words)
  assert (code, output) == (2, '')
  assert message.startswith('error: ')
  assert _steps(run) == ['2', '4', '6']
