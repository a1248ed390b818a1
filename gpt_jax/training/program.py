"""The compiled functions of a run, built from shapes alone: abstract first, arrays last."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs, models, oom
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.data.batches import spans
from gpt_jax.models import classifier, lora
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import step as step_lib
from gpt_jax.weights import checkpoints as checkpoints_lib
from gpt_jax.weights import saved_model


def resolve(
  config: config_lib.Config,
  tokenizer: tokenizers.Tokenizer,
  classes: Sequence[str],
  mesh: jax.sharding.Mesh,
) -> config_lib.Config:
  """Returns `config` with the vocabulary, classes and attention kernel that the run will have.

  Raises:
    UserError: `model.vocab_size` isn't the tokenizer's, `model.classes` aren't those of the data,
      or the mesh can't shard it.
  """
  model, size = config.model, tokenizer.vocab_size
  names = ','.join(classes) if config.task == 'classify' else ''
  if model.classes not in ('', names):
    problem = f'{model.classes!r} must be empty or {names!r}, those of the data'
    raise errors.UserError('model.classes', problem)
  if model.vocab_size not in (0, size):
    raise errors.UserError(
      'model.vocab_size',
      f"{model.vocab_size} must be 0 or {size}, the {tokenizer.kind} tokenizer's",
      '`model.pad_vocab_to` rounds the embedding up',
    )
  masked = config.task in ('masked', 'spans')
  if masked and tokenizer.mask_id is None:
    problem = f'the {tokenizer.kind} tokenizer has no token to mask others with, such as [MASK]'
    raise errors.UserError('data.tokenizer', problem, 'use another')
  attention = model.attention
  if attention == 'auto':
    kind, attention = mesh.devices.flat[0].device_kind, 'xla'
    # cuDNN's kernel takes 16-bit floats and head widths up to 256 in steps of 8; it has no dropout
    # and can't keep packed documents apart.
    narrow = model.head_width % 8 == 0 and model.head_width <= 256
    if model.dropout or model.kind not in ('gpt', 'encoder'):
      pass
    elif kind.startswith('NVIDIA') and model.dtype == 'bfloat16' and not config.has_segments:
      attention = 'cudnn' if narrow else 'xla'
    elif kind.startswith('TPU') and config.row_length % 128 == 0:
      attention = 'splash'
  resolved: config_lib.Config = knobs.replace(
    config,
    {
      'model.vocab_size': size,
      'model.classes': names,
      'model.mask_id': tokenizer.mask_id if masked else -1,
      'model.attention': attention,
    },
  )
  mesh_lib.check_divisible(resolved, mesh)
  return resolved


def check_memory(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises `UserError` if the state, or the rows of a micro-batch, can't fit a device.

  Counts the least, without a look at the data: the blocks' matrices; a hidden state a token.
  """
  model, train, shape = config.model, config.train, mesh.shape
  size = 4 * model.lstm_width**2 if model.kind == 'lstm' else 12 * model.n_embd**2
  # Adam has two moments of each value, Muon one.
  copies = 2 + (config.optimizer.kind == 'adamw') + (config.optimizer.ema_decay > 0)
  if model.lora_rank or model.freeze_body:
    copies = 1
  state = 4 * copies * model.n_layer * size / (shape['fsdp'] * shape['tensor'])
  key = 'lstm_width' if model.kind == 'lstm' else 'n_embd'
  what = f'{getattr(model, key)} × `model.n_layer` ({model.n_layer}): the parameters'
  oom.check(f'model.{key}', what, state)
  tokens = train.batch_size * config.row_length / (shape['data'] * shape['fsdp'])
  hidden = tokens / train.gradient_accumulation * model.n_layer * model.hidden_width
  rows = f'{train.batch_size} sequences of {config.row_length} tokens (`model.block_size`)'
  oom.check('train.batch_size', rows, 2 * hidden + 8 * tokens)


