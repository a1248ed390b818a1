"""The output layer: from hidden states to the logits of the vocabulary, or the loss of targets.

A large vocabulary of words can be cut into clusters by frequency (Grave et al. 2017, "Efficient
softmax approximation for GPUs", here without narrower layers for rare words): a softmax over the
frequent words and a gate for each other cluster, and one within each cluster. The distribution is
as exact as that of a single softmax, but a target needs the logits of its own cluster alone.

Shapes in names: B batch, L length, N B·L, D width of the hidden states, V vocabulary (padded),
C clusters behind the first, X any logits.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import attention, layers, quantized


class Output(NamedTuple):
  """The parameters of an output layer."""

  config: config_lib.ModelConfig
  table_VD: jax.Array | quantized.Weights
  gates_CD: jax.Array | None  # if there are clusters

  @property
  def bounds(self) -> list[tuple[int, int]]:
    """The first id of each cluster but that of frequent words, and the first behind it."""
    starts = self.config.cluster_starts
    return list(zip(starts, (*starts[1:], self.config.padded_vocab_size), strict=True))


class LanguageModel(nn.Module):
  """What `gpt.GPT` and `lstm.LSTM` share: everything after the hidden states.

  A subclass has `hidden`, and the token embedding `wte`; its `setup` calls `setup_output`.
  """

  config: config_lib.ModelConfig

  def setup_output(self) -> None:
    cfg, init = self.config, nn.initializers.normal(layers.INIT_STD)
    if not cfg.tie_embeddings:
      shape = (cfg.padded_vocab_size, cfg.hidden_width)
      self.lm_head = quantized.param(self, 'lm_head', init, shape)
    if cfg.clusters:
      self.gates = self.param('gates', init, (len(cfg.cluster_starts), cfg.hidden_width))

  def __call__(
    self, tokens_BL: jax.Array, **options: Any
  ) -> tuple[jax.Array, attention.KVCache | None]:
    """Returns the `logits` of `hidden`, and the cache; arguments as of `hidden`."""
    hidden_BLD, cache = self.hidden(tokens_BL, **options)
    return self.logits(hidden_BLD), cache

  def logits(self, hidden_BLD: jax.Array) -> jax.Array:
    """Computes the logits of the token after each position; see `output.logits`."""
    return logits(self._output(), hidden_BLD)

  def loss(self, hidden_BLD: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """Returns the sum of the losses of the targets, float32; see `output.loss`."""
    return loss(self._output(), hidden_BLD, targets_BL)

  def _output(self) -> Output:
    cfg = self.config
    table_VD = self.wte.embedding if cfg.tie_embeddings else self.lm_head
    return Output(cfg, table_VD, self.gates if cfg.clusters else None)


def logits(output: Output, hidden_BLD: jax.Array) -> jax.Array:
  """Computes the logits of the token after each position.

  Args:
    output: The layer.
    hidden_BLD: Hidden states of any positions.

  Returns:
    logits_BLV, float32, -inf for the padding of the vocabulary.
  """
  if isinstance(output.table_VD, quantized.Weights):
    logits_BLV = quantized.product(hidden_BLD, output.table_VD)
  else:
    logits_BLV = layers.product(hidden_BLD, output.table_VD, ('vocab', 'embed'), 1, jnp.float32)
  logits_BLV = layers.constrain(logits_BLV, ('batch', None, 'vocab'))
  logits_BLV = _masked(logits_BLV, output.config.vocab_size)
  if output.gates_CD is None:
    return logits_BLV
  gates_BLC = layers.product(hidden_BLD, output.gates_CD, (None, None), 1, jnp.float32)
  parts = [logits_BLV[..., : output.bounds[0][0]]]
  for c, (start, stop) in enumerate(output.bounds):
    parts.append(jax.nn.log_softmax(logits_BLV[..., start:stop]) + gates_BLC[..., c : c + 1])
  return jnp.concatenate(parts, axis=-1)


def loss(output: Output, hidden_BLD: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Returns the `cross_entropy` of `logits`, of which it computes those it needs.

  Here they are rounded to the type of the hidden states; sums over them are float32.
  """
  table_VD: Any = output.table_VD  # quantized weights aren't trained
  size = output.config.vocab_size
  x_ND, target_N = hidden_BLD.reshape(-1, hidden_BLD.shape[-1]), targets_BL.ravel()
  if output.gates_CD is None:
    return _loss(x_ND, table_VD, target_N, size, ('batch', 'vocab'))
  bounds, N = output.bounds, target_N.size
  first = bounds[0][0]
  cluster_N = sum((target_N >= start).astype(jnp.int32) for start, _ in bounds)
  rows_XD = jnp.concatenate([table_VD[:first], output.gates_CD])
  total = _dense(x_ND, rows_XD, jnp.where(cluster_N > 0, first - 1 + cluster_N, target_N))
  for c, (start, stop) in enumerate(bounds):
    own_N = jnp.where(cluster_N == c + 1, target_N - start, -1)
    # Room for some more targets than a cluster has as a rule.
    total += _few(x_ND, table_VD[start : min(stop, size)], own_N, max(1, N >> (3 + c)))
  return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _loss(
  x_ND: jax.Array, rows_XD: jax.Array, target_N: jax.Array, size: int, axes: layers.Axes
) -> jax.Array:
  """The cross-entropy over the first `size` rows of a table; `axes` are those of the logits.

  JAX's own gradient would keep float32 arrays of the size of the logits. This one keeps the logits,
  in the type of the states, and the gradient takes their place.
  """
  return _loss_forward(x_ND, rows_XD, target_N, size, axes)[0]


