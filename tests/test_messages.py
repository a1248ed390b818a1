"""User errors end with exit code 2 and a message that names the fix, and change no file.

The wording of all of them stands in messages.txt; UPDATE_MESSAGES=1 writes that file anew.
"""

import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

_SNAPSHOT = pathlib.Path(__file__).with_name('messages.txt')
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
    'aa.jsonl': '{"instruction": "Say a.", "output": "a"}\n{"instruction": "Say b."}\n',
    'bb.jsonl': '{"messages": [{"role": "human", "content": "Say a."}]}\n',
    'tokenizer.json': '[]',
    'prompts.txt': 'some text\nsome Q\n',
    'hellaswag.jsonl': '{"ctx": "some", "endings": ["text"], "label": 0}\n',
    'lambada.jsonl': '{"text": "some"}\n',
  }
  gpt2 = {'model_type': 'gpt2', 'n_layer': 1, 'n_head': 2, 'n_embd': 8, 'n_positions': 8}
  gpt2_json, index = json.dumps(gpt2 | {'vocab_size': 13}), {'weight_map': {'wte': 'a.safetensors'}}
  texts |= {'pickle/config.json': gpt2_json, 'pickle/pytorch_model.bin': ''}
  texts |= {'index/config.json': gpt2_json, 'index/model.safetensors.index.json': json.dumps(index)}
  texts |= {'untyped/config.json': '{}', 'untyped/model.safetensors': ''}
  for name, content in texts.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
  (folder / 'latin1.txt').write_bytes('café au lait'.encode('latin-1'))
  pq.write_table(pa.table({'content': ['some text'] * 9}), folder / 'column.parquet')
  np.array([1, 2, 3] * 50 + [257, 4], '<u2').tofile(folder / 'ids.bin')
  (folder / 'odd.bin').write_bytes(b'\1\0\1')


