"""A path to a model that can be used: what every `--model=PATH` and `gpt_jax.load` accept."""

import dataclasses
import os
import pathlib

import jax

from gpt_jax import errors
from gpt_jax.generation import text
from gpt_jax.models import gpt
from gpt_jax.training import checkpoints as checkpoints_lib
from gpt_jax.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, and the step of the checkpoint that it was read from."""

  model: text.TextModel
  step: int


def load(path: str | os.PathLike[str]) -> Loaded:
  """Reads a model onto the first device. No code from `path` is run, nothing is unpickled.

  Args:
    path: a run's workdir, which gives the checkpoint with the best validation loss (the newest if
      none was measured), or one checkpoint in it (WORKDIR/checkpoints/STEP).

  Raises:
    UserError: there is no model, or it is damaged.
  """
  path = pathlib.Path(path)
  wanted = int(path.name) if path.parent.name == 'checkpoints' and path.name.isdecimal() else None
  workdir = workdir_lib.Workdir(path if wanted is None else path.parent.parent)
  if not os.path.isfile(workdir.config) or not os.path.isdir(workdir.checkpoints):
    raise errors.UserError(
      f'{path} has no model: give the workdir of a run (the directory with config.json and '
      f'checkpoints), for example runs/quickstart, or one checkpoint in it.{_runs_at_hand()}'
    )
  config = workdir.read_config()
  if not config.model.vocab_size:
    raise errors.UserError(f'{workdir.config} is damaged: it must tell model.vocab_size')
  tokenizer = workdir.read_tokenizer()
  with checkpoints_lib.Checkpoints(workdir.checkpoints, keep=1, read_only=True) as checkpoints:
    steps = checkpoints.steps()
    if not steps:
      raise errors.UserError(f'{workdir.path} has no finished checkpoint yet: train it further.')
    if wanted is not None and wanted not in steps:
      have = ', '.join(map(str, steps))
      raise errors.UserError(f'{path} is not a finished checkpoint; there are: {have}.')
    best = checkpoints.best_step()
    step = wanted if wanted is not None else best if best is not None else steps[-1]
    params = checkpoints.restore_params(step, gpt.abstract_params(config.model, _first_device()))
  # Decoding has an attention of its own, and the machine need not be the one that trained.
  model = dataclasses.replace(config.model, attention='xla')
  return Loaded(text.TextModel(model, params, tokenizer), step)


def _first_device() -> jax.sharding.Sharding:
  return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _runs_at_hand() -> str:
  runs = sorted(str(path.parent) for path in pathlib.Path('runs').glob('*/config.json'))
  return f' Runs here: {", ".join(runs)}.' if runs else ''
