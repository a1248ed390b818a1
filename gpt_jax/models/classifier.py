"""A classifier of documents: a linear layer on the hidden states of any model, pooled.

Its parameters are `score`, beside those of the model.

Shapes in names: B batch, L length, D width of the hidden states, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.models import layers

NAME = 'score'


def init(config: config_lib.ModelConfig, key: jax.Array) -> dict[str, jax.Array]:
  """Returns random parameters of the linear layer."""
  shape = (config.hidden_width, len(config.class_names))
  kernel_DC = layers.INIT_STD * jax.random.normal(key, shape)
  return {'kernel': kernel_DC, 'bias': jnp.zeros(shape[1:])}


def logits(
  config: config_lib.ModelConfig, params: Any, hidden_BLD: jax.Array, starts_BL: jax.Array
) -> jax.Array:
  """Computes the logits of the classes of what a document is up to each position.

  Args:
    config: Decides on the pooling.
    params: Of the linear layer.
    hidden_BLD: The hidden states of rows of documents.
    starts_BL: bool, where a document begins.

  Returns:
    logits_BLC, float32.
  """
  pooled_BLD = hidden_BLD.astype(jnp.float32)
  if config.pooling == 'mean':
    pooled_BLD = running_mean(pooled_BLD, starts_BL)
  return pooled_BLD @ params['kernel'] + params['bias']


def running_mean(x_BLD: jax.Array, starts_BL: jax.Array) -> jax.Array:
  """Returns the mean of each position and those before it in its document."""
  L = x_BLD.shape[1]
  first_BL = jax.lax.cummax(jnp.where(starts_BL, jnp.arange(L), 0), axis=1)
  sums_BLD = jnp.cumsum(x_BLD, axis=1)
  before_BLD = jnp.take_along_axis(sums_BLD - x_BLD, first_BL[..., None], axis=1)
  return (sums_BLD - before_BLD) / (jnp.arange(L) - first_BL + 1)[..., None]
