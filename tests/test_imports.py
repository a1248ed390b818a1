"""What is imported, and what never is."""

import os
import pathlib
import subprocess
import sys

import pytest

import gpt_jax

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
_TFDS = _ROOT.parent / 'shared' / 'data' / 'tfds'

# Tells each attempt to import PyTorch or TensorFlow, whether or not they are installed; to ask
# whether they are is no attempt.
_WATCH = """
import importlib.abc, importlib.util, sys

def watched(name):
  return name.partition('.')[0] in ('torch', 'tensorflow')

class Watch(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if watched(name):
      print('IMPORTED', name)

ask = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if watched(name) else ask(name, *args)
sys.meta_path.insert(0, Watch())
"""

_EVERY_MODULE = """
import importlib, pkgutil
import gpt_jax

names = [module.name for module in pkgutil.walk_packages(gpt_jax.__path__, 'gpt_jax.')]
for name in names:
  importlib.import_module(name)
print(*names)
"""

_PREPARE_TRAIN_AND_SAMPLE = """
from gpt_jax import cli, prepare, sample, train

sys.argv = ['prepare', '--config=mine.py', '--verify']
cli.run(prepare.main, prepare.define_flags(), doc='', takes_config=True)
sys.argv = ['train', '--config=mine.py', '--workdir=run']
cli.run(train.main, train.define_flags(), doc='', takes_config=True)
sys.argv = ['sample', '--model=run', '--max_new_tokens=5']
cli.run(sample.main, sample.define_flags(), doc='', takes_config=False)
print('ALL RAN', 'torch' in sys.modules, 'tensorflow' in sys.modules)
"""

_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8),
    data=config_lib.DataConfig(source='SOURCE', tokenizer='char', cache_dir='cache'),
    train=config_lib.TrainConfig(steps=2, batch_size=8, eval_batches=1, tensorboard=True),
    optimizer=config_lib.OptimizerConfig(warmup_steps=0),
  )
"""


def _run(program, cwd):
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_watch_sees_an_import(tmp_path):
  program = 'try:\n  import torch.nn\nexcept ImportError:\n  pass\n'
  assert 'IMPORTED torch' in _run(_WATCH + program, tmp_path)


def test_no_module_imports_torch_or_tensorflow(tmp_path):
  out = _run(_WATCH + _EVERY_MODULE, tmp_path)
  assert {'gpt_jax.train', 'gpt_jax.data.tokenizers.bpe', 'gpt_jax.training.loop'} <= set(
    out.split()
  )
  assert 'IMPORTED' not in out


@pytest.mark.parametrize('source', ['text:text.txt', 'tfds:tiny_shakespeare'])
def test_no_command_imports_torch_or_tensorflow(tmp_path, monkeypatch, source):
  if source.startswith('tfds:'):
    if not (_TFDS / 'tiny_shakespeare').is_dir():
      pytest.skip(f'no real data: {_TFDS}/tiny_shakespeare is not there')
    monkeypatch.setenv('TFDS_DATA_DIR', str(_TFDS))
  (tmp_path / 'mine.py').write_text(_CONFIG.replace('SOURCE', source))
  (tmp_path / 'text.txt').write_text('some text to learn from\n' * 20)
  out = _run(_WATCH + _PREPARE_TRAIN_AND_SAMPLE, tmp_path)
  assert 'ALL RAN False False' in out and list((tmp_path / 'run' / 'tensorboard').iterdir())
  assert f'{source}: ' in out and 'all is as it was written' in out
  assert 'IMPORTED' not in out


def test_the_package_itself_imports_nothing_heavy(tmp_path):
  out = _run('import gpt_jax, sys; print(*sys.modules)', tmp_path)
  modules = {name.partition('.')[0] for name in out.split()}
  assert 'gpt_jax' in modules
  assert not modules & {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'absl', 'tiktoken'}


def test_imports_go_down_the_rooms_of_the_house():
  done = subprocess.run(
    [sys.executable, '-c', 'from importlinter import cli; cli.lint_imports_command()'],
    cwd=_ROOT,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert ' 0 broken' in done.stdout
