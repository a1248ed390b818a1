"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

A linear layer keeps its weights W and learns a low-rank change of them:
x·W + b + (alpha / rank) (x·A)·B. In the tree of parameters A is `lora_a` and B is `lora_b`, beside
the layer's `kernel` (see `layers.Dense`); all else is the base, which has no gradient. Without
adapters the base itself is trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from gpt_jax import config as config_lib

_NAMES = ('lora_a', 'lora_b')


def split(params: Any) -> tuple[Any, Any]:
  """Splits a tree of parameters into its adapters and its base, without each other's leaves."""
  leaves = traverse_util.flatten_dict(params)
  adapters = {path: leaf for path, leaf in leaves.items() if path[-1] in _NAMES}
  base = {path: leaf for path, leaf in leaves.items() if path not in adapters}
  return traverse_util.unflatten_dict(adapters), traverse_util.unflatten_dict(base)


def split_trained(params: Any) -> tuple[Any, Any]:
  """Splits parameters into those trained, the adapters or else all, and those frozen."""
  adapters, base = split(params)
  return (adapters, base) if adapters else (base, {})


def join(one: Any, other: Any) -> Any:
  """Returns the tree that was split into these two."""
  leaves = traverse_util.flatten_dict(one) | traverse_util.flatten_dict(other)
  return traverse_util.unflatten_dict(leaves)


def merge(config: config_lib.ModelConfig, params: Any) -> Any:
  """Returns equivalent parameters without adapters: W + (alpha / rank) A·B for each W."""
  adapters, base = map(traverse_util.flatten_dict, split(params))
  merged = dict(base)
  for *module, name in adapters:
    if name == 'lora_a':
      a, b = (adapters[*module, name] for name in _NAMES)
      # Scanned layers have a leading axis more. By default a GPU would round factors to 10 bits.
      product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
      merged[*module, 'kernel'] += config.lora_alpha / config.lora_rank * product
  return traverse_util.unflatten_dict(merged)
