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

from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import lora
from gpt_jax.training import objectives
from gpt_jax.training import optimizer as optimizer_lib

Metrics = dict[str, jax.Array]

_MOST = 1e18  # norm of a gradient or of parameters: float32 holds squares up to 3e38


class TrainState(NamedTuple):
  """Everything that a step changes."""

  step: jax.Array  # int32 scalar: the steps taken
  params: Any
  opt_state: Any  # moments, counts, an average if any, of what `models.split_trained` trains


def init_state(
  model: models.Model, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
  """Returns a state of step 0 with random parameters, a function of `key` alone."""
  params = models.init(model.config, key)
  trained, _ = models.split_trained(model.config, params)
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(trained))


def swap_average(model: config_lib.ModelConfig, state: TrainState) -> TrainState:
  """Exchanges what is trained and its average, if `state` has one; twice changes nothing.

  The average is the model; training goes on from what isn't averaged.
  """
  if not isinstance(state.opt_state, optimizer_lib.AverageState):
    return state
  trained, frozen = models.split_trained(model, state.params)
  params = lora.join(state.opt_state.average, frozen)
  return state._replace(params=params, opt_state=state.opt_state._replace(average=trained))


def _loss(
  model: models.Model,
  trained: Any,
  frozen: Any,
  part: batch_lib.Batch,
  count: jax.Array,
  key: jax.Array,
) -> jax.Array:
  """Returns the sum of a part's losses over `count`; a tied table may have a copy, `lm_head`."""
  params = lora.join(trained, frozen)
  if 'lm_head' in params:
    model = models.make(dataclasses.replace(model.config, tie_embeddings=False))
  return objectives.loss(model, params, part, key) / count


def _gradients(
  model: models.Model, trained: Any, frozen: Any, batch: batch_lib.Batch, key: jax.Array
) -> tuple[jax.Array, Any]:
  """Returns the loss of a batch and its gradient, a tree like `trained`."""
  # The two gradients of a tied table are added at the end: XLA moves a reduction among devices
  # out of a loop that adds it up, to once a step, but not that of a sum of two.
  is_tied = model.config.tie_embeddings and not model.config.classes and 'wte' in trained
  if is_tied:
    trained = {**trained, 'lm_head': trained['wte']['embedding']}
  loss, grads = _summed(model, trained, frozen, batch, key)
  if is_tied:
    lm_head = grads.pop('lm_head')
    grads['wte'] = {'embedding': grads['wte']['embedding'] + lm_head}
  return loss, grads


def _summed(
  model: models.Model, trained: Any, frozen: Any, batch: batch_lib.Batch, key: jax.Array
) -> tuple[jax.Array, Any]:
  """Adds up loss and gradients of the micro-batches."""
  # Over the whole batch: micro-batches with more targets weigh more.
  count = jnp.maximum(objectives.num_targets(batch.targets), 1)
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


def make_train_step(
  model: models.Model,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  key: jax.Array,
) -> Callable[[TrainState, batch_lib.Batch], tuple[TrainState, Metrics]]:
  """Returns the function (state, batch) -> (state, metrics), to be jitted.

  Arrays of the batch have shape (A, B, L); its A micro-batches are computed in turn. The loss is
  the mean over all targets that aren't IGNORED, 0 if there are none. Dropout is a function of
  (`key`, step, micro-batch), so a resumed run draws what an unbroken one would.

  A step whose loss or gradient isn't finite, or beyond all reason, changes nothing but `step`: it
  is as if its batch had never been seen. `optimizer` must give finite parameters and moments for
  others, as that of `optimizer.make_optimizer` does.

  Metrics: `loss` before the update, `grad_norm` before clipping, `learning_rate`, `skipped` (0, 1).
  """

  def train_step(state: TrainState, batch: batch_lib.Batch) -> tuple[TrainState, Metrics]:
    trained, frozen = models.split_trained(model.config, state.params)
    step_key = jax.random.fold_in(key, state.step)
    # Micro-batches have the keys before this one.
    mask_key = jax.random.fold_in(step_key, batch.inputs.shape[0])
    batch = objectives.prepare(model.config, batch, mask_key)
    loss, grads = _gradients(model, trained, frozen, batch, step_key)
    old = (trained, state.opt_state)

    def update() -> tuple[Any, Any]:
      updates, opt_state = optimizer.update(grads, state.opt_state, trained)
      return optax.apply_updates(trained, updates), opt_state

    with jax.named_scope('optimizer'):
      grad_norm, norm = optax.tree.norm(grads), optax.tree.norm(trained)
      # Not the result itself: to look at that before the old state is gone takes memory for both.
      is_good = jnp.isfinite(loss) & (grad_norm < _MOST) & (norm < _MOST)
      params, opt_state = jax.lax.cond(is_good, update, lambda: old)
    metrics = {
      'loss': loss,
      'grad_norm': grad_norm,
      'learning_rate': schedule(_updates(state)),
      'skipped': 1 - is_good.astype(jnp.float32),
    }
    return TrainState(state.step + 1, lora.join(params, frozen), opt_state), metrics

  return train_step


def _updates(state: TrainState) -> jax.Array:
  """Returns how many steps have changed something: what the schedule of `opt_state` counts."""

  def is_of_schedule(path: Any, _: Any) -> bool:
    return getattr(path[-1], 'tuple_name', '') == 'ScaleByScheduleState'

  count = optax.tree.get(state.opt_state, 'count', state.step, filtering=is_of_schedule)
  return jnp.asarray(count)


def make_eval_step(model: models.Model) -> Callable[[Any, batch_lib.Batch], objectives.Sums]:
  """Returns the function (params, batch) -> sums as of `objectives.evaluate`, to be jitted."""

  def eval_step(params: Any, batch: batch_lib.Batch) -> objectives.Sums:
    sums = jax.lax.map(functools.partial(objectives.evaluate, model, params), batch)
    return jax.tree.map(lambda x: x.sum(0), sums)

  return eval_step
