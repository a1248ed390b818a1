"""Low-rank adapters (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

A linear layer keeps its weights W and learns a low-rank change of them:
x·W + b + (alpha / rank) (x·A)·B. In the tree of parameters A is `lora_a` and B is `lora_b`, beside
the layer's `kernel` (see `layers.Dense`); all else is the base, which has no gradient. Without
adapters the base itself is trained.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from gpt_jax import config as config_lib

NAMES = ('lora_a', 'lora_b')


def split(params: Any) -> tuple[Any, Any]:
  """Splits a tree of parameters into its adapters and its base, without each other's leaves."""
  return split_by(params, lambda path: path[-1] in NAMES)


def split_by(params: Any, belongs: Callable[[tuple[str, ...]], bool]) -> tuple[Any, Any]:
  """Splits a tree of parameters into the leaves whose path `belongs` accepts, and the others."""
  leaves = traverse_util.flatten_dict(params)
  one = {path: leaf for path, leaf in leaves.items() if belongs(path)}
  other = {path: leaf for path, leaf in leaves.items() if path not in one}
  return traverse_util.unflatten_dict(one), traverse_util.unflatten_dict(other)


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
      a, b = (adapters[*module, name] for name in NAMES)
      # Scanned layers have a leading axis more. By default a GPU would round factors to 10 bits.
      product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
      merged[*module, 'kernel'] += config.lora_alpha / config.lora_rank * product
  return traverse_util.unflatten_dict(merged)
