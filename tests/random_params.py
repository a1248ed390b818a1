"""Parameters of small models that nobody trained."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import models


def make(
  config: config_lib.ModelConfig, *, seed: int = 1, std: float = 0.8, noise: float = 0.0
) -> Any:
  """Returns parameters with random values, large enough for confident predictions.

  Args:
    config: The architecture.
    seed: Of the parameters.
    std: Of all except LayerNorms and biases.
    noise: The standard deviation of what is added to all of them, which makes a similar model.
  """
  draw, more = np.random.default_rng(seed).normal, np.random.default_rng(9).normal

  def random(path: Any, leaf: Any) -> jax.Array:
    mean, spread = {'scale': (1, 0.2), 'bias': (0, 0.2)}.get(path[-1].key, (0, std))
    value = draw(mean, spread, leaf.shape) + noise * more(size=leaf.shape)
    return jnp.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(random, models.abstract_params(config))
