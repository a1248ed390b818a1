"""python -m gpt_jax.prepare as its user sees it."""

import json
import os
import pathlib
import re
import signal
import sys
from typing import Any

import numpy as np
import pytest

from gpt_jax import cli, prepare, progress
from gpt_jax.data import store, workers

_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    data=config_lib.DataConfig(
      source='jsonl:text/*.jsonl', tokenizer='byte', cache_dir='cache', processes=1,
    ),
  )
"""
_DOCUMENTS = [f'document {i} ☃' for i in range(20)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  """The working directory of a user who has a config and some text."""
  (tmp_path / 'mine.py').write_text(_CONFIG)
  (tmp_path / 'text').mkdir()
  lines = [json.dumps({'text': text}) for text in _DOCUMENTS]
  (tmp_path / 'text' / 'a.jsonl').write_text('\n'.join(lines))
  monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(monkeypatch, capsys):
  """A function that runs the command and returns its exit code, stdout and stderr."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['prepare', '--config=mine.py', *args])
    code: Any = 0
    try:
      cli.run(prepare.main, prepare.define_flags(), doc='', takes_config=True)
    except SystemExit as e:
      code = e.code
    return code, *capsys.readouterr()

  return run


def _directory():
  (found,) = pathlib.Path('cache').iterdir()
  return found


def test_it_prints_what_there_is_and_encodes_once(command, monkeypatch):
  code, out, messages = command()
  assert (code, messages) == (0, '')
  tokens = sum(len(text.encode()) + 1 for text in _DOCUMENTS)
  first, second, third = out.splitlines()
  assert first == (
    f'jsonl:text/*.jsonl: 20 documents, {sum(map(len, _DOCUMENTS)):,} characters, {tokens:,} tokens'
  )
  assert second == f'  in {_directory()}: 1 shards, {2 * tokens / 1e6:.1f} MB'
  assert re.fullmatch(
    rf'encoded {tokens:,} tokens in \d+\.\d s: \d+\.\dM characters/s, \d+\.\d\dM tokens/s', third
  )
  monkeypatch.setattr(workers.Job, 'map', None)
  assert command() == (0, f'{first}\n{second}\n', '')


def test_a_store_is_verified_if_asked_for(command):
  code, out, _ = command('--verify')
  assert code == 0 and out.splitlines()[-1].startswith('verified')
  path = _directory() / 'tokens-00000.bin'
  data = path.read_bytes()
  path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
  code, out, _ = command()
  assert code == 0 and 'verified' not in out
  code, out, messages = command('--verify')
  assert (code, out) == (2, '')
  assert str(path) in messages and messages.count('\n') == 1


def test_every_source_of_a_mixture_is_printed(command):
  pathlib.Path('other.txt').write_text('other text')
  np.array([7] * 50, np.uint16).tofile('train.bin')
  source = '3*jsonl:text/*.jsonl + 1*text:other.txt + 1*tokens:train.bin'
  code, out, _ = command(f'--config.data.source={source}')
  assert code == 0
  assert [line.partition(' ')[0] for line in out.splitlines() if not line.startswith(' ')] == [
    'jsonl:text/*.jsonl:',
    'text:other.txt:',
    'tokens:train.bin:',
    'encoded',
  ]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_same_command_resumes(command, monkeypatch, number):
  show = progress.Bar.show

  def kill_and_show(*args):
    os.kill(os.getpid(), number)
    show(*args)

  with monkeypatch.context() as patch:
    patch.setattr(progress.Bar, 'show', kill_and_show)
    code, out, messages = command()
  assert (code, out) == (75, '')
  assert 'Traceback' not in messages
  assert not list(pathlib.Path('cache').iterdir())
  assert command('--verify')[0] == 0
  store.Store.open(_directory())


@pytest.mark.parametrize(
  'arg', ['--config.data.source=jsonl:none/*', '--config.data.text_field=content', '--verify=maybe']
)
def test_a_mistake_ends_with_2_and_leaves_nothing(command, arg):
  code, out, messages = command(arg)
  assert (code, out) == (2, '')
  assert messages.startswith('error: ') and messages.count('\n') == 1
  assert not any(pathlib.Path('cache').glob('*'))
