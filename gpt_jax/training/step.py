"""The train state and the pure functions on it: initialise, train one step, evaluate one batch.

Shapes in names: A gradient accumulation, B batch (sequences of one part), L length, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt_jax.models import gpt, lora

IGNORED = -1  # a target that nothing is to be predicted for


class TrainState(NamedTuple):
  """Everything that a step changes.

  Gradients and moments have the shapes of `params`, or of the adapters among them if there are any
  (`lora.split_trained`): the others stay as they are.
  """

  step: jax.Array  # int32 scalar: steps taken
  params: Any
  opt_state: Any


class Batch(NamedTuple):
  """Token ids, and the ids that follow each of them."""

  inputs_ABL: jax.Array  # int32
  targets_ABL: jax.Array  # int32, IGNORED where the loss doesn't count
  # int32: numbers the documents packed into a row from 1, 0 is padding; None: rows aren't packed.
  segments_ABL: jax.Array | None = None


Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
  model: gpt.GPT, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """A state of step 0 with random parameters, a function of `key` alone."""
  params = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  trained, _ = lora.split_trained(params)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Sum of the negative log-likelihoods of the targets, in nats (float32 scalar).

  Targets that are IGNORED add nothing, and the logits there get no gradient.
  """
  losses_BL = optax.softmax_cross_entropy_with_integer_labels(
    logits_BLV, jnp.maximum(targets_BL, 0)
  )
  return jnp.where(targets_BL == IGNORED, 0.0, losses_BL).sum()


def _count(targets: jax.Array) -> jax.Array:
  """How many targets are to be predicted, int32."""
  return (targets != IGNORED).sum(dtype=jnp.int32)


def make_train_step(
  model: gpt.GPT,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  key: jax.Array,
) -> TrainStep:
  """The function (state, batch) -> (state, metrics), to be jitted.

  The loss is the mean over all targets of the batch that aren't IGNORED, 0 if there is none; its A
  parts are computed one after the other. Dropout is a function of (`key`, step, part), so a resumed
  run draws what an unbroken one would.
  Metrics are those of the step: `loss` before the update, `grad_norm` before clipping,
  `learning_rate`.
  """

  def loss_fn(
    trained: Any, frozen: Any, part: Batch, count: jax.Array, key: jax.Array
  ) -> jax.Array:
    logits_BLV, _ = model.apply(
      {'params': lora.join(trained, frozen)},
      part.inputs_ABL,
      segments_BL=part.segments_ABL,
      deterministic=False,
      rngs={'dropout': key},
    )
    return cross_entropy(logits_BLV, part.targets_ABL) / count

  def gradients(trained: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
    parts = batch.inputs_ABL.shape[0]
    # Of the whole batch: parts with more targets weigh more.
    count = jnp.maximum(_count(batch.targets_ABL), 1)
    value_and_grad = jax.value_and_grad(loss_fn)
    if parts == 1:
      only = jax.tree.map(lambda x: x[0], batch)
      return value_and_grad(trained, frozen, only, count, jax.random.fold_in(key, 0))

    def add_part(total: Any, numbered: tuple[Batch, jax.Array]) -> tuple[Any, None]:
      part, i = numbered
      loss_and_grads = value_and_grad(trained, frozen, part, count, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, loss_and_grads), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    return jax.lax.scan(add_part, zeros, (batch, jnp.arange(parts)))[0]

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    trained, frozen = lora.split_trained(state.params)
    loss, grads = gradients(trained, frozen, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, lora.join(trained, frozen), opt_state), metrics

  return train_step


def make_eval_step(model: gpt.GPT) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
  """The function (params, batch) -> (sum of the losses, number of targets), to be jitted.

  The sum is float32, the number int32: that of the targets that aren't IGNORED. Batches are to be
  averaged by their numbers. Nothing is dropped out.
  """

  def eval_step(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    def part_loss(part: Batch) -> jax.Array:
      logits_BLV, _ = model.apply(
        {'params': params}, part.inputs_ABL, segments_BL=part.segments_ABL
      )
      return cross_entropy(logits_BLV, part.targets_ABL)

    return jax.lax.map(part_loss, batch).sum(), _count(batch.targets_ABL)

  return eval_step
