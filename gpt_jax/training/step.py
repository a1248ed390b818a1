"""The train state and the pure functions on it: initialise, train one step, evaluate one batch.

Shapes in names: A gradient accumulation, B batch (sequences of one part), L length, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt_jax.models import gpt


class TrainState(NamedTuple):
  """Everything that a step changes. Gradients and moments have the shapes of `params`."""

  step: jax.Array  # int32 scalar: steps taken
  params: Any
  opt_state: Any


class Batch(NamedTuple):
  """Token ids, and the ids that follow each of them."""

  inputs_ABL: jax.Array
  targets_ABL: jax.Array


Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(
  model: gpt.GPT, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """A state of step 0 with random parameters, a function of `key` alone."""
  params = model.init(key, jnp.zeros((1, 1), jnp.int32))['params']
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def cross_entropy(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Mean negative log-likelihood of the targets, in nats a token (float32 scalar)."""
  return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, targets_BL).mean()


def make_train_step(
  model: gpt.GPT,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  key: jax.Array,
) -> TrainStep:
  """The function (state, batch) -> (state, metrics), to be jitted.

  The gradient is the mean over the A parts of the batch, computed one after the other. Dropout is a
  function of (`key`, step, part), so a resumed run draws what an unbroken one would.
  Metrics are those of the step: `loss` before the update, `grad_norm` before clipping,
  `learning_rate`.
  """

  def loss_fn(
    params: Any, inputs_BL: jax.Array, targets_BL: jax.Array, key: jax.Array
  ) -> jax.Array:
    logits_BLV, _ = model.apply(
      {'params': params}, inputs_BL, deterministic=False, rngs={'dropout': key}
    )
    return cross_entropy(logits_BLV, targets_BL)

  def gradients(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
    parts = batch.inputs_ABL.shape[0]
    value_and_grad = jax.value_and_grad(loss_fn)
    if parts == 1:
      part_key = jax.random.fold_in(key, 0)
      return value_and_grad(params, batch.inputs_ABL[0], batch.targets_ABL[0], part_key)

    def add_part(total: Any, part: Any) -> tuple[Any, None]:
      inputs_BL, targets_BL, i = part
      loss_and_grads = value_and_grad(params, inputs_BL, targets_BL, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, loss_and_grads), None

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add_part, zeros, (*batch, jnp.arange(parts)))
    return jax.tree.map(lambda x: x / parts, total)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    loss, grads = gradients(state.params, batch, jax.random.fold_in(key, state.step))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': schedule(state.step),
    }
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step


def make_eval_step(model: gpt.GPT) -> Callable[[Any, Batch], jax.Array]:
  """The function (params, batch) -> mean loss, to be jitted. Nothing is dropped out."""

  def eval_step(params: Any, batch: Batch) -> jax.Array:
    def part_loss(part: Batch) -> jax.Array:
      logits_BLV, _ = model.apply({'params': params}, part.inputs_ABL)
      return cross_entropy(logits_BLV, part.targets_ABL)

    return jax.lax.map(part_loss, batch).mean()

  return eval_step
