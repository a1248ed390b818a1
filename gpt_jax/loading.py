"""A path to a model that can be used: what every `--model=PATH` and `gpt_jax.load` accept."""

import dataclasses
import os

import jax

from gpt_jax.generation import text
from gpt_jax.models import gpt
from gpt_jax.training import origin as origin_lib


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, and the step of the checkpoint that it was read from (None: published weights)."""

  model: text.TextModel
  step: int | None


def load(path: str | os.PathLike[str]) -> Loaded:
  """Reads a model onto the first device. No code from `path` is run, nothing is unpickled.

  Args:
    path: as `training.origin.open_origin` takes it: a workdir, a checkpoint, or published weights.

  Raises:
    UserError: there is no model, or it is damaged.
  """
  origin = origin_lib.open_origin(path)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = origin.params(gpt.abstract_params(origin.config, device))
  # Decoding has an attention of its own, and the machine need not be the one that trained.
  config = dataclasses.replace(origin.config, attention='xla')
  return Loaded(text.TextModel(config, params, origin.tokenizer), origin.step)
