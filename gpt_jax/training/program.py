"""The compiled functions of a run, built from shapes alone: abstract first, arrays last."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import device_memory
from gpt_jax.models import gpt
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Program:
  """A run's functions for one config and mesh, not yet compiled.

  Attributes:
    config: the run's config, with `model.attention` resolved.
    mesh: the devices.
    state: the abstract train state: shapes, types and shardings.
    batch: the abstract batch; it has segments if `data.chunks` is packed.
    init: () -> state of step 0; `config.train.seed` decides it, whatever the mesh.
    train_step: (state, batch) -> (state, metrics); the state is donated.
    eval_step: (params, batch) -> (sum of the losses, number of targets).
  """

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  state: step_lib.TrainState
  batch: step_lib.Batch
  init: Callable[[], step_lib.TrainState]
  train_step: Any
  eval_step: Any

  @property
  def tokens_per_step(self) -> int:
    return self.batch.inputs_ABL.size

  def compile(self) -> 'Program':
    """Compiles both steps for the shapes at hand; anything else they are given is an error."""
    train_step = self.train_step.lower(self.state, self.batch).compile()
    eval_step = self.eval_step.lower(self.state.params, self.batch).compile()
    return dataclasses.replace(self, train_step=train_step, eval_step=eval_step)

  def step_bytes(self) -> int:
    """Bytes on one device beside the state while a compiled step runs; 0 if XLA doesn't tell."""
    analysis = self.train_step.memory_analysis()
    return analysis.temp_size_in_bytes if analysis is not None else 0


def build(config: config_lib.Config) -> Program:
  """The program of a resolved config (`model.vocab_size` known) on all devices.

  Raises:
    UserError: the config doesn't fit the devices.
  """
  mesh = mesh_lib.make_mesh(config)
  config = dataclasses.replace(config, model=_resolve_attention(config))
  model = gpt.GPT(config.model)
  schedule = optimizer_lib.make_schedule(config.optimizer, config.train.steps)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule)
  params_key, dropout_key = jax.random.split(jax.random.key(config.train.seed))

  init = functools.partial(step_lib.init_state, model, optimizer, params_key)
  shapes = jax.eval_shape(init)
  shardings = sharding.tree_shardings(mesh, shapes)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )
  train, model_config = config.train, config.model
  shape = (
    train.gradient_accumulation,
    train.batch_size // train.gradient_accumulation,
    model_config.block_size,
  )
  tokens: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.batch_sharding(mesh))
  segments = tokens if config.data.chunks == 'packed' else None
  train_step = step_lib.make_train_step(model, optimizer, schedule, dropout_key)
  return Program(
    config=config,
    mesh=mesh,
    state=state,
    batch=step_lib.Batch(tokens, tokens, segments),
    init=jax.jit(init, out_shardings=shardings),
    train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
    eval_step=jax.jit(step_lib.make_eval_step(model)),
  )


def _resolve_attention(config: config_lib.Config) -> config_lib.ModelConfig:
  """`auto` becomes what suits the backend."""
  model = config.model
  if model.attention != 'auto':
    return model
  # cuDNN's kernel takes 16-bit floats and head widths up to 256 in steps of 8, and has no dropout.
  fits = model.dtype == 'bfloat16' and not model.dropout
  fits = fits and model.head_width % 8 == 0 and model.head_width <= 256
  # Nor can it keep packed documents apart.
  fits = fits and config.data.chunks != 'packed'
  nvidia = jax.devices()[0].device_kind.startswith('NVIDIA')
  return dataclasses.replace(model, attention='cudnn' if fits and nvidia else 'xla')


@contextlib.contextmanager
def out_of_memory_is_the_users() -> Iterator[None]:
  """A context in which XLA's out-of-memory errors become a `UserError` that names the remedies."""
  with device_memory.shortage_is_the_users(
    'raise --config.train.gradient_accumulation, set --config.model.remat=true, shard the state '
    'with --config.mesh.fsdp, or lower --config.train.batch_size'
  ):
    yield
