"""Check this machine: python -m gpt_jax.doctor

Prints a line for each thing that training needs: what there is, or what is wrong and what helps.
The last one trains a tiny model, saves it, reads it back and samples. Exit code 2: something is
wrong.
"""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator

from absl import flags

from gpt_jax import cli, errors, progress, user_cache
from gpt_jax import config as config_lib

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tiktoken')


def define_flags() -> flags.FlagValues:
  return flags.FlagValues()


def main(_: flags.FlagValues) -> None:
  checks = {
    'versions': _versions,
    'this folder': _folder,
    'compiled programs': _compilation_cache,
    'vocabulary': _vocabulary,
    'devices': _devices,
    'train and sample': _cycle,
  }
  wrong = list[str]()
  for name, check in checks.items():
    try:
      with progress.doing(name):
        mark, text = ('-', 'not tried') if 'devices' in wrong else ('ok', check())
    except errors.UserError as e:
      mark, text = 'WRONG', f'{e.problem}; {e.fix}'
      wrong.append(name)
    wrap = textwrap.TextWrapper(100, f'{mark:>5}  {name:<17}  ', ' ' * 26, break_long_words=False)
    print(wrap.fill(text), flush=True)
  if wrong:
    sys.exit(cli.USER_ERROR)


def _versions() -> str:
  found = [f'python {platform.python_version()}']
  for name in _PACKAGES:
    try:
      found.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError as e:
      raise errors.UserError(name, f'{name} is not installed', 'pip install gpt_jax') from e
  return ', '.join(found)


def _devices() -> str:
  from gpt_jax import oom
  from gpt_jax.parallel import mesh

  mesh.start(config_lib.MeshConfig())
  devices = mesh.find_devices()
  has_gpu = shutil.which('nvidia-smi') and devices[0].platform == 'cpu'
  if has_gpu and not os.environ.get('JAX_PLATFORMS'):
    raise errors.UserError(
      'devices', 'there is an NVIDIA GPU, which JAX does not see', 'pip install gpt_jax[cuda]'
    )
  memory = oom.device_memory() / 1e9
  return f'{len(devices)} × {devices[0].device_kind}, {memory:.0f} GB each'


def _compilation_cache() -> str:
  import jax

  user_cache.enable_compilation_cache()
  config: object = jax.config
  path = getattr(config, 'jax_compilation_cache_dir', None)
  if not path:
    problem = f'{user_cache.folder()} cannot be written: each start compiles again'
    raise errors.UserError('cache', problem, 'set XDG_CACHE_HOME to a folder that can')
  _write(pathlib.Path(path))
  return str(path)


def _vocabulary() -> str:
  from gpt_jax.data.tokenizers import bpe

  return f"GPT-2's, {len(bpe.mergeable_ranks(bpe.find_merges())):,} merges"


def _folder() -> str:
  folder = pathlib.Path.cwd()
  _write(folder)
  return f'{folder}, {shutil.disk_usage(folder).free / 1e9:,.0f} GB free'


def _write(folder: pathlib.Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as e:
    problem = f'{folder} cannot be written ({e.strerror})'
    raise errors.UserError('folder', problem, 'use another, or change its rights') from e


def _cycle() -> str:
  """Trains for 20 steps, resumes for 10 more, and samples."""
  began = time.monotonic()
  from gpt_jax import train
  from gpt_jax.generation import language_model
  from gpt_jax.training import metrics

  with tempfile.TemporaryDirectory() as name, _silence():
    folder = pathlib.Path(name)
    (folder / 'text.txt').write_text('the sea, the sea and the sand; a wave. ' * 100)
    for steps in (20, 30):
      train.train(_tiny(folder, steps), folder / 'run')
    losses = metrics.column(metrics.read(folder / 'run' / 'metrics.jsonl'), 'val/loss')[1]
    language_model.load(folder / 'run').generate(['the sea'], max_new_tokens=8)
  change = f'loss {losses[0]:.2f} → {losses[-1]:.2f} in 30 steps'
  if not losses[-1] < losses[0]:
    raise errors.UserError('loss', change, 'report it, with these lines')
  return f'{change}, saved, resumed and sampled in {time.monotonic() - began:.0f} s'


def _tiny(folder: pathlib.Path, steps: int) -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16),
    data=config_lib.DataConfig(
      source=f'text:{folder / "text.txt"}', tokenizer='byte', cache_dir=str(folder / 'cache')
    ),
    train=config_lib.TrainConfig(steps=steps, batch_size=16, eval_batches=1),
    optimizer=config_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule='constant'),
  )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
  with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    yield


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__)