@dataclasses.dataclass(frozen=True)
class Program:
  """The functions of a run for one resolved config on one mesh.

  Attributes:
    config: The config.
    state: The abstract train state: shapes, types and shardings.
    tokens: The abstract array (A, B, L) of inputs, targets and segments of a batch, but see
      `batch`.
    init: () -> state of step 0; `train.seed` decides it, whatever the mesh.
    train_step: (state, batch) -> (state, metrics); the state is donated.
    eval_step: (params, batch) -> sums as of `objectives.evaluate`.
  """

  config: config_lib.Config
  state: step_lib.TrainState
  tokens: jax.ShapeDtypeStruct
  init: Callable[[], step_lib.TrainState]
  train_step: Any
  eval_step: Any

  @property
  def batch(self) -> batch_lib.Batch:
    """The abstract batch; spans are shorter than the texts that lack them."""
    segments = self.tokens if self.config.has_segments else None
    sources = self.tokens if self.config.model.kind == 'encoder_decoder' else None
    targets = self.tokens
    if self.config.task == 'spans':
      A, B, L = targets.shape
      targets = targets.update(shape=(A, B, spans.target_length(L)))
    return batch_lib.Batch(targets, targets, segments, sources)

  def compiler_options(self, kernels: pathlib.Path | None = None) -> dict[str, str | bool]:
    """Returns options for XLA; `kernels` as of `mesh.compiler_options`."""
    mesh, train = self.tokens.sharding.mesh, self.config.train
    return mesh_lib.compiler_options(mesh, deterministic=train.deterministic, kernels=kernels)

  def compile(self, kernels: pathlib.Path | None = None) -> 'Program':
    """Returns the program with both steps compiled: any other shapes are an error then.

    If training is to be deterministic, `kernels` is the file of the run that keeps which kernels it
    uses on GPUs, which choose by measuring.
    """
    options = self.compiler_options(kernels)
    train_step = self.train_step.lower(self.state, self.batch).compile(options)
    eval_step = self.eval_step.lower(self.state.params, self.batch).compile(options)
    if kernels and (new := kernels.with_name(f'{kernels.name}.new')).exists():
      new.replace(kernels)
    return dataclasses.replace(self, train_step=train_step, eval_step=eval_step)

  def initial_state(self, pretrained: saved_model.SavedModel | None) -> step_lib.TrainState:
    """Returns a state of step 0: its parameters random or, where it has them, the pretrained."""
    state = self.init()
    if pretrained is None:
      return state

    def is_new(path: tuple[str, ...]) -> bool:
      other_classes = pretrained.config.classes != self.config.model.classes
      return path[-1] in lora.NAMES or (path[0] == classifier.NAME and other_classes)

    # Frees the random base before the other takes memory.
    new, state = lora.split_by(state.params, is_new)[0], state._replace(params=None)
    base = pretrained.load(lora.split_by(self.state.params, is_new)[1])
    state = state._replace(params=lora.join(new, base))
    if isinstance(state.opt_state, optimizer_lib.AverageState):
      trained, _ = models.split_trained(self.config.model, state.params)
      average = jax.tree.map(jnp.copy, trained)  # a step donates both
      state = state._replace(opt_state=state.opt_state._replace(average=average))
    return state

  def restored_state(self, checkpoint: pathlib.Path) -> step_lib.TrainState:
    """Returns the state of a checkpoint, laid out like `state`; raises `UserError` if damaged."""
    abstract = {'params': self.state.params, 'optimizer': self.state.opt_state}
    saved = checkpoints_lib.restore(checkpoint, abstract)
    count = jax.device_put(np.int32(checkpoint.name), self.state.step.sharding)
    state = step_lib.TrainState(count, saved['params'], saved['optimizer'])
    return step_lib.swap_average(self.config.model, state)


def build(config: config_lib.Config, mesh: jax.sharding.Mesh) -> Program:
  """Returns the program of a resolved config, not compiled yet."""
  model = models.make(config.model)
  schedule = optimizer_lib.make_schedule(config.optimizer, config.train.steps)
  optimizer = optimizer_lib.make_optimizer(config.optimizer, schedule)
  params_key, dropout_key = jax.random.split(jax.random.key(config.train.seed))
  init = functools.partial(step_lib.init_state, model, optimizer, params_key)
  state = sharding.place(mesh, jax.eval_shape(init))
  shardings = jax.tree.map(lambda x: x.sharding, state)
  parts = config.train.gradient_accumulation
  shape = (parts, config.train.batch_size // parts, config.row_length)
  on_mesh = functools.partial(sharding.on_mesh, mesh)
  train_step = step_lib.make_train_step(model, optimizer, schedule, dropout_key)
  return Program(
    config=config,
    state=state,
    tokens=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=mesh_lib.batch_sharding(mesh)),
    init=jax.jit(init, out_shardings=shardings),
    train_step=jax.jit(on_mesh(train_step), donate_argnums=0, out_shardings=(shardings, None)),
    eval_step=jax.jit(on_mesh(step_lib.make_eval_step(model))),
  )
