"""AdamW with a warm-up and a schedule, as GPT-2 reproductions use it, or Muon for the matrices.

Shapes in names: D width, F features.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from gpt_jax import config as config_lib


def make_schedule(optimizer: config_lib.OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step (0-based) in a run of `steps` steps.

  Linear warm-up from peak / (warmup_steps + 1), so that the first step already learns; then
  `cosine` (Loshchilov & Hutter 2017) or `linear` down to the minimum at `steps`, `constant`, or
  `wsd` (warm-up, stable, decay; Hu et al. 2024).
  """
  peak, floor, warmup = optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_steps
  rest = max(steps - warmup, 1)
  warm = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  match optimizer.schedule:
    case 'cosine':
      body = optax.cosine_decay_schedule(peak, rest, alpha=floor / peak)
    case 'linear':
      body = optax.linear_schedule(peak, floor, rest)
    case 'constant':
      body = optax.constant_schedule(peak)
    case 'wsd':
      decay = optimizer.decay_steps
      fall = optax.linear_schedule(peak, floor, decay)
      body = optax.join_schedules([optax.constant_schedule(peak), fall], [rest - decay])
    case other:
      raise ValueError(other)
  return optax.join_schedules([warm, body], [warmup])


class AverageState(NamedTuple):
  """The state of an optimizer that also averages the parameters."""

  inner: Any
  average: Any  # of the parameters after each update, in float32
  updates: jax.Array  # int32 scalar: how many


def make_optimizer(
  optimizer: config_lib.OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns clipping by global norm if `clip` > 0, AdamW or Muon, and the average if any.

  Matrices and embeddings decay. If `cautious`, a weight decays only where its update has the
  opposite sign, which improves AdamW and Muon alike (Chen et al. 2025, "Cautious Weight Decay").

  What it makes of parameters and gradients with norms up to 1e18 is finite in float32: moments are
  means of gradients and of squares up to 1e36, so that no parameter moves by more than 1e18 / eps
  = 1e26 times the learning rate, which `config.OptimizerConfig` limits, as it does the decay. Muon
  takes norms of means, up to 2e18, and entries of its updates are below sqrt(D) for a width D.
  """
  clip = optax.clip_by_global_norm(optimizer.clip) if optimizer.clip > 0 else optax.identity()
  direction = optax.scale_by_adam(b1=optimizer.b1, b2=optimizer.b2)
  if optimizer.kind == 'muon':
    direction = optax.partition({'muon': _muon(), 'adamw': direction}, _kinds)
  decay = optax.add_decayed_weights(optimizer.weight_decay, decayed)
  if optimizer.cautious:
    decay = _cautious_decay(optimizer.weight_decay)
  chained = optax.chain(clip, optax.chain(direction, decay, optax.scale_by_learning_rate(schedule)))
  return _averaging(chained, optimizer.ema_decay) if optimizer.ema_decay else chained


def decayed(params: optax.Params) -> optax.Params:
  """Returns a tree: True for each matrix and embedding, False for each bias and LayerNorm scale."""
  # By name, not by rank: a bias of scanned layers has two axes.
  matrices = ('kernel', 'embedding', 'lm_head', 'lora_a', 'lora_b')
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)


def _cautious_decay(weight_decay: float) -> optax.GradientTransformation:
  def add(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
    # Not signed yet: a parameter goes the other way.
    return jax.tree.map(
      lambda u, p, decays: u + weight_decay * jnp.where(u * p >= 0, p, 0) if decays else u,
      updates,
      params,
      decayed(params),
    )

  return optax.stateless(add)


def _kinds(params: optax.Params) -> optax.Params:
  """Returns a tree that says by which method each is trained: `muon` the matrices of the blocks."""

  def kind(path: Any, _: Any) -> str:
    # Not the layer of a classifier, nor adapters, whose products are what should be orthogonal.
    return 'muon' if path[-1].key == 'kernel' and path[0].key != 'score' else 'adamw'

  return jax.tree_util.tree_map_with_path(kind, params)


def _muon() -> optax.GradientTransformation:
  """Returns momentum whose matrices are made orthogonal, queries, keys and values each by itself.

  The factor gives updates the size of AdamW's, so that its learning rates and decay suit (Liu et
  al. 2025, "Muon is Scalable for LLM Training", section 2.2).
  """
  axes = contrib.MuonDimensionNumbers(-2, -1)  # all before them number matrices
  orthogonal = contrib.scale_by_muon(
    weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: axes, tree)
  )

  def init(params: optax.Params) -> optax.OptState:
    return orthogonal.init(_map_c_attn(_stack, params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    updates, state = orthogonal.update(_map_c_attn(_stack, updates), state)
    updates = jax.tree.map(lambda u_DF: 0.2 * math.sqrt(max(u_DF.shape[-2:])) * u_DF, updates)
    return _map_c_attn(_unstack, updates), state

  return optax.GradientTransformation(init, update)


def _map_c_attn(function: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
  """Changes the matrices of queries, keys and values in a tree of matrices."""

  def one(path: Any, x: jax.Array) -> jax.Array:
    return function(x) if path[-2].key == 'c_attn' else x

  return jax.tree_util.tree_map_with_path(one, tree)


def _stack(x_DF: jax.Array) -> jax.Array:
  """Returns a matrix of parts side by side, (…, D, n·D), as (…, n, D, D)."""
  D = x_DF.shape[-2]
  return jnp.moveaxis(x_DF.reshape(*x_DF.shape[:-1], -1, D), -2, -3)


def _unstack(x_DD: jax.Array) -> jax.Array:
  """Undoes `_stack`."""
  x = jnp.moveaxis(x_DD, -3, -2)
  return x.reshape(*x.shape[:-2], -1)


def _averaging(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
  """Returns `inner`, and an exponential average of the parameters, without bias to the first."""

  def init(params: optax.Params) -> AverageState:
    return AverageState(inner.init(params), jax.tree.map(jnp.copy, params), jnp.int32(0))

  def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
    updates, new = inner.update(updates, state.inner, params)
    count = state.updates + 1
    weight = (1 - decay) / -jnp.expm1(count * math.log(decay))
    moved = optax.apply_updates(params, updates)
    average = optax.incremental_update(moved, state.average, weight)
    return updates, AverageState(new, average, count)

  return optax.GradientTransformation(init, update)
