"""Documents packed into a row give what each gives alone, and none attends to another or padding.

Shapes in names: B batch, L length, J length again (of the inputs), D width, V vocabulary.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax import models
from gpt_jax.models import attention
from tests.models import tiny

BLOCK, VOCAB = 12, tiny.VOCAB
# Three documents and padding, the shortest document, one document, many, and nothing at all.
SEGMENTS_BL = np.array(
  [
    [1] * 5 + [2] * 3 + [3] * 2 + [0] * 2,
    [1] + [2] * 10 + [0],
    [1] * 12,
    list(range(1, 13)),
    [0] * 12,
  ],
  np.int32,
)
WAYS = [{}, {'remat': True}, {'remat': True, 'scan_layers': True}]
_config = functools.partial(tiny.make_config, block_size=BLOCK)
_params = functools.partial(tiny.make_params, block_size=BLOCK)


@functools.cache
def _jitted(**changes):
  return functools.partial(
    jax.jit(models.make(_config(**changes)).apply), {'params': _params(**changes)}
  )


def _logits(tokens_BL, segments_BL=None, **changes):
  return np.asarray(_jitted(**changes)(tokens_BL, segments_BL=segments_BL)[0])


def _documents(segments_BL):
  """Returns (row, first position, one past the last) of each document, by plain search."""
  return [
    (b, int(places[0]), int(places[-1]) + 1)
    for b, segments_L in enumerate(segments_BL)
    for number in range(1, segments_L.max() + 1)
    if len(places := np.flatnonzero(segments_L == number))
  ]


def _alone(tokens_BL, segments_BL):
  """Returns each document in a row of its own, with zeros behind it."""
  rows_RL = np.zeros((segments_BL.size, BLOCK), np.int32)
  for row_L, (b, first, stop) in zip(rows_RL, _documents(segments_BL), strict=False):
    row_L[: stop - first] = tokens_BL[b, first:stop]
  return rows_RL


def _assert_as_alone(tokens_BL, segments_BL, *, atol, **changes):
  packed_BLV = _logits(tokens_BL, segments_BL, **changes)
  assert np.isfinite(packed_BLV).all()
  # Without segments, remat and scanning change nothing: see test_options.
  alone_RLV = _logits(_alone(tokens_BL, segments_BL))
  for alone_LV, (b, first, stop) in zip(alone_RLV, _documents(segments_BL), strict=False):
    np.testing.assert_allclose(
      packed_BLV[b, first:stop], alone_LV[: stop - first], rtol=0, atol=atol
    )


@pytest.mark.parametrize('changes', WAYS, ids=str)
def test_a_packed_document_has_the_logits_it_has_alone(changes):
  # Only the order of the sums over positions differs, in numbers of up to 10.
  _assert_as_alone(tiny.make_tokens(5, BLOCK), SEGMENTS_BL, atol=1e-5, **changes)


@st.composite
def _packed(draw):
  """Tokens and segments of two rows: documents of any lengths, then padding."""
  rows = st.lists(st.integers(1, BLOCK), max_size=BLOCK)
  segments_BL = np.zeros((2, BLOCK), np.int32)
  for segments_L in segments_BL:
    lengths = draw(rows)
    numbers = np.repeat(np.arange(len(lengths)) + 1, lengths)[:BLOCK]
    segments_L[: len(numbers)] = numbers
  tokens = st.lists(st.integers(0, VOCAB - 1), min_size=2 * BLOCK, max_size=2 * BLOCK)
  return np.reshape(np.int32(draw(tokens)), (2, BLOCK)), segments_BL


@given(_packed())
def test_documents_of_any_lengths_have_the_logits_they_have_alone(packed):
  _assert_as_alone(*packed, atol=1e-5)


def test_packed_documents_in_bfloat16_are_as_near_to_themselves_alone_as_it_allows():
  tokens_BL = tiny.make_tokens(5, BLOCK)
  exact_BLV = _logits(tokens_BL, SEGMENTS_BL)
  rounded_BLV = _logits(tokens_BL, SEGMENTS_BL, dtype='bfloat16')
  assert rounded_BLV.dtype == np.float32 and np.isfinite(rounded_BLV).all()
  # Some 20 roundings of 0.2 %, one after the other: see test_options.
  assert np.sqrt(((rounded_BLV - exact_BLV) ** 2).mean()) / exact_BLV.std() < 0.02


@pytest.mark.parametrize('changes', WAYS[::2], ids=str)
def test_no_gradient_crosses_from_one_document_to_another(changes):
  # Every position has a token of its own, so row j of wte enters at position j and nowhere else;
  # the output layer has a table of its own.
  config = _config(tie_embeddings=False, **changes)
  params, segments_L = _params(tie_embeddings=False, **changes), SEGMENTS_BL[0]

  def logits_LV(wte_VD):
    tokens_L = np.arange(BLOCK, dtype=np.int32)
    logits_BLV, _ = models.make(config).apply(
      {'params': {**params, 'wte': {'embedding': wte_VD}}},
      tokens_L[None],
      segments_BL=segments_L[None],
    )
    return logits_BLV[0]

  gradients_LVJD = np.asarray(jax.jit(jax.jacrev(logits_LV))(params['wte']['embedding']))
  assert np.isfinite(gradients_LVJD).all()
  size_LJ = np.abs(gradients_LVJD).max(axis=(1, 3))[:, :BLOCK]
  own_LJ = np.tril(segments_L[:, None] == segments_L)
  assert (size_LJ[~own_LJ] == 0).all()
  assert (size_LJ[own_LJ] > 1e-3).all()


def test_each_document_counts_its_positions_from_0():
  # Row p of wpe has a gradient where a document is longer than p, and nowhere else.
  config, params = _config(), _params()

  def logit(wpe_LD, segments_BL):
    variables = {'params': {**params, 'wpe': {'embedding': wpe_LD}}}
    return models.make(config).apply(
      variables, tiny.make_tokens(1, BLOCK), segments_BL=segments_BL
    )[0][0, 9, 0]

  gradient = jax.jit(jax.grad(logit))
  for segments_L, first in [(SEGMENTS_BL[0], 8), (SEGMENTS_BL[1], 1), (SEGMENTS_BL[3], 9)]:
    gradients_LD = gradient(params['wpe']['embedding'], segments_L[None])
    used = np.asarray(gradients_LD != 0).any(axis=1)
    np.testing.assert_array_equal(used, np.arange(BLOCK) <= 9 - first)


def test_padding_longer_than_a_context_does_no_harm():
  # Positions beyond the context would be NaN, and so would every gradient.
  config, params = _config(), _params()
  segments_BL = np.array([[1, 1, *[0] * (2 * BLOCK)]], np.int32)
  tokens_BL = tiny.make_tokens(*segments_BL.shape)

  def total(params):
    variables = {'params': params}
    logits_BLV, _ = models.make(config).apply(variables, tokens_BL, segments_BL=segments_BL)
    return logits_BLV[0, :2].sum()

  gradients = jax.jit(jax.grad(total))(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def _gradients(tokens_BL, segments_BL, weights_BLV, **changes):
  """Returns the gradients of the weighted sum of the logits."""
  config = _config(**changes)

  def total(params):
    logits_BLV, _ = models.make(config).apply(
      {'params': params}, tokens_BL, segments_BL=segments_BL
    )
    return (logits_BLV * weights_BLV).sum()

  return jax.device_get(jax.jit(jax.grad(total))(_params(**changes)))


@functools.cache
def _weights():
  """Random weights of the logits of `tiny.make_tokens(5, BLOCK)`, none for those of padding."""
  weights_BLV = np.random.default_rng(3).normal(size=(5, BLOCK, VOCAB)).astype(np.float32)
  return np.where(SEGMENTS_BL[..., None] == 0, 0, weights_BLV)


@functools.cache
def _gradients_alone():
  alone_RL, weights_BLV = _alone(tiny.make_tokens(5, BLOCK), SEGMENTS_BL), _weights()
  weights_RLV = np.zeros((*alone_RL.shape, VOCAB), np.float32)
  for weights_LV, (b, first, stop) in zip(weights_RLV, _documents(SEGMENTS_BL), strict=False):
    weights_LV[: stop - first] = weights_BLV[b, first:stop]
  return _gradients(alone_RL, None, weights_RLV)


@pytest.mark.parametrize('changes', WAYS, ids=str)
def test_gradients_of_packed_documents_are_the_sum_of_those_alone(changes):
  packed: Any = _gradients(tiny.make_tokens(5, BLOCK), SEGMENTS_BL, _weights(), **changes)
  alone = _gradients_alone()
  if 'scan_layers' in changes:
    alone = tiny.stack(alone)
  # The same sums in another order, of terms as large as the largest entries.
  tiny.assert_close(packed, alone, rtol=1e-5)


def test_the_content_of_padding_changes_nothing_else():
  tokens_BL, padding_BL = tiny.make_tokens(5, BLOCK), SEGMENTS_BL == 0
  changed_BL = np.where(padding_BL, (tokens_BL + 1) % VOCAB, tokens_BL)
  logits_BLV, changed_BLV = (_logits(t, SEGMENTS_BL) for t in (tokens_BL, changed_BL))
  np.testing.assert_array_equal(changed_BLV[~padding_BL], logits_BLV[~padding_BL])
  assert (changed_BLV[padding_BL] != logits_BLV[padding_BL]).any(axis=-1).all()


def test_the_number_of_a_document_does_not_matter():
  tokens_BL = tiny.make_tokens(5, BLOCK)
  others_BL = np.where(SEGMENTS_BL == 0, 0, 7 * SEGMENTS_BL + 100)
  np.testing.assert_array_equal(_logits(tokens_BL, others_BL), _logits(tokens_BL, SEGMENTS_BL))


def test_neither_a_cache_nor_cudnn_goes_with_packed_rows():
  config, variables = _config(), {'params': _params()}
  packed: Any = {'tokens_BL': tiny.make_tokens(5, BLOCK), 'segments_BL': SEGMENTS_BL}
  with pytest.raises(ValueError, match='cache'):
    models.make(config).apply(variables, **packed, cache=attention.empty_cache(config, 5, BLOCK))
  with pytest.raises(ValueError, match='cudnn'):
    models.make(_config(attention='cudnn', dtype='bfloat16')).apply(variables, **packed)
