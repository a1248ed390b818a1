"""Weights of fewer bits, for inference: decoding reads all of them for each token.

Layout and spelling of the products are those that XLA's CPU backend computes fastest, in jax 0.10
and 0.12 (`docs/performance.md`).

Shapes in names: N rows, D inputs, F outputs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

# Infinities, NaNs, divisions and functions stay exact.
_HONORED = ('nans', 'infs', 'division', 'functions')
_REORDERED = {f'xla_cpu_fast_math_honor_{name}': True for name in _HONORED}
_REORDERED['xla_cpu_enable_fast_math'] = True
_FEW = 32  # rows up to which 8-bit weights are not widened


class Weights(NamedTuple):
  """A matrix of a linear layer, transposed; a stack of them if they have a leading axis."""

  values_FD: jax.Array  # bfloat16 or int8
  scale_F1: jax.Array | None  # float32, what each row of int8 is multiplied by


def quantize(w_FD: jax.Array, dtype: str) -> Weights:
  """Rounds a transposed matrix (or a stack) to bfloat16, or each row to int8 times its scale."""
  if dtype != 'int8':
    return Weights(w_FD.astype(dtype), None)
  w_FD = w_FD.astype(jnp.float32)
  scale_F1 = jnp.abs(w_FD).max(-1, keepdims=True) / 127
  values_FD = jnp.round(w_FD / jnp.where(scale_F1 > 0, scale_F1, 1))
  return Weights(values_FD.astype(jnp.int8), scale_F1)


def param(module: nn.Module, name: str, init: Any, shape: tuple[int, ...]) -> jax.Array | Weights:
  """Returns a parameter of `module`, of `shape` unless it is quantized."""
  if module.has_variable('params', name):
    value: Any = module.get_variable('params', name)
    if isinstance(value, Weights):
      return value
  return module.param(name, init, shape)


class Jit:
  """`jax.jit` of a function that decodes, whose products a CPU may add in another order.

  Else jax 0.12 adds what it widens number by number: 70 instead of 7 ms a token for gpt2_small.
  """

  __wrapped__: Callable[..., Any]  # the function

  def __init__(self, function: Callable[..., Any], **options: Any) -> None:
    self._options = options
    functools.update_wrapper(self, function)

  @functools.cached_property
  def program(self) -> Any:
    """What `jax.jit` returns; made at the first call, as devices aren't known before."""
    options = _REORDERED if jax.default_backend() == 'cpu' else None
    return jax.jit(self.__wrapped__, compiler_options=options, **self._options)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.program(*args, **kwargs)


def product(x_BLD: jax.Array, weights: Weights) -> jax.Array:
  """Returns x_BLD · w over D: y_BLF, float32."""
  x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
  y_NF = jax.lax.platform_dependent(x_ND, weights.values_FD, cpu=_on_cpu, default=_widened)
  if weights.scale_F1 is not None:
    y_NF *= weights.scale_F1[:, 0]
  return y_NF.reshape(*x_BLD.shape[:-1], y_NF.shape[-1])


def _on_cpu(x_ND: jax.Array, values_FD: jax.Array) -> jax.Array:
  if len(x_ND) == 1:
    # In a branch of its own XLA widens weights while it multiplies, which it else does before.
    is_nan, nan_1F = jnp.isnan(x_ND[0, 0]), jnp.full((1, len(values_FD)), jnp.nan, x_ND.dtype)
    return jax.lax.cond(is_nan, lambda: nan_1F, lambda: x_ND @ values_FD.astype(x_ND.dtype).T)
  # Without a barrier XLA would widen all weights once, in front of the loop over tokens.
  x_ND, values_FD = jax.lax.optimization_barrier((x_ND, values_FD))
  if values_FD.dtype == jnp.int8 and len(x_ND) <= _FEW:
    return _in_digits(x_ND, values_FD)
  return _widened(x_ND.astype(jnp.bfloat16), values_FD)


def _widened(x_ND: jax.Array, values_FD: jax.Array) -> jax.Array:
  return _contract(x_ND, values_FD.astype(x_ND.dtype), jnp.float32)


def _in_digits(x_ND: jax.Array, values_FD: jax.Array) -> jax.Array:
  """The product in integers, x in two digits of 8 bits: off by 2⁻¹⁶ of a row's largest value."""
  unit_N1 = jnp.abs(x_ND).max(-1, keepdims=True) / 127
  steps_ND = x_ND / jnp.where(unit_N1 > 0, unit_N1, 1)
  high_ND = jnp.round(steps_ND)
  low_ND = jnp.round((steps_ND - high_ND) * 254)
  digits = jnp.concatenate([high_ND, low_ND]).astype(jnp.int8)
  high_NF, low_NF = jnp.split(_contract(digits, values_FD, jnp.int32), 2)
  return unit_N1 * (high_NF + low_NF / 254)


def _contract(x_ND: jax.Array, w_FD: jax.Array, dtype: Any) -> jax.Array:
  return jax.lax.dot_general(x_ND, w_FD, (((1,), (1,)), ((), ())), preferred_element_type=dtype)
