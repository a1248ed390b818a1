"""User errors end with exit code 2 and a message that names the fix, and change no file.

messages.txt is the catalogue: command lines, each with a damage or none, calls from Python, and
what they are answered. Add a mistake there; UPDATE_MESSAGES=1 writes the answers.
"""

import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpt_jax
from gpt_jax import config, train
from gpt_jax.downstream import classify
from tests import raised

_FIXTURES = pathlib.Path(__file__).with_name('weights') / 'fixtures'
_CATALOGUE = pathlib.Path(__file__).with_name('messages.txt')
_CONFIGURED = ('train', 'prepare', 'bench', 'scaling')
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


def _write_inputs(folder):
  """Writes a config, good text, and text with every kind of mistake."""
  texts = {
    'mine.py': _CONFIG,
    'text.txt': 'some text to learn from\n' * 20,
    'other.txt': 'Some other text\n' * 30,
    'empty.txt': '',
    'short.txt': 'eighty characters, of which a tenth is not enough to validate on',
    'good.jsonl': '{"text": "some text to learn from"}\n' * 30,
    'field.jsonl': '{"text": "a line"}\n{"content": "another"}\n',
    'array.jsonl': '["a line"]\n',
    'labels.jsonl': '{"text": "some", "is": "a"}\n{"text": "text", "is": "b"}\n' * 30,
    'one.jsonl': '{"text": "some text", "is": "a"}\n' * 30,
    'null.jsonl': '{"text": null}\n',
    'cut.jsonl': '{"text": "some text',
    'plain.gz': 'some text',
    'aa.jsonl': '{"instruction": "Say a.", "output": "a"}\n{"instruction": "Say b."}\n',
    'pairs.jsonl': '{"instruction": "text", "output": "some"}\n' * 30,
    'bb.jsonl': '{"messages": [{"role": "human", "content": "Say a."}]}\n',
    'tokenizer.json': '[]',
    'prompts.txt': 'some text\nsome Q\n',
    'blank.txt': 'some\n\ntext\n',
    'hellaswag.jsonl': '{"ctx": "some", "endings": ["text"], "label": 0}\n',
    'lambada.jsonl': '{"text": "some"}\n',
  }
  make = 'from gpt_jax import config as c\n\n\ndef get_config():\n  '
  texts |= {
    'syntax.py': 'def get_config(:\n',
    'imports.py': 'import numpi\n',
    'nothing.py': 'n_layer = 4\n',
    'exits.py': 'raise SystemExit(1)\n',
    'dict.py': f"{make}return {{'n_layer': 4}}\n",
    'keys.py': f'{make}return c.Config(model=c.ModelConfig(depth=4))\n',
    'types.py': f"{make}return c.Config(model=c.ModelConfig(n_layer='4', dropout=None, bias=1))\n",
    'section.py': f"{make}return c.Config(model={{'n_layer': 4}}, data='text.txt')\n",
    'frozen.py': f'{make}made = c.Config()\n  made.model.n_layer = 4\n  return made\n',
  }
  gpt2 = {'model_type': 'gpt2', 'n_layer': 1, 'n_head': 2, 'n_embd': 8, 'n_positions': 8}
  gpt2_json, index = json.dumps(gpt2 | {'vocab_size': 13}), {'weight_map': {'wte': 'a.safetensors'}}
  texts |= {'pickle/config.json': gpt2_json, 'pickle/pytorch_model.bin': ''}
  texts |= {'index/config.json': gpt2_json, 'index/model.safetensors.index.json': json.dumps(index)}
  texts |= {'untyped/config.json': '{}', 'untyped/model.safetensors': ''}
  texts |= {'llama/config.json': '{"model_type": "llama"}', 'llama/model.safetensors': ''}
  texts |= {'sizes/config.json': '{"model_type": "gpt2"}', 'sizes/model.safetensors': ''}
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n'
  texts |= {'lfs/config.json': gpt2_json, 'lfs/model.safetensors': pointer}
  for name, content in texts.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
  (folder / 'latin1.txt').write_bytes('café au lait'.encode('latin-1'))
  pq.write_table(pa.table({'content': ['some text'] * 9}), folder / 'column.parquet')
  np.array([1, 2, 3] * 50 + [257, 4], '<u2').tofile(folder / 'ids.bin')
  (folder / 'utf16.txt').write_bytes('some text'.encode('utf-16'))
  shutil.copytree(_FIXTURES / 'huggingface' / 'tied', folder / 'published')
  (folder / 'openai').mkdir()
  shutil.copy(_FIXTURES / 'openai_tiny' / 'hparams.json', folder / 'openai')
  (folder / 'odd.bin').write_bytes(b'\1\0\1')