def _run(name, *args):
  """Runs a command as it is typed, in this process, and returns its exit code."""
  config = ['--config=mine.py'] if name in ('train', 'prepare', 'bench') else []
  with mock.patch.object(sys, 'argv', [name, *config, *args]):
    try:
      runpy.run_module(f'gpt_jax.{name}', run_name='__main__')
    except SystemExit as e:
      return e.code
  return 0


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a user who has trained a model in `run`, and a classifier in `classifier`."""
  folder = tmp_path_factory.mktemp('trained')
  _write_inputs(folder)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    assert _run('train', '--workdir=run') == 0
    labelled = ['--config.data.source=jsonl:labels.jsonl', '--config.data.label_field=is']
    assert _run('train', '--workdir=classifier', '--config.task=classify', *labelled) == 0
  return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
  """A copy of that folder to work in, and to damage."""
  shutil.copytree(trained, tmp_path / 'here')
  monkeypatch.chdir(tmp_path / 'here')


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
}

# Command lines, each with a damage or none. `train` starts a new workdir unless it names one.
_CASES = [
  line.strip()
  for line in r"""
  train --config.data.source=text:nonesuch.txt
  train --config.data.source=text:*.md
  train --config.data.source=text:.
  train --config.data.source=text:empty.txt
  train --config.data.source=text:short.txt
  train --config.data.source=text:latin1.txt
  train --config.data.source=txt:text.txt
  train --config.data.source=text.txt
  train --config.data.source=nonesuch
  train --config.data.source=builtin:shakespeare
  train --config.data.source=jsonl:field.jsonl
  train --config.data.source=jsonl:array.jsonl
  train --config.data.source=parquet:column.parquet
  train --config.data.source=tokens:ids.bin --config.data.tokenizer=byte
  train --config.data.source=tokens:odd.bin --config.data.tokenizer=byte
  train --config.data.source=tokens:ids.bin
  train --config.data.source='0*text:text.txt + 1*jsonl:good.jsonl'
  train --config.data.split=given
  train --config.data.chunks=sentences --config.data.min_length=2 --config.data.max_length=8
  train --config.data.label_field=is --config.data.source=jsonl:field.jsonl
  train --config.data.label_field=is
  train --config.task=classify
  train --config.task=classify --config.data.label_field=is --config.data.source=jsonl:one.jsonl
  train --config.task=instruct
  train --config.task=instruct --config.data.template='Q: {prompt} A: '
  train --config.task=instruct --config.data.template={prompt} --config.data.source=jsonl:aa.jsonl
  train --config.task=instruct --config.data.template={prompt} --config.data.source=jsonl:bb.jsonl
  train --config.task=instruct --config.data.template={prompt} --config.data.source=builtin:dates
  train --config.data.source=builtin:instructions
  train --config.model.kind=lstm
  train --config.task=translate
  train --config.task=masked --config.model.kind=encoder
  train --config.task=masked --config.model.kind=encoder --config.data.tokenizer=gpt2
  train --config.model.clusters=9 --config.data.row_length=5 --config.data.lowercase=true
  train --config.data.tokenizer=gpt2 --config.data.special_tokens=bos
  train --config.data.tokenizer=hf:none.json
  train --config.data.tokenizer=hf:tokenizer.json
  train # a flipped bit in the token store
  train # a flipped bit in the manifest
  train # no shard
  train # no documents
  train --config.model.n_embd=9
  train --config.train.gradient_accumulation=3
  train --config.model.vocab_size=5
  train --config.train.seed=99999999999999999999
  train --config.mesh.data=3
  train --config.train.batch_size=7
  train --config.train.steps=99999999999999999999
  train --config.model.n_embd=16777216
  train --config.train.batch_size=1000000000
  train --config.mesh.cpu_devices=100000
  train --config.optimizer.lr=1 --steps=5 --lr=1 --batchsize=4
  train --config.mesh.data=0 --config.optimizer.clip=-1 --config.modle.n_head=1 x
  train --workdir=text.txt
  train --workdir=text.txt/a/run
  train --workdir=/proc/run
  train --workdir=run --config.model.n_embd=16
  train --workdir=run --config.train.steps=3
  train --workdir=run --config.data.seed=1 --config.optimizer.clip=2 --config.train.log_every=3
  train --workdir=run # no config.json
  train --workdir=run # a step of text in metrics.jsonl
  train --workdir=run # a folder for metrics.jsonl
  train --config.init_from=text.txt
  train --config.init_from=run --config.model.n_embd=16
  train --config.init_from=run --config.data.source=text:other.txt
  sample
  sample --model=nonesuch
  sample --model=pickle
  sample --model=index
  sample --model=untyped
  sample --model=.
  sample --model=text.txt/run
  sample --model=run # no checkpoints
  sample --model=run/checkpoints/9
  sample --model=run # an empty config.json
  sample --model=run # an empty tokenizer.json
  sample --model=run # a binary config.json
  sample --model=run # a binary tokenizer.json
  sample --model=run # a misspelt key in config.json
  sample --model=run # a tokenizer.json of no known kind
  sample --model=run # no tokenizer.json
  sample --model=run # no config.json
  sample --model=run # the config.json of another run
  sample --model=run # the tokenizer.json of another run
  sample --model=run # a config.json without a vocabulary
  sample --model=run/checkpoints/2 # no arrays
  sample --model=run --prompt=Q
  sample --model=run --prompts=prompts.txt
  sample --model=run --prompts=nonesuch.txt
  sample --model=run --prompts=empty.txt
  sample --model=run --prompt='some text to learn'
  sample --model=run --prompt=x --prompts=prompts.txt
  sample --model=run --max_new_tokens=0
  sample --model=run --num_samples=0
  sample --model=run --num_samples=1000000000
  sample --model=run --temperature=-1
  sample --model=run --temperature=nan
  sample --model=run --temperature=hot
  sample --model=run --top_k=-1 --seed=4294967296 --log_probs
  sample --model=run --max_new_tokes=5
  sample --model=run some
  sample --model=run --num_beams=4 --max_new_tokens=50
  sample --model=run --num_beams=4 --top_p=0.5 --temperature=0.5
  sample --model=run --length_penalty=2
  sample --model=run --stop='\q'
  sample --model=run --ban=some
  sample --model=run --logit_bias=s
  sample --model=run --draft=nonesuch
  sample --model=run --interactive --json
  sample --model=run --chat
  sample --model=run --chat --prompt=some
  evaluate --model=run --data=examples:builtin:date
  evaluate --model=run --data=examples:builtin:dates
  evaluate --model=run --data=examples:aa.jsonl
  evaluate --model=run --data=builtin:instructions
  evaluate --model=run
  evaluate --model=run --data=run:test
  evaluate --model=run --data=run:train
  evaluate --model=classifier --data=text:text.txt
  evaluate --model=run --data=text:nonesuch.txt
  evaluate --model=run --data=text:empty.txt
  evaluate --model=run --data=text:text.txt --stride=9
  evaluate --model=run --data=text:text.txt --split=test
  evaluate --model=run --data=hellaswag:hellaswag.jsonl
  evaluate --model=run --data=lambada:lambada.jsonl
  evaluate --model=run --data=lambada:lambada.jsonl --stride=2
  evaluate --model=run --data=run:test --dtype=int8
  sample --model=run --dtype=int4
  evaluate --model=run --data=text:text.txt --json=none/x.json
  evaluate --model=run --data=text:text.txt --json=/proc/x.json
  sample --model=classifier
  convert --model=classifier --output=exported
  convert --model=run
  convert --model=run --output=text.txt
  convert --model=run --output=text.txt/x
  classify --model=run --text=some
  classify --model=classifier
  classify --model=classifier --text=' '
  classify --model=classifier --texts=prompts.txt
  search --model=run
  search --model=run --corpus=text:nonesuch.txt --query=some
  search --model=run --corpus=text:text.txt --query=some --pooling=means --top=0
  search --model=run --corpus=text:text.txt --query=Q --index=run
  inspect --model=run --prompt=some --picture=attentoin
  inspect --picture=loss
  inspect --model=run --prompt='some text to learn'
  inspect --model=classifier --prompt=some --picture=lens
  inspect --model=run --fill=some
  plot
  plot run nonesuch --outptu=x.png
  plot run classifier
  plot run --output=/proc/x.png
  plot run # a step of text in metrics.jsonl
  runs --folder=nonesuch
  bench
  bench trian --rows=0
  bench train --peer=nanogpt:none
  show_tokens --text=some --file=text.txt
  show_tokens --text=some --color=red
  show_tokens --text=some --tokenizer=chars
  show_tokens --model=nonesuch --text=some
  prepare --config.data.source=jsonl:nonesuch.jsonl
  """.strip().splitlines()
]


def _files():
  """Returns each path here with its content and time; the cache and Python's own aside."""
  return {
    # A lock comes and goes, which changes the time of its folder.
    path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
    for path in pathlib.Path().rglob('*')
    if path.parts[0] != 'cache' and '__pycache__' not in path.parts
  }


