"""The linear layer and the LayerNorm of the model, and where their arrays may be sharded.

Axes have logical names (`batch`, `heads`, `hidden`, `vocab`, and `embed` for the width of
parameters), which the caller may bind to axes of a mesh by `nn.logical_axis_rules`; unbound, they
change nothing.

Shapes in names: B batch, L length, N B·L, D inputs, F outputs (features, one axis or several),
R rank.
"""

import functools
import math
from typing import Any

import jax
from flax import linen as nn
from jax import ad_checkpoint

from gpt_jax import config as config_lib
from gpt_jax.models import quantized

INIT_STD = 0.02
PRODUCT = 'product'  # the name of what is kept by remat_keep=products
_LAYER_NORM_EPS = 1e-5

# Logical names of the axes of an array; None is an axis that is never sharded.
Axes = tuple[str | None, ...]

constrain = nn.with_logical_constraint


class Dense(nn.Module):
  """A linear layer, with an adapter (see `lora`) if `config.lora_rank`.

  Attributes:
    config: Decides on bias, compute type and adapter.
    features: The shape of an output; its axes are one in the parameters.
    axes: Of the inputs and of each axis of `features`.
    std: Of the initial weights.
  """

  config: config_lib.ModelConfig
  features: tuple[int, ...]
  axes: Axes
  std: float = INIT_STD

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    cfg, D, F = self.config, x_BLD.shape[-1], math.prod(self.features)
    inputs, *outputs = self.axes

    def weights(name: str, init: Any, *shape: int) -> jax.Array:
      return self.param(name, init, (*shape, F)).reshape(*shape, *self.features)

    x_BLD = x_BLD.astype(cfg.dtype)
    kernel = quantized.param(self, 'kernel', nn.initializers.normal(self.std), (D, F))
    if isinstance(kernel, quantized.Weights):
      y_BLF = quantized.product(x_BLD, kernel).reshape(*x_BLD.shape[:-1], *self.features)
      y_BLF = y_BLF.astype(cfg.dtype)
    else:
      y_BLF = product(x_BLD, kernel.reshape(D, *self.features), self.axes)
    if cfg.bias:
      y_BLF += weights('bias', nn.initializers.zeros).astype(cfg.dtype)
    if R := cfg.lora_rank:
      # Gaussian, such that x·A is as large as x; B is 0, so that the adapter adds nothing at first.
      init_a = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
      a_DR = self.param('lora_a', init_a, (D, R))
      b_RF = weights('lora_b', nn.initializers.zeros, R)
      z_BLR = product(x_BLD, a_DR, (inputs, None))
      y_BLF += cfg.lora_alpha / R * product(z_BLR, b_RF, (None, *outputs))
    return ad_checkpoint.checkpoint_name(y_BLF, PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def product(
  x_BLD: jax.Array, w_DF: jax.Array, axes: Axes, contracted: int = 0, dtype: Any = None
) -> jax.Array:
  """Returns x_BLD · w_DF over D, computed in the type of x as one matrix product of B·L rows.

  Weights whose `embed` axis is sharded are gathered in the type of x for each product, the backward
  one too, and their gradient is reduced in theirs to the shard that a device holds (ZeRO stage 3,
  Rajbhandari et al. 2020).

  The numbers are those of a product with two batch axes, of which XLA's CPU backend transposes the
  gradient of w element by element: 68 instead of 49 ms per step of configs/shakespeare_char_cpu.py.

  Args:
    x_BLD: The inputs.
    w_DF: The weights, F one axis or several.
    axes: The logical axes of w_DF.
    contracted: Which axis of w is D, the first or, as in a table of embeddings, the second.
    dtype: The type of the result; None is that of x.
  """
  x_ND, w_DF = _rows(x_BLD), _gathered(w_DF, axes, x_BLD.dtype)
  numbers = (((1,), (contracted,)), ((), ()))
  y_NF = jax.lax.dot_general(x_ND, w_DF, numbers, preferred_element_type=dtype)
  return y_NF.reshape(*x_BLD.shape[:-1], *y_NF.shape[1:])


def _forward(
  x_BLD: jax.Array, w_DF: jax.Array, axes: Axes, contracted: int, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(x_BLD, w_DF, axes, contracted, dtype), (x_BLD, w_DF)


def _backward(
  axes: Axes,
  contracted: int,
  dtype: Any,
  saved: tuple[jax.Array, jax.Array],
  dy_BLF: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  del dtype
  x_BLD, w_DF = saved
  x_ND = _rows(x_BLD)
  # In float32, as the softmax gives it to the output layer, these would take twice as long.
  dy_NF = dy_BLF.astype(x_BLD.dtype).reshape(len(x_ND), *dy_BLF.shape[x_BLD.ndim - 1 :])
  w_axes = tuple(i for i in range(w_DF.ndim) if i != contracted)
  numbers = ((tuple(range(1, dy_NF.ndim)), w_axes), ((), ()))
  dx_ND = jax.lax.dot_general(dy_NF, _gathered(w_DF, axes, x_BLD.dtype), numbers)
  # Not one and its transpose: XLA adds what devices have of equal arrays before it reduces them.
  factors = (dy_NF, x_ND) if contracted else (x_ND, dy_NF)
  numbers = (((0,), (0,)), ((), ()))
  multiply = functools.partial(
    jax.lax.dot_general, dimension_numbers=numbers, preferred_element_type=w_DF.dtype
  )
  # XLA's CPU backend lacks this product of bfloat16 for several axes F; in float32 it is as fast.
  dw_DF: Any = jax.lax.platform_dependent(
    *factors,
    cpu=lambda *factors: multiply(*(factor.astype(w_DF.dtype) for factor in factors)),
    default=multiply,
  )
  return dx_ND.reshape(x_BLD.shape), constrain(dw_DF, axes)


product.defvjp(_forward, _backward)


def _rows(x_BLD: jax.Array) -> jax.Array:
  return x_BLD.reshape(-1, x_BLD.shape[-1])


def _gathered(w_DF: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
  """Casts weights, and gathers what is sharded along `embed`."""
  return constrain(w_DF.astype(dtype), tuple(None if axis == 'embed' else axis for axis in axes))


def residual_std(cfg: config_lib.ModelConfig) -> float:
  """Returns GPT-2's initial scale of residual projections: 0.02 / sqrt(number of additions)."""
  return INIT_STD / (2 * cfg.n_layer) ** 0.5


def layer_norm(cfg: config_lib.ModelConfig, name: str | None = None) -> nn.LayerNorm:
  """Returns a LayerNorm (Ba et al. 2016)."""
  return nn.LayerNorm(
    epsilon=_LAYER_NORM_EPS,
    use_bias=cfg.bias,
    use_fast_variance=False,
    dtype=cfg.dtype,
    name=name,
  )
