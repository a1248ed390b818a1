"""A tiny GPT with random parameters: initial ones are 0 or 1 in part, which would hide mistakes."""

import functools
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import models
from tests import random_params

BLOCK, VOCAB = 8, 30


def make_config(**changes: Any) -> config_lib.ModelConfig:
  tiny = {'n_layer': 2, 'n_head': 2, 'n_embd': 16, 'block_size': BLOCK, 'vocab_size': VOCAB}
  return config_lib.ModelConfig(**{**tiny, 'pad_vocab_to': 1, 'attention': 'xla', **changes})


def make_params(**changes: Any) -> Any:
  """Returns the parameters of a config; those of scanned layers are the unrolled ones', stacked."""
  params = random_params.make(make_config(**{**changes, 'scan_layers': False}), std=0.3)
  return stack(params) if changes.get('scan_layers') else params


def stack(params: Any) -> Any:
  """Returns the tree of unrolled layers as that of scanned ones."""
  layers = [params[f'h_{i}'] for i in range(2)]
  rest = {name: leaf for name, leaf in params.items() if not name.startswith('h_')}
  if 'encoder' in rest:
    rest['encoder'] = stack(rest['encoder'])
  return {**rest, 'h': jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(model: models.Model, params: Any, *args: Any, **options: Any) -> Any:
  """Applies a model in one program, which compiles faster than its operations one by one."""
  return model.apply({'params': params}, *args, **options)


def make_tokens(*shape: int) -> np.ndarray:
  return np.random.default_rng(2).integers(0, VOCAB, shape).astype(np.int32)


def by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def assert_close(actual: Any, expected: Any, *, rtol: float) -> None:
  """Asserts that trees are equal to `rtol` of each array's largest entry: sums in another order."""
  found, wanted = by_path(actual), by_path(expected)
  assert found.keys() == wanted.keys()
  for name, leaf in wanted.items():
    atol = rtol * float(np.abs(leaf).max())
    np.testing.assert_allclose(found[name], leaf, rtol=0, atol=atol, err_msg=name)
