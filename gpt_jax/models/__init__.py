"""Language models, each a Flax module of one shape: `hidden`, `logits`, and a cache for decoding.

Code outside of this package asks for the model of a config, and knows nothing of its inside.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.models import gpt


def make(config: config_lib.ModelConfig) -> gpt.GPT:
  """Returns the module of a config, without parameters."""
  return gpt.GPT(config)


def cast_matrices(params: Any, dtype: str) -> Any:
  """Casts kernels and embeddings to `dtype`, for inference; all else stays as it is."""
  matrices = ('kernel', 'embedding', 'lm_head')

  def cast(path: Any, x: jax.Array) -> jax.Array:
    return x.astype(dtype) if path[-1].key in matrices else x

  return jax.tree_util.tree_map_with_path(cast, params)


def abstract_params(
  config: config_lib.ModelConfig, sharding: jax.sharding.Sharding | None = None
) -> Any:
  """Returns the tree of parameters as shapes and types, each with `sharding` if it is given."""
  tokens_BL = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(make(config).init, jax.random.key(0), tokens_BL)['params']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def parameter_count(config: config_lib.ModelConfig) -> int:
  """Counts the parameters without the padding of the vocabulary, from shapes alone."""
  total = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  tables = 1 if config.tie_embeddings else 2
  return total - tables * (config.padded_vocab_size - config.vocab_size) * config.n_embd
