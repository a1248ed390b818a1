"""The train state and the pure functions on it: initialise, train one step, evaluate one batch.

Shapes in names: A gradient accumulation, B batch (sequences of one micro-batch), L length,
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import gpt, lora

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
  """Everything that a step changes."""

  step: jax.Array  # int32 scalar: the steps taken
  params: Any
  opt_state: Any  # moments and counts, of what is trained (`lora.split_trained`)


def init_state(
  model: gpt.GPT, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """Returns a state of step 0 with random parameters, a function of `key` alone."""
  params = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  trained, _ = lora.split_trained(params)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Returns the sum of the targets' negative log-likelihoods in nats, a float32 scalar.

  Targets that are IGNORED add nothing, and their logits get no gradient.
  """
  # Compared, not gathered: the gradient of a gather is a scatter into an array of logits, and a
  # gather from logits that are sharded along V would copy all of them to every device.
  is_target_BLV = jnp.arange(logits_BLV.shape[-1]) == targets_BL[..., None]
  target_logits_BL = jnp.where(is_target_BLV, logits_BLV, 0.0).sum(-1)
  losses_BL = jax.nn.logsumexp(logits_BLV, axis=-1) - target_logits_BL
  return jnp.where(targets_BL == batch_lib.IGNORED, 0.0, losses_BL).sum()


def _num_targets(targets: jax.Array) -> jax.Array:
  return (targets != batch_lib.IGNORED).sum(dtype=jnp.int32)


def _loss(
  model: gpt.GPT, trained: Any, frozen: Any, part: batch_lib.Batch, count: jax.Array, key: jax.Array
) -> jax.Array:
  """Returns the sum of a part's losses over `count`; a tied table may have a copy, `lm_head`."""
  params = lora.join(trained, frozen)
  if 'lm_head' in params:
    model = models.make(dataclasses.replace(model.config, tie_embeddings=False))
  logits_BLV, _ = model.apply(
    {'params': params},
    part.inputs,
    segments_BL=part.segments,
    deterministic=False,
    rngs={'dropout': key},
  )
  return cross_entropy(logits_BLV, part.targets) / count


def make_train_step(
  model: gpt.GPT,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  key: jax.Array,
) -> Callable[[TrainState, batch_lib.Batch], tuple[TrainState, Metrics]]:
  """Returns the function (state, batch) -> (state, metrics), to be jitted.

  Arrays of the batch have shape (A, B, L); its A micro-batches are computed in turn. The loss is
  the mean over all targets that aren't IGNORED, 0 if there are none. Dropout is a function of
  (`key`, step, micro-batch), so a resumed run draws what an unbroken one would.
  Metrics: `loss` before the update, `grad_norm` before clipping, `learning_rate`.
  """

  def gradients(
    trained: Any, frozen: Any, batch: batch_lib.Batch, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    # The two gradients of a tied table are added at the end: XLA moves a reduction among devices
    # out of a loop that adds it up, to once a step, but not that of a sum of two.
    is_tied = model.config.tie_embeddings and 'wte' in trained
    if is_tied:
      trained = {**trained, 'lm_head': trained['wte']['embedding']}
    loss, grads = summed(trained, frozen, batch, key)
    if is_tied:
      lm_head = grads.pop('lm_head')
      grads['wte'] = {'embedding': grads['wte']['embedding'] + lm_head}
    return loss, grads

  def summed(
    trained: Any, frozen: Any, batch: batch_lib.Batch, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    # Over the whole batch: micro-batches with more targets weigh more.
    count = jnp.maximum(_num_targets(batch.targets), 1)
    value_and_grad = jax.value_and_grad(functools.partial(_loss, model))
    if (A := batch.inputs.shape[0]) == 1:
      only = jax.tree.map(lambda x_ABL: x_ABL[0], batch)
      return value_and_grad(trained, frozen, only, count, jax.random.fold_in(key, 0))

    def add_part(total: Any, numbered: tuple[batch_lib.Batch, jax.Array]) -> tuple[Any, None]:
      part, i = numbered
      loss_and_grads = value_and_grad(trained, frozen, part, count, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, loss_and_grads), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.scan(add_part, zeros, (batch, jnp.arange(A)))[0]

  def train_step(state: TrainState, batch: batch_lib.Batch) -> tuple[TrainState, Metrics]:
    trained, frozen = lora.split_trained(state.params)
    loss, grads = gradients(trained, frozen, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params = lora.join(optax.apply_updates(trained, updates), frozen)
    metrics = {'grad_norm': optax.tree.norm(grads), 'learning_rate': schedule(state.step)}
    return TrainState(state.step + 1, params, opt_state), {'loss': loss, **metrics}

  return train_step


def make_eval_step(model: gpt.GPT) -> Callable[[Any, batch_lib.Batch], tuple[jax.Array, jax.Array]]:
  """Returns the function (params, batch) -> (sum of the losses, number of targets), to be jitted.

  The sum is float32, the number int32, without dropout; average batches by their numbers.
  """

  def eval_step(params: Any, batch: batch_lib.Batch) -> tuple[jax.Array, jax.Array]:
    def part_loss(part: batch_lib.Batch) -> jax.Array:
      logits_BLV, _ = model.apply({'params': params}, part.inputs, segments_BL=part.segments)
      return cross_entropy(logits_BLV, part.targets)

    return jax.lax.map(part_loss, batch).sum(), _num_targets(batch.targets)

  return eval_step