def _read_snapshot():
  entries = _SNAPSHOT.read_text(encoding='utf-8').split('\n$ ') if _SNAPSHOT.exists() else []
  return dict(entry.strip().removeprefix('$ ').split('\n', 1) for entry in entries)


_seen: dict[str, str] = {}


@pytest.mark.parametrize('case', _CASES)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
def test_a_user_error_names_the_fix_and_changes_nothing(here, case, monkeypatch, capsys):
  line, _, damage = case.partition(' # ')
  name, *args = shlex.split(line)
  if damage:
    _DAMAGE[damage]()
  if name == 'train' and '--workdir' not in line:
    args.append('--workdir=new')
  monkeypatch.setenv('COLUMNS', '80')
  before = _files()
  capsys.readouterr()
  code = _run(name, *args)
  message = capsys.readouterr().err.replace(os.getcwd(), 'HERE')
  message = re.sub('[0-9a-f]{32}', 'HASH', message)  # Orbax's names of files
  message = re.sub('-[0-9a-f]{12}', '-HASH', message)  # the name of a token store
  message = re.sub('a device has [0-9.,]+', 'a device has MEMORY', message)
  message = message[message.index('error: ') :].strip() if 'error: ' in message else message
  assert code == 2, message
  assert 'Traceback' not in message and '\n\n' not in message
  assert _files() == before
  if os.environ.get('UPDATE_MESSAGES'):
    _seen[case] = message
  else:
    assert message == _read_snapshot().get(case)


def test_every_message_of_the_snapshot_is_still_given():
  if os.environ.get('UPDATE_MESSAGES'):
    _SNAPSHOT.write_text('\n'.join(f'$ {case}\n{text}\n' for case, text in _seen.items()))
  assert list(_read_snapshot()) == _CASES
