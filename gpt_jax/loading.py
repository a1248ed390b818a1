"""A path to a model that can be used: what every `--model=PATH` and `gpt_jax.load` accept."""

import dataclasses
import os

import jax

from gpt_jax import errors
from gpt_jax.generation import text
from gpt_jax.models import gpt
from gpt_jax.training import optimizer
from gpt_jax.training import origin as origin_lib

_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model, and the step of the checkpoint that it was read from (None: published weights)."""

  model: text.TextModel
  step: int | None


def load(path: str | os.PathLike[str], *, dtype: str = 'auto') -> Loaded:
  """Reads a model onto the first device. No code from `path` is run, nothing is unpickled.

  Args:
    path: as `training.origin.open_origin` takes it: a workdir, a checkpoint, or published weights.
    dtype: What to compute in, and to keep the matrices in: float32, bfloat16, or auto: as the model
      was trained (published weights: float32), but always float32 on a CPU, which is slower in
      bfloat16.

  Raises:
    UserError: there is no model, or it is damaged, or there is no such `dtype`.
  """
  if dtype not in ('auto', *_DTYPES):
    raise errors.UserError(f'dtype: {dtype!r} must be one of auto, {", ".join(_DTYPES)}')
  origin = origin_lib.open_origin(path)
  device = jax.devices()[0]
  if dtype == 'auto':
    dtype = 'float32' if device.platform == 'cpu' else origin.config.dtype
  abstract = gpt.abstract_params(origin.config, jax.sharding.SingleDeviceSharding(device))
  params = origin.params(abstract)
  # The products would round them in any case, each time; what is no matrix stays as it is.
  matrices = optimizer.decayed(params)
  params = jax.tree.map(lambda x, matrix: x.astype(dtype) if matrix else x, params, matrices)
  # Decoding has an attention of its own, and the machine need not be the one that trained.
  config = dataclasses.replace(origin.config, attention='xla', dtype=dtype)
  return Loaded(text.TextModel(config, params, origin.tokenizer), origin.step)