def _loss_forward(
  x_ND: jax.Array, rows_XD: jax.Array, target_N: jax.Array, size: int, axes: layers.Axes
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  logits_NX = _product(x_ND, rows_XD, axes)
  losses_N, sums_N = _losses(_masked(logits_NX, size), target_N)
  return losses_N.sum(), (x_ND, rows_XD, target_N, logits_NX, sums_N)


def _loss_backward(
  size: int, axes: layers.Axes, saved: tuple[jax.Array, ...], d: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
  x_ND, rows_XD, target_N, logits_NX, sums_N = saved
  chances_NX = jnp.exp(_masked(logits_NX, size) - sums_N[:, None])
  d_NX = d * (chances_NX - _is_target(logits_NX, target_N))
  d_NX = jnp.where(target_N[:, None] < 0, 0, d_NX).astype(logits_NX.dtype)
  _, pull = jax.vjp(functools.partial(_product, axes=axes), x_ND, rows_XD)
  return (*pull(d_NX), None)


_loss.defvjp(_loss_forward, _loss_backward)


def _product(x_ND: jax.Array, rows_XD: jax.Array, axes: layers.Axes) -> jax.Array:
  if axes[1] is None:
    return layers.product(x_ND, rows_XD, (None, None), 1)
  return layers.constrain(layers.product(x_ND, rows_XD, (axes[1], 'embed'), 1), axes)


def _masked(logits_BLX: jax.Array, size: int) -> jax.Array:
  """Logits in float32, -inf behind the first `size`."""
  logits_BLX = logits_BLX.astype(jnp.float32)
  if size == logits_BLX.shape[-1]:
    return logits_BLX
  return jnp.where(jnp.arange(logits_BLX.shape[-1]) < size, logits_BLX, -jnp.inf)


def _dense(x_ND: jax.Array, rows_XD: jax.Array, target_N: jax.Array) -> jax.Array:
  return _loss(x_ND, rows_XD, target_N, len(rows_XD), (None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _few(x_ND: jax.Array, rows_XD: jax.Array, target_N: jax.Array, room: int) -> jax.Array:
  """`_dense`, computed for the targets that count alone, unless they are more than `room`."""
  place_K = _places(target_N, room)
  return jax.lax.cond(
    (target_N >= 0).sum() <= room,
    lambda: _dense(_take(x_ND, place_K, 0), rows_XD, _take(target_N, place_K, -1)),
    lambda: _dense(x_ND, rows_XD, target_N),
  )


def _few_forward(
  x_ND: jax.Array, rows_XD: jax.Array, target_N: jax.Array, room: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  # With the gradient at once: a gradient through `cond` would keep room for what either way saves.
  gradient, place_K = jax.value_and_grad(_dense, (0, 1)), _places(target_N, room)

  def of_few() -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, (dx_KD, drows_XD) = gradient(
      _take(x_ND, place_K, 0), rows_XD, _take(target_N, place_K, -1)
    )
    return value, (jnp.zeros_like(x_ND).at[place_K].set(dx_KD, mode='drop'), drows_XD)

  def of_all() -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gradient(x_ND, rows_XD, target_N)

  return jax.lax.cond((target_N >= 0).sum() <= room, of_few, of_all)


def _few_backward(
  room: int, saved: tuple[jax.Array, jax.Array], d: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
  del room
  dx_ND, drows_XD = saved
  return (d * dx_ND).astype(dx_ND.dtype), (d * drows_XD).astype(drows_XD.dtype), None


_few.defvjp(_few_forward, _few_backward)


def _places(target_N: jax.Array, room: int) -> jax.Array:
  """The positions of the targets that count, (K,), filled up with N."""
  return jnp.nonzero(target_N >= 0, size=room, fill_value=len(target_N))[0]


def _take(x: jax.Array, place_K: jax.Array, fill: int) -> jax.Array:
  return x.at[place_K].get(mode='fill', fill_value=fill)


def cross_entropy(logits_BLX: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """Returns the sum of the targets' negative log-likelihoods in nats, a float32 scalar.

  Targets below 0 add nothing, and their logits get no gradient.
  """
  return _losses(logits_BLX, targets_BL)[0].sum()


def _losses(logits_BLX: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The losses of the targets, and the log-sum-exp of the logits, both (B, L)."""
  target_logits_BL = jnp.where(_is_target(logits_BLX, targets_BL), logits_BLX, 0.0).sum(-1)
  sums_BL = jax.nn.logsumexp(logits_BLX, axis=-1)
  return jnp.where(targets_BL < 0, 0.0, sums_BL - target_logits_BL), sums_BL


def _is_target(logits_BLX: jax.Array, targets_BL: jax.Array) -> jax.Array:
  # Compared, not gathered: the gradient of a gather is a scatter into an array of logits, and a
  # gather from logits that are sharded along V would copy all of them to every device.
  return jnp.arange(logits_BLX.shape[-1]) == targets_BL[..., None]