def _run(name, *args):
  """Runs a command as it is typed, in this process, and returns its exit code."""
  config = ['--config=mine.py'] if name in _CONFIGURED else []
  with mock.patch.object(sys, 'argv', [name, *config, *args]):
    try:
      runpy.run_module(f'gpt_jax.{name}', run_name='__main__')
    except SystemExit as e:
      return e.code
  return 0


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a user who has trained a `run`, a `classifier` and a `translation`."""
  folder = tmp_path_factory.mktemp('trained')
  _write_inputs(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    assert _run('train', '--workdir=run') == 0
    labelled = ['--config.data.source=jsonl:labels.jsonl', '--config.data.label_field=is']
    assert _run('train', '--workdir=classifier', '--config.task=classify', *labelled) == 0
    pairs = ['--config.data.source=jsonl:pairs.jsonl', '--config.data.template={prompt}']
    pairs += ['--config.data.special_tokens=eos', '--config.model.kind=encoder_decoder']
    assert _run('train', '--workdir=translation', '--config.task=translate', *pairs) == 0
  return folder


def _store():
  """Returns the token store of text.txt here."""
  shutil.rmtree('cache')
  assert _run('prepare') == 0
  (path,) = pathlib.Path('cache').iterdir()
  return path


def _flip(path):
  data = bytearray(path.read_bytes())
  data[100] ^= 1
  path.write_bytes(data)


def _edit_config(**values):
  path = pathlib.Path('run/config.json')
  config = json.loads(path.read_text())
  config['model'] |= values
  path.write_text(json.dumps(config))


def _replace_by_a_folder(path):
  path.unlink()
  path.mkdir()


def _remove_manifests():
  for path in pathlib.Path('run/checkpoints').glob('*/manifest.json'):
    path.unlink()


def _empty_arrays():
  for path in pathlib.Path('run/checkpoints/2/params').rglob('d/*'):
    path.write_bytes(b'')


_CONFIG_JSON, _TOKENIZER_JSON = pathlib.Path('run/config.json'), pathlib.Path('run/tokenizer.json')
_METRICS = pathlib.Path('run/metrics.jsonl')

# What is done to the files of the trained run before a command is run, by name.
_DAMAGE = {
  'a flipped bit in the token store': lambda: _flip(_store() / 'tokens-00000.bin'),
  'a flipped bit in the manifest': lambda: _flip(_store() / 'manifest.json'),
  'no shard': lambda: (_store() / 'tokens-00000.bin').unlink(),
  'no documents': lambda: (_store() / 'documents-00000.bin').unlink(),
  'no config.json': _CONFIG_JSON.unlink,
  'no tokenizer.json': _TOKENIZER_JSON.unlink,
  'no checkpoints': lambda: shutil.rmtree('run/checkpoints'),
  'an empty config.json': lambda: _CONFIG_JSON.write_text('[]'),
  'an empty tokenizer.json': lambda: _TOKENIZER_JSON.write_text('{}'),
  'a binary config.json': lambda: _CONFIG_JSON.write_bytes(b'\xff\xfe'),
  'a binary tokenizer.json': lambda: _TOKENIZER_JSON.write_bytes(b'\xff\xfe'),
  'a misspelt key in config.json': lambda: _CONFIG_JSON.write_text('{"modle": {}}'),
  'the config.json of another run': lambda: _edit_config(n_embd=16),
  'a config.json without a vocabulary': lambda: _edit_config(vocab_size=0),
  'the tokenizer.json of another run': lambda: _TOKENIZER_JSON.write_text(
    '{"kind": "char", "characters": "\\n aefhlmnorstxQ"}'
  ),
  'a tokenizer.json of no known kind': lambda: _TOKENIZER_JSON.write_text('{"kind": "unigram"}'),
  'a step of text in metrics.jsonl': lambda: _METRICS.write_text('{"step": "1"}\n'),
  'a folder for metrics.jsonl': lambda: _replace_by_a_folder(_METRICS),
  'no arrays': _empty_arrays,
  'no manifests': _remove_manifests,
  'text for n_layer in config.json': lambda: _edit_config(n_layer='one'),
  'null in metrics.jsonl': lambda: _METRICS.write_text('null\n'),
  'more text in text.txt': lambda: pathlib.Path('text.txt').write_text('more text\n' * 99),
  'no text.txt': pathlib.Path('text.txt').unlink,
}


def _files():
  """Returns each path here with its size and time; the cache and Python's own aside."""
  return {
    # A lock comes and goes, which changes the time of its folder.
    path: (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None
    for path in pathlib.Path().rglob('*')
    if path.parts[0] != 'cache' and '__pycache__' not in path.parts
  }


def _read_catalogue():
  """Returns each command line and each call with the message it is answered."""
  entries = re.split(r'^(?=\$ |>>> )', _CATALOGUE.read_text(encoding='utf-8'), flags=re.MULTILINE)
  return {line: text.strip() for line, _, text in (e.partition('\n') for e in entries if e)}


_MESSAGES = _read_catalogue()


@pytest.fixture(scope='module')
def answer():
  """Compares a message with that of the catalogue, or puts it there."""

  def check(line, message):
    if os.environ.get('UPDATE_MESSAGES'):
      _MESSAGES[line] = message
    else:
      assert message == _MESSAGES[line]

  yield check
  if os.environ.get('UPDATE_MESSAGES'):
    _CATALOGUE.write_text('\n'.join(f'{line}\n{text}\n' for line, text in _MESSAGES.items()))


def _as_typed(line, monkeypatch):
  """Runs a command line, `train` in a new workdir unless it names one; returns its exit code."""
  words = shlex.split(line)
  while '=' in words[0]:
    monkeypatch.setenv(*words.pop(0).split('=', 1))
  if words[-1].startswith('<'):
    file = io.TextIOWrapper(io.BytesIO(pathlib.Path(words.pop()[1:]).read_bytes()))
    monkeypatch.setattr(sys, 'stdin', file)
  if words[0] == 'train' and '--workdir' not in line:
    words.append('--workdir=new')
  return _run(*words)


@pytest.mark.parametrize('line', [line for line in _MESSAGES if line.startswith('$')])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
def test_a_user_error_names_the_fix_and_changes_nothing(
  trained, answer, line, tmp_path, monkeypatch, capsys
):
  command, _, damage = line.removeprefix('$ ').partition(' # ')
  folder = trained
  if damage:
    folder = shutil.copytree(trained, tmp_path / 'here')
  monkeypatch.chdir(folder)
  if damage:
    _DAMAGE[damage]()
  monkeypatch.setenv('COLUMNS', '80')
  before = _files()
  capsys.readouterr()
  code = _as_typed(command, monkeypatch)
  message = capsys.readouterr().err.replace(os.getcwd(), 'HERE')
  message = re.sub('[0-9a-f]{32}', 'HASH', message)  # Orbax's names of files
  message = re.sub('-[0-9a-f]{12}', '-HASH', message)  # the name of a token store
  message = re.sub('a device has [0-9.,]+', 'a device has MEMORY', message)
  message = message[message.index('error: ') :].strip() if 'error: ' in message else message
  assert code == 2, message
  assert 'Traceback' not in message and '\n\n' not in message
  assert _files() == before
  answer(line, message)


@pytest.fixture(scope='module')
def names(trained):
  """What the calls of the catalogue use."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(trained)
    loaded = {'model': gpt_jax.load('run'), 'classifier': gpt_jax.load('classifier')}
  return loaded | {
    'gpt_jax': gpt_jax,
    'classify': classify,
    'config': config,
    'np': np,
    'train': train,
    'inf': float('inf'),
    'nan': float('nan'),
  }


@pytest.mark.parametrize('line', [line for line in _MESSAGES if line.startswith('>>>')])
def test_a_wrong_argument_is_a_user_error(trained, answer, names, line, monkeypatch):
  monkeypatch.chdir(trained)
  before = _files()
  answer(line, str(raised.user_error(eval, line.removeprefix('>>> '), names)))
  assert _files() == before


@pytest.mark.parametrize(
  'call',
  [
    'gpt_jax.load()',
    "gpt_jax.load('run', device='cuda')",
    'model.generate()',
    "model.generate('some', 5)",
    "model.embed('some', layer=3)",
    'config.ModelConfig(depth=4)',
  ],
)
def test_a_call_that_python_refuses_is_a_type_error(names, call):
  with pytest.raises(TypeError):
    eval(call, names)


def test_a_variable_that_jax_refuses_is_named():
  command = [sys.executable, '-m', 'gpt_jax.sample', '--model=run']
  env = os.environ | {'JAX_DEBUG_NANS': 'perhaps'}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 2 and 'JAX_DEBUG_NANS' in done.stderr
  assert 'Traceback' not in done.stderr
