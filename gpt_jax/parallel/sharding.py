"""The sharding table: the end of a parameter's path -> logical axes -> mesh axes.

Adam's moments are trees like the parameters, so their paths end alike and the same table serves.
"""

import re
from typing import Any

import jax

# The mesh axis that shards each logical axis; None is copied.
_MESH_AXIS = {'embed': 'fsdp', 'heads': 'tensor', 'hidden': 'tensor', 'vocab': 'tensor', None: None}

# Scanned layers have one more, leading axis, which is never sharded.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'(wte/embedding|lm_head)', ('vocab', 'embed')),
  (r'wpe/embedding', (None, 'embed')),
  (r'attn/c_attn/kernel', ('embed', 'heads')),
  (r'attn/c_attn/bias', ('heads',)),
  (r'attn/c_proj/kernel', ('heads', 'embed')),
  (r'mlp/c_fc/kernel', ('embed', 'hidden')),
  (r'mlp/c_fc/bias', ('hidden',)),
  (r'mlp/c_proj/kernel', ('hidden', 'embed')),
  (r'(attn|mlp)/c_proj/bias', (None,)),
  # An adapter is sharded like the kernel beside it, its rank never.
  (r'(attn/c_attn|mlp/c_fc)/lora_a', ('embed', None)),
  (r'attn/c_attn/lora_b', (None, 'heads')),
  (r'mlp/c_fc/lora_b', (None, 'hidden')),
  (r'attn/c_proj/lora_a', ('heads', None)),
  (r'mlp/c_proj/lora_a', ('hidden', None)),
  (r'(attn|mlp)/c_proj/lora_b', (None, 'embed')),
  (r'ln_(1|2|f)/(scale|bias)', (None,)),
)


def matching_rules(path: str) -> list[int]:
  """Returns the indices of the rules whose pattern ends `path` (in whole path components)."""
  return [i for i, (suffix, _) in enumerate(RULES) if re.search(rf'(^|/){suffix}$', path)]


def tree_shardings(mesh: jax.sharding.Mesh, tree: Any) -> Any:
  """Returns shardings for a tree of (abstract) arrays whose paths end like those of parameters.

  Scalars (step counts) are copied to every device.

  Raises:
    ValueError: An array matches no rule, or more than one.
  """

  def one(path: Any, leaf: Any) -> jax.NamedSharding:
    if leaf.ndim == 0:
      return jax.NamedSharding(mesh, jax.P())
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    matches = matching_rules(name)
    if len(matches) != 1:
      raise ValueError(f'{name}: {len(matches)} sharding rules match, there must be exactly one')
    axes = tuple(_MESH_AXIS[axis] for axis in RULES[matches[0]][1])
    return jax.NamedSharding(mesh, jax.P(*(None,) * (leaf.ndim - len(axes)), *axes))

  return jax.tree_util.tree_map_with_path(one, tree)
