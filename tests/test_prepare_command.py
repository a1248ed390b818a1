"""python -m gpt_jax.prepare as its user sees it."""

import fcntl
import json
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

import gpt_jax
from gpt_jax import cli, prepare
from gpt_jax.data import progress, store
from gpt_jax.data.sources import corpus
from gpt_jax.data.store import workers

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    data=config_lib.DataConfig(
      source='jsonl:text/*.jsonl', tokenizer='byte', cache_dir='cache', processes=1,
    ),
  )
"""
_DOCUMENTS = [[f'document {i} of file {n} ☃' for i in range(5)] for n in range(4)]
_DOCUMENTS[0][0] = 'long ' * 30_000


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  """The working directory of a user who has a config and four files of text."""
  (tmp_path / 'mine.py').write_text(_CONFIG)
  (tmp_path / 'text').mkdir()
  for n, documents in enumerate(_DOCUMENTS):
    lines = [json.dumps({'text': text}) for text in documents]
    (tmp_path / 'text' / f'{n}.jsonl').write_text('\n'.join(lines) + '\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(corpus, '_MIN_PART_BYTES', 100)  # some documents are a part
  return tmp_path


@pytest.fixture
def command(monkeypatch, capsys):
  """A function that runs the command and gives its exit code, stdout and stderr."""

  def run(*args):
    monkeypatch.setattr(sys, 'argv', ['prepare', '--config=mine.py', *args])
    capsys.readouterr()
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


def test_it_says_what_there_is_and_where(command):
  code, out, messages = command()
  assert (code, messages) == (0, '')
  texts = [text for documents in _DOCUMENTS for text in documents]
  tokens = sum(len(text.encode()) + 1 for text in texts)
  kept = store.Store.open(_directory())
  assert 1 < len(kept.manifest.shards) < 20
  first, second, third = out.splitlines()
  assert first == (
    f'jsonl:text/*.jsonl: 20 documents, {sum(map(len, texts)):,} characters, {tokens:,} tokens'
  )
  assert second == (
    f'  in {_directory()}: {len(kept.manifest.shards)} shards, {2 * tokens / 1e6:.1f} MB'
  )
  assert re.fullmatch(
    rf'encoded {tokens:,} tokens in \d+\.\d s: \d+\.\dM characters/s, \d+\.\d\dM tokens/s', third
  )
  assert kept.manifest.tokens == tokens


def test_a_second_time_it_says_so_without_encoding(command, monkeypatch):
  _, first, _ = command()
  monkeypatch.setattr(workers, 'run', None)
  code, second, messages = command()
  assert (code, messages) == (0, '')
  assert second.splitlines() == first.splitlines()[:2]


def test_a_sound_store_is_verified_and_a_damaged_one_named(command):
  code, out, _ = command('--verify')
  assert code == 0
  assert re.fullmatch(r'verified in \d\.\d s: all is as it was written', out.splitlines()[-1])
  path = _directory() / 'tokens-00000.bin'
  data = bytearray(path.read_bytes())
  data[7] ^= 1
  path.write_bytes(data)
  code, out, _ = command()
  assert code == 0 and 'verified' not in out
  code, out, messages = command('--verify')
  assert (code, out) == (2, '')
  for word in (f'SHA-256 of {path}', 'between bytes 0 and', f'Delete {_directory()}'):
    assert word in messages
  assert messages.startswith('error: ') and messages.count('\n') == 1


def test_every_source_of_a_mixture_is_told(command):
  pathlib.Path('other.txt').write_text('other text')
  code, out, _ = command('--config.data.source=3*jsonl:text/*.jsonl + 1*text:other.txt')
  assert code == 0
  assert [line.partition(' ')[0] for line in out.splitlines() if not line.startswith(' ')] == [
    'jsonl:text/*.jsonl:',
    'text:other.txt:',
    'encoded',
  ]


def test_ready_tokens_are_told_without_a_store(command):
  pathlib.Path('ready.bin').write_bytes(bytes([7, 0] * 50))
  code, out, messages = command('--config.data.source=tokens:ready.bin', '--verify')
  assert (code, messages) == (0, '')
  assert out.splitlines()[0] == 'tokens:ready.bin: 1 files, 50 tokens'
  assert not pathlib.Path('cache').exists() and 'encoded' not in out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_the_next_time_it_goes_on(command, monkeypatch, number):
  show = progress.Bar.show
  calls = []

  def interrupted(self, *args):
    show(self, *args)
    calls.append(args)
    if len(calls) == 4:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(progress.Bar, 'show', interrupted)
  code, out, messages = command()
  assert (code, out) == (75, '')
  assert 'stopped; run the same command again to go on' in messages
  assert _directory().name.startswith('.')
  tokens = [args[3].tokens for args in calls]
  monkeypatch.setattr(progress.Bar, 'show', show)
  code, out, _ = command('--verify')
  assert code == 0 and 'all is as it was written' in out
  kept = store.Store.open(_directory())
  (again,) = re.findall('encoded ([0-9,]+) tokens', out)
  assert int(again.replace(',', '')) == kept.manifest.tokens - tokens[1] < kept.manifest.tokens


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config.data.source=jsnl:text/*.jsonl'], ['did you mean jsonl:']),
    (['--config.data.source=jsonl:none/*'], ['none/*']),
    (['--config.data.text_field=content'], ['0.jsonl', 'content', 'text']),
    (['--verify=maybe'], ['--verify', 'maybe', 'true or false']),
    (['--verfy'], ['did you mean --verify?']),
  ],
)
def test_a_mistake_ends_with_2_and_leaves_nothing(command, args, words):
  code, out, messages = command(*args)
  assert (code, out) == (2, '')
  assert messages.startswith('error: ') and 'Traceback' not in messages
  for word in words:
    assert word in messages
  assert not any(path.name[0] != '.' for path in pathlib.Path('cache').glob('*'))


_ON_A_TERMINAL = """
import sys
from gpt_jax import cli, prepare
sys.argv = ['prepare', '--config=mine.py']
cli.run(prepare.main, prepare.define_flags(), doc='', takes_config=True)
"""


@pytest.mark.parametrize('columns', [80, 100])
def test_a_bar_on_a_terminal_fits_it_and_tells_rates_and_the_time_left(here, columns):
  ours, theirs = pty.openpty()
  fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 30, columns, 0, 0))
  env = {**os.environ, 'PYTHONPATH': str(_ROOT)}
  env.pop('COLUMNS', None)
  process = subprocess.Popen(
    [sys.executable, '-c', _ON_A_TERMINAL], env=env, stdout=theirs, stderr=theirs, close_fds=True
  )
  os.close(theirs)
  shown = b''
  try:
    while part := os.read(ours, 4096):
      shown += part
  except OSError:
    pass  # the other end is closed
  os.close(ours)
  assert process.wait(timeout=60) == 0
  lines = [line for line in re.split('[\r\n]+', shown.decode()) if '%|' in line]
  assert all(len(line) <= columns for line in lines)
  rates = re.fullmatch(
    r'encoding jsonl:text/?\S*: 100%\|█+\| 00:00 left, (\S+) documents/s, (\S+) tokens/s', lines[-1]
  )
  assert rates and rates[1] != rates[2], lines[-1]


def test_help_answers_without_what_is_slow_to_import():
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'gpt_jax.prepare', '--help'],
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and '--verify' in done.stdout and 'data.source' in done.stdout
  imported = {line.split('|')[-1].strip().partition('.')[0] for line in done.stderr.splitlines()}
  assert 'gpt_jax' in imported
  assert not imported & {'jax', 'numpy', 'tqdm', 'pyarrow', 'tensorflow_datasets'}
