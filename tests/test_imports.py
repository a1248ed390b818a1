"""What is imported, and what never is."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import gpt_jax

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
_TFDS = _ROOT.parent / 'shared' / 'data' / 'tfds'

# Prints each attempt to import PyTorch or TensorFlow, whether or not they are installed; asking
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

print(*sys.modules)
for module in pkgutil.walk_packages(gpt_jax.__path__, 'gpt_jax.'):
  importlib.import_module(module.name)
  print(module.name)
"""

_PREPARE_TRAIN_AND_SAMPLE = """
import runpy
for line in ('prepare --config=mine.py --verify', 'train --config=mine.py --workdir=run',
             'sample --model=run --max_new_tokens=5'):
  sys.argv = line.split()
  runpy.run_module(f'gpt_jax.{sys.argv[0]}', run_name='__main__')
print('ALL RAN')
"""

_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8),
    data=config_lib.DataConfig(source='tfds:tiny_shakespeare', tokenizer='char', cache_dir='cache'),
    train=config_lib.TrainConfig(steps=2, batch_size=8, eval_batches=1, tensorboard=True),
    optimizer=config_lib.OptimizerConfig(warmup_steps=0),
  )
"""


def _run(program, cwd, **env):
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=cwd,
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': '', **env},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_the_watch_sees_an_import(tmp_path):
  program = 'try:\n  import torch.nn\nexcept ImportError:\n  pass\n'
  assert 'IMPORTED torch' in _run(_WATCH + program, tmp_path)


def test_no_module_imports_torch_or_tensorflow_and_the_package_itself_nothing_heavy(tmp_path):
  out = _run(_WATCH + _EVERY_MODULE, tmp_path)
  first, *modules = out.splitlines()
  heavy = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'absl', 'tiktoken'}
  assert not heavy & {name.partition('.')[0] for name in first.split()}
  assert {'gpt_jax.train', 'gpt_jax.data.tokenizers.bpe', 'gpt_jax.training.loop'} <= set(modules)
  assert 'IMPORTED' not in out


def test_no_command_imports_torch_or_tensorflow(tmp_path):
  if not (_TFDS / 'tiny_shakespeare').is_dir():
    pytest.skip(f'no real data: {_TFDS}/tiny_shakespeare does not exist')
  (tmp_path / 'mine.py').write_text(_CONFIG)
  out = _run(_WATCH + _PREPARE_TRAIN_AND_SAMPLE, tmp_path, TFDS_DATA_DIR=str(_TFDS))
  assert 'ALL RAN' in out and 'tfds:tiny_shakespeare: ' in out and 'IMPORTED' not in out
  assert list((tmp_path / 'run' / 'tensorboard').iterdir())


def test_no_module_imports_what_windows_lacks_when_it_is_imported():
  posix = {'fcntl', 'grp', 'pwd', 'readline', 'resource', 'termios', 'tty'}
  for path in pathlib.Path(gpt_jax.__file__).parent.rglob('*.py'):
    for node in ast.parse(path.read_text('utf-8')).body:
      names = [alias.name for alias in getattr(node, 'names', [])] + [getattr(node, 'module', '')]
      assert not posix & set(names), f'{path}: line {node.lineno}'


def test_no_other_command_shadows_a_module_of_the_standard_library():
  names = {path.stem for path in pathlib.Path(gpt_jax.__file__).parent.iterdir()}
  # By `python -m`, as commands are run, a module of a package shadows nothing.
  assert 'train' in names and names & set(sys.stdlib_module_names) == {'inspect'}
