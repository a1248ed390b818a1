"""Damaged files of models, runs and text: a user error or no harm, and little memory."""

import collections
import pathlib
import random
import resource
import shutil
import traceback
from collections.abc import Callable
from typing import Any

from gpt_jax import errors
from tests import damage
from tests.chaos import child, kills

_FIXTURES = pathlib.Path(__file__).parents[1] / 'weights' / 'fixtures'
_IN_ONE = 50  # damages in a process
_ROOM = 64 << 20  # bytes


def _load(folder: pathlib.Path) -> None:
  import jax

  from gpt_jax import models
  from gpt_jax.weights import saved_model

  model = saved_model.open_model(folder)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  model.load(models.abstract_params(model.config, sharding))


def _look(folder: pathlib.Path) -> None:
  """Reads what a run says of itself, and its newest checkpoint."""
  from gpt_jax.training import overview
  from gpt_jax.training import run as run_lib

  overview.read(folder)
  run = run_lib.Run(folder)
  run.read_tokenizer()
  run.find_intact()


def _open_store(folder: pathlib.Path) -> None:
  from gpt_jax.data import store

  opened = store.Store.open(folder)
  opened.verify(lambda _: None)
  opened.tokenizer()


def trial(folder: pathlib.Path, count: int) -> child.Result:
  """Damages files `count` times and reads them; returns what was found."""
  log, run = folder / 'log', folder / 'run'
  status, _ = child.call(log, child.run, kills.config_of(folder, steps=4), run)
  assert status == 0, log.read_text()
  (kept,) = (path.parent for path in (folder / 'cache').rglob('manifest.json'))
  kinds: list[tuple[pathlib.Path, Callable[[pathlib.Path], None]]] = [
    *((_FIXTURES / 'huggingface' / name, _load) for name in ('tied', 'sharded')),
    (_FIXTURES / 'openai_tiny', _load),
    (run, _load),
    (run, _look),
    (kept, _open_store),
  ]
  found: collections.Counter[str] = collections.Counter()
  for first in range(0, count, _IN_ONE):
    source, read = kinds[first // _IN_ONE % len(kinds)]
    seeds = range(first, min(count, first + _IN_ONE))
    status, outcomes = child.call(log, _damage_and_read, source, read, folder / 'copy', seeds)
    found.update(outcomes or [f'process ended with {status}: {log.read_text()[-300:]}'])
  text = ', '.join(f'{number} {what}' for what, number in found.items())
  return child.Result(f'{count} damages: {text}', count - found['read'] - found['refused'])


def _damage_and_read(
  source: pathlib.Path, read: Callable[[Any], None], copy: pathlib.Path, seeds: range
) -> list[str]:
  shutil.rmtree(copy, ignore_errors=True)
  read(shutil.copytree(source, copy))  # imports and compiles what it needs
  return [_outcome(source, read, copy, seed) for seed in seeds]


def _outcome(
  source: pathlib.Path, read: Callable[[Any], None], copy: pathlib.Path, seed: int
) -> str:
  shutil.rmtree(copy)
  shutil.copytree(source, copy)
  rng = random.Random(seed)
  path = rng.choice([path for path in copy.rglob('*') if path.is_file() and path.stat().st_size])
  path.write_bytes(damage.damaged(path.read_bytes(), seed))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    read(copy)
    what = 'read'
  except errors.UserError:
    what = 'refused'
  except Exception as e:
    traceback.print_exc()
    what = f'{type(e).__name__} ({path.name}, seed {seed})'
  grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
  size = sum(file.stat().st_size for file in source.rglob('*') if file.is_file())
  return what if grown <= 2 * size + _ROOM else f'took {grown >> 20} MB ({path.name}, seed {seed})'
