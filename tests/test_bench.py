"""The command measures without any data, prints what it found, and names mistakes."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from gpt_jax import bench, cli
from gpt_jax.benchmarks import data, figures, matmul, processes
from tests import raised

_ROOT = pathlib.Path(__file__).parents[1]
_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=16),
    data=config_lib.DataConfig(source='text:there/is/none', tokenizer='byte'),
    train=config_lib.TrainConfig(batch_size=4, gradient_accumulation=2),
  )
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """A function that runs the command on a tiny config; returns the table and the JSON."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(matmul, '_LARGE', 64)
  monkeypatch.setattr(matmul, '_LEAST', 1)
  monkeypatch.setattr(data, '_CHARACTERS', 20_000)
  (tmp_path / 'mine.py').write_text(_CONFIG)

  def run(mode, *args):
    values = bench.define_flags()
    first = ('bench', '--config=mine.py', '--repeats=3', '--steps=2', '--json')
    argv = [*first, *mode.split(), *args]
    bench.main(*cli.parse(values, argv, takes_config=True, takes_words=True))
    out, messages = capsys.readouterr()
    return messages, json.loads(out)

  return run


def _check(out, found, repeats=3):
  """Asserts that each figure is printed, and has a median between the least and the most."""
  for name, figure in found['figures'].items():
    assert re.search(rf'^{re.escape(name)} .* {re.escape(figure["unit"])}', out, re.MULTILINE)
    assert figure['least'] <= figure['median'] <= figure['most'], name
    assert len(figure['values']) in (1, repeats)
  assert found['machine']['cores'] >= 1 and found['machine']['devices'] in out
  return found['figures']


def test_a_step_and_where_its_time_goes(command, tmp_path):
  out, found = command('train', '--trace=profile')
  shown = _check(out, found)
  assert found['config']['model']['vocab_size'] == 256
  tokens = 4 * 16
  seconds = [ms / 1e3 for ms in shown['step']['values']]
  assert len(seconds) == 3 and min(seconds) > 0
  rates, cost = shown['rate']['values'], shown['cost']['median'] * 1e6
  assert [r * s for r, s in zip(rates, seconds, strict=True)] == pytest.approx([tokens] * 3)
  assert shown['speed']['median'] * 1e9 == pytest.approx(shown['rate']['median'] * cost)
  mfu = 100 * shown['speed']['median'] / shown['peak']['median']
  assert shown['mfu']['median'] == pytest.approx(mfu)
  assert shown['process memory']['median'] > shown['step memory']['median'] > 0
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
  parts = {name: each for name, each in shown.items() if 'traced step' in each['note']}
  both = {f'{part}, {way}ward' for part in ('attention', 'mlp') for way in ('for', 'back')}
  assert both | {'optimizer', 'exchange of devices'} <= set(parts)
  assert sum(float(each['note'].partition('%')[0]) for each in parts.values()) == pytest.approx(
    100, abs=1
  )


def test_decoding(command):
  out, found = command('decode', '--rows=1,3', '--prompt_tokens=5', '--new_tokens=4')
  shown = _check(out, found)
  assert set(shown) == {'first token × 1', 'rate × 1', 'first token × 3', 'rate × 3'}
  assert min(each['least'] for each in shown.values()) > 0


@pytest.mark.parametrize(
  'args',
  [
    [],
    ['--config.data.chunks=packed', '--config.data.special_tokens=bos'],
    ['--config.data.chunks=sentences', '--config.data.min_length=2', '--config.data.max_length=9'],
    ['--config.task=classify', '--config.data.label_field=label', '--config.data.split=given'],
    ['--config.data.tokenizer=word', '--config.data.special_tokens=bos eos unk'],
  ],
)
def test_batches_of_all_kinds_from_a_store_of_random_documents(command, args):
  out, found = command('data', *args)
  shown = _check(out, found)
  rates = [64 * batches for batches in shown['batches']['values']]
  assert shown['rate']['values'] == pytest.approx(rates)


def test_the_products_of_a_step(command):
  out, found = command('matmul')
  shown = _check(out, found)
  assert {'scores', 'values', 'c_attn', 'c_attn dx', 'c_attn dw', 'output', 'large'} <= set(shown)
  # A micro-batch of 2 sequences on two devices.
  assert '16×8 · 8×24' in shown['c_attn']['note']
  assert '16×256 · 8×256' in shown['output dx']['note']


def test_the_start_of_a_process(command):
  out, found = command('startup', '--repeats=1')
  shown = _check(out, found, repeats=1)
  parts = ('imports', 'build', 'compile', 'parameters', 'first step')
  for kind in ('cold', 'warm'):
    seconds = [shown[f'{kind} {part}']['median'] for part in parts]
    assert min(seconds) > 0 and sum(seconds) == pytest.approx(shown[f'{kind} start']['median'])


