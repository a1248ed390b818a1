"""The sharding table: the end of a parameter's path -> logical axes -> mesh axes.

Moments and averages are trees like the parameters, so their paths end alike and the same table
serves.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from gpt_jax.parallel import mesh as mesh_lib

# The mesh axes that shard each logical axis; other axes are copied.
LOGICAL_AXES = (
  ('batch', mesh_lib.BATCH_AXES),
  ('lookup', 'data'),  # sequences whose tokens are looked up by each device of an fsdp group
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('hidden', 'tensor'),
  ('vocab', 'tensor'),
)

# Scanned layers have one more, leading axis, which is never sharded, as have Muon's moments of
# queries, keys and values, which are stacked.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
  (r'(wte/embedding|lm_head)', ('vocab', 'embed')),
  (r'wpe/embedding', (None, 'embed')),
  (r'attn/c_attn/kernel', ('embed', 'heads')),
  (r'attn/c_attn/bias', ('heads',)),
  # Of the decoder of an encoder–decoder: queries in `cross`, keys and values in `memory`.
  (r'(cross/c_attn|memory)/kernel', ('embed', 'heads')),
  (r'(cross/c_attn|memory)/bias', ('heads',)),
  (r'(attn|cross)/c_proj/kernel', ('heads', 'embed')),
  (r'mlp/c_fc/kernel', ('embed', 'hidden')),
  (r'mlp/c_fc/bias', ('hidden',)),
  (r'mlp/c_proj/kernel', ('hidden', 'embed')),
  (r'(attn|cross|mlp)/c_proj/bias', (None,)),
  # An adapter is sharded like the kernel beside it, its rank never.
  (r'((attn|cross)/c_attn|memory|mlp/c_fc)/lora_a', ('embed', None)),
  (r'((attn|cross)/c_attn|memory)/lora_b', (None, 'heads')),
  (r'mlp/c_fc/lora_b', (None, 'hidden')),
  (r'(attn|cross)/c_proj/lora_a', ('heads', None)),
  (r'mlp/c_proj/lora_a', ('hidden', None)),
  (r'(attn|cross|mlp)/c_proj/lora_b', (None, 'embed')),
  (r'ln_(1|2|f|cross)/(scale|bias)', (None,)),
  # Of the LSTM's cells, of classifiers, and of clusters in the output layer: small.
  (r'((cell/[ih][ifgo]|score)/kernel|gates)', (None, None)),
  (r'(cell/h[ifgo]|score)/bias', (None,)),
  (r'ns_coeffs', (None,)),  # Muon's constants
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
    axes = nn.logical_to_mesh_axes(RULES[matches[0]][1], LOGICAL_AXES) or ()
    return jax.NamedSharding(mesh, jax.P(*(None,) * (leaf.ndim - len(axes)), *axes))

  return jax.tree_util.tree_map_with_path(one, tree)


def place(mesh: jax.sharding.Mesh, shapes: Any) -> Any:
  """Returns a tree of shapes with the shardings of `tree_shardings`."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    shapes,
    tree_shardings(mesh, shapes),
  )


def on_mesh(mesh: jax.sharding.Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `function`, to be jitted, with the logical axes of its arrays bound to a mesh."""
  if mesh is None:
    return function

  @functools.wraps(function)
  def bound(*args: Any) -> Any:
    with nn.logical_axis_rules(LOGICAL_AXES), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return bound
