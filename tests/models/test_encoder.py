"""An encoder's positions see all of their segment, on both sides, and nothing else.

Shapes in names: B batch, L length, J length again (of the inputs), D width, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from tests.models import tiny

BLOCK = 12
WAYS = [{}, {'remat': True}, {'remat': True, 'scan_layers': True}]
SEGMENTS_BL = np.array([[1] * 5 + [2] * 4 + [3] + [0] * 2, [1] * 12], np.int32)
_sizes: Any = functools.partial(dict, kind='encoder', block_size=BLOCK)


def _hidden(tokens_BL, segments_BL=None, params=None, **changes):
  model = models.make(tiny.make_config(**_sizes(**changes)))
  params = tiny.make_params(**_sizes(**changes)) if params is None else params
  hidden_BLD, _ = model.apply(
    {'params': params}, tokens_BL, segments_BL=segments_BL, method='hidden'
  )
  return hidden_BLD


@pytest.mark.parametrize('changes', WAYS, ids=str)
@pytest.mark.parametrize('segments_BL', [None, SEGMENTS_BL], ids=['whole', 'packed'])
def test_a_position_sees_its_whole_segment_and_no_other(segments_BL, changes):
  """By gradients: of each hidden state, in the embeddings of each position."""
  tokens_BL = np.tile(np.arange(BLOCK, dtype=np.int32), (2, 1))  # a token of its own for each
  params = tiny.make_params(**_sizes(**changes))

  def states(table_VD):
    changed = {**params, 'wte': {'embedding': table_VD}}
    # A plain sum of what LayerNorm returns would be constant.
    return (_hidden(tokens_BL, segments_BL, changed, **changes) ** 3).sum(-1)

  gradient_BLVD = jax.jit(jax.jacrev(states))(params['wte']['embedding'])
  seen_BLJ = np.asarray(jnp.abs(gradient_BLVD).max(-1))[:, :, :BLOCK] > 0
  expected_BLJ = np.ones((2, BLOCK, BLOCK), bool)
  if segments_BL is not None:
    expected_BLJ = segments_BL[:, :, None] == segments_BL[:, None, :]
  np.testing.assert_array_equal(seen_BLJ, expected_BLJ)


def test_without_positions_the_order_of_the_tokens_changes_nothing():
  params = tiny.make_params(**_sizes())
  params['wpe'] = jax.tree.map(np.zeros_like, params['wpe'])
  tokens_BL, order = tiny.make_tokens(2, BLOCK), np.random.default_rng(0).permutation(BLOCK)
  hidden_BLD, permuted_BLD = (_hidden(x, params=params) for x in (tokens_BL, tokens_BL[:, order]))
  # Sums over positions in another order, of numbers of about 3.
  np.testing.assert_allclose(permuted_BLD, hidden_BLD[:, order], rtol=0, atol=1e-5)


def test_a_packed_segment_has_the_states_it_has_alone():
  tokens_BL = tiny.make_tokens(2, BLOCK)
  packed_BLD = _hidden(tokens_BL, SEGMENTS_BL)
  for b, first, stop in ((0, 0, 5), (0, 5, 9), (0, 9, 10), (1, 0, 12)):
    alone_LD = _hidden(tokens_BL[b : b + 1, first:stop])[0]
    np.testing.assert_allclose(packed_BLD[b, first:stop], alone_LD, rtol=0, atol=1e-5)
