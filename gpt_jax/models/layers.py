"""The linear layer and the LayerNorm of the model.

Shapes in names: B batch, L length, D inputs, F outputs (features).
"""

import functools
from typing import Any

import jax
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import lora

INIT_STD = 0.02
_LAYER_NORM_EPS = 1e-5


def dense(
  cfg: config_lib.ModelConfig, features: int, *, name: str, std: float = INIT_STD
) -> nn.Dense:
  """Returns a linear layer, with an adapter if `cfg.lora_rank`."""
  make: Any = nn.Dense
  if cfg.lora_rank:
    make = functools.partial(lora.Dense, rank=cfg.lora_rank, alpha=cfg.lora_alpha)
  return make(
    features,
    use_bias=cfg.bias,
    dtype=cfg.dtype,
    kernel_init=nn.initializers.normal(std),
    dot_general=flat_dot_general,
    name=name,
  )


def flat_dot_general(
  x_BLD: jax.Array,
  w_DF: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """Returns x_BLD · w_DF over D, computed as one matrix product of B·L rows.

  The numbers are those of a product with two batch axes, of which XLA's CPU backend transposes the
  gradient of w element by element: 68 instead of 49 ms per step of configs/shakespeare_char_cpu.py.
  """
  del dimension_numbers  # always the last axis of x with the first of w
  y = jax.lax.dot_general(
    x_BLD.reshape(-1, x_BLD.shape[-1]),
    w_DF,
    (((1,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  return y.reshape(*x_BLD.shape[:-1], w_DF.shape[-1])


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