_PEER = """#!/bin/sh
cat > spec.json
echo 'number of parameters: 1'
echo '{"step": 4.0, "rate": 16.0}'
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
  """A checkout of nanoGPT and a Python that measure nothing, and gpt_jax that doesn't either."""
  (tmp_path / 'nano').mkdir()
  (tmp_path / 'nano' / 'model.py').write_text('')
  (tmp_path / 'python').write_text(_PEER)
  (tmp_path / 'python').chmod(0o755)
  steps = iter([3.0, 1.0, 2.0])

  def run(name, config, options):
    assert (name, options.repeats, options.peer) == ('train.measure', 1, '')
    step = next(steps)
    rate = figures.Figure('rate', 'tokens/s', [64 / step])
    return [figures.Figure('step', 'ms', [step]), rate, figures.Figure('mfu', '%', [step])]

  monkeypatch.setattr(processes, 'run', run)
  return '--peer=nanogpt:nano', f'--peer_python={tmp_path}/python'


def test_a_peer_is_measured_in_turn_and_the_ratio_is_that_of_the_medians(command, peer, tmp_path):
  out, found = command('train', *peer)
  shown = _check(out, found)
  assert shown['step, gpt_jax']['values'] == [3, 1, 2]
  assert shown['step, nanogpt']['values'] == [4, 4, 4]
  assert shown['step, ratio']['median'] == 0.5 and shown['rate, ratio']['median'] == 2
  spec = json.loads((tmp_path / 'spec.json').read_text())
  assert spec['folder'] == 'nano' and spec['vocab_size'] == 256
  assert spec['config']['train']['batch_size'] == 4 and spec['options']['steps'] == 2


def test_a_peer_that_fails_is_named_with_its_last_words(command, peer, tmp_path):
  (tmp_path / 'python').write_text('#!/bin/sh\necho no torch here >&2\nexit 3\n')
  error = raised.user_error(command, 'train', *peer)
  assert error.key == 'peer' and 'no torch here' in error.problem


@pytest.mark.parametrize(
  ('mode', 'args', 'keys'),
  [
    ('', [], ['mode']),
    ('trian', [], ['mode']),
    ('train', ['--repeats=0', '--steps=-1'], ['repeats', 'steps']),
    ('decode', ['--rows=0'], ['rows']),
    ('decode', ['--rows=1,'], ['rows']),
    ('decode', ['--new_tokens=1', '--prompt_tokens=0'], ['prompt_tokens', 'new_tokens']),
    ('train', ['--model=run'], ['model']),
    ('decode', ['--trace=profile'], ['trace']),
    ('decode', ['--config.model.kind=lstm', '--config.model.tie_embeddings=false'], ['model.kind']),
    ('matmul', ['--config.model.kind=lstm', '--config.model.tie_embeddings=false'], ['model.kind']),
    ('decode', ['--config.task=classify', '--config.data.label_field=label'], ['model.kind']),
    ('train', ['--peer=nonesuch'], ['peer']),
    ('train', ['--dtype=int8'], ['dtype']),
    ('train', ['--peer=nanogpt'], ['peer']),
    ('train', ['--peer=nanogpt:.'], ['peer']),
    ('train', ['--peer=transformers'], ['peer']),
    ('decode', ['--peer=nanogpt:nano'], ['peer']),
    ('decode', ['--peer=transformers', '--peer_python=nonesuch'], ['peer_python']),
    ('train', ['--peer=nanogpt:nano', '--config.data.chunks=packed'], ['peer']),
  ],
)
def test_mistakes_are_named_before_anything_is_measured(
  command, peer, monkeypatch, mode, args, keys
):
  for name in ('measure', 'compare'):
    monkeypatch.setattr(processes, name, pytest.fail)
  error = raised.user_error(command, mode, peer[1], *args)
  assert [each.key for each in error.all] == keys


@pytest.mark.parametrize(
  ('mode', 'args', 'key'),
  [
    ('decode', ['--prompt_tokens=9', '--new_tokens=8'], 'new_tokens'),
    ('decode', ['--model=nonesuch'], 'nonesuch'),
    ('train', ['--config.train.batch_size=2'], 'train.batch_size'),
  ],
)
def test_mistakes_that_the_model_or_the_devices_show(command, mode, args, key):
  assert raised.user_error(command, mode, *args).key == key


@pytest.mark.parametrize('args', [['train'], ['train', '--config=mine.py', '--steps=0'], ['x']])
def test_mistakes_end_with_2_before_jax_is_imported(tmp_path, args):
  (tmp_path / 'mine.py').write_text(_CONFIG)
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'gpt_jax.bench', *args],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  lines = done.stderr.splitlines()
  assert done.returncode == 2 and sum(line.startswith('error: ') for line in lines) == 1
  imported = {line.split('|')[-1].strip() for line in lines if line.startswith('import time:')}
  assert 'gpt_jax.cli' in imported and not {'jax', 'numpy', 'flax'} & imported
