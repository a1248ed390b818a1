"""Processors keep and weigh the tokens that they say; draws follow the softmax."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpt_jax.generation import logits as logits_lib

# Few distinct values, so that ties are common; -inf stands for the vocabulary's padding.
rows_BV = hnp.arrays(np.float32, (3, 7), elements=st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]))


def _softmax(logits_BV):
  exp_BV = np.exp(logits_BV - logits_BV.max(-1, keepdims=True))
  return exp_BV / exp_BV.sum(-1, keepdims=True)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(rows_BV, st.floats(0.05, 20))
def test_temperature_divides_the_logits(logits_BV, value):
  logits_BV[:, 2] = -np.inf
  expected_BV = _softmax(logits_BV.astype(np.float64) / value)
  result_BV = np.asarray(logits_lib.temperature(jnp.asarray(logits_BV), value))
  np.testing.assert_allclose(_softmax(result_BV), expected_BV, atol=1e-5)


@pytest.mark.parametrize('value', [0.0, 1e-45, 2e-38])
def test_the_coldest_temperatures_keep_the_largest_logit(value):
  logits_BV = jnp.array([[1.0, 7.0, -jnp.inf, 6.0], [300.0, -300.0, -jnp.inf, 299.0]])
  result_BV = logits_lib.temperature(logits_BV, np.float32(value))
  assert np.argmax(result_BV, -1).tolist() == [1, 0]
  np.testing.assert_array_equal(_softmax(np.asarray(result_BV)).max(-1), 1)


def test_of_equal_logits_temperature_0_takes_the_first():
  result_V = logits_lib.temperature(jnp.array([[1.0, 5.0, 5.0]]), 0.0)[0]
  assert result_V.tolist() == [-np.inf, 0, -np.inf]


def test_the_hottest_temperature_is_uniform_and_skips_padding():
  hot = np.float32(logits_lib.MAX_TEMPERATURE)
  result_BV = logits_lib.temperature(jnp.array([[1.0, 500.0, -jnp.inf]]), hot)
  np.testing.assert_allclose(_softmax(np.asarray(result_BV)), [[0.5, 0.5, 0]], atol=1e-6)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(rows_BV, st.integers(1, 9))
def test_top_k_keeps_exactly_the_k_largest(logits_BV, k):
  result_BV = np.asarray(logits_lib.top_k(jnp.asarray(logits_BV), k))
  order_BV = np.argsort(-logits_BV, axis=-1, kind='stable')  # of equals, the lowest id first
  for logits_V, result_V, order_V in zip(logits_BV, result_BV, order_BV, strict=True):
    kept = np.flatnonzero(np.isfinite(result_V))
    assert kept.tolist() == sorted(order_V[:k])
    assert result_V[kept].tolist() == logits_V[kept].tolist()


def test_top_k_never_brings_padding_back():
  logits_BV = jnp.array([[0.5, -jnp.inf, 0.1, -jnp.inf]])
  for k in (2, 3, 4, 100):
    np.testing.assert_array_equal(logits_lib.top_k(logits_BV, k), logits_BV)


@pytest.mark.parametrize(('value', 'k'), [(1.0, None), (0.7, 4), (2.5, 9)])
def test_draws_follow_the_softmax(value, k):
  """Pearson's χ² of 20,000 draws, with the rows' keys and a distribution from NumPy."""
  draws = 20_000
  logits_V = np.random.default_rng(0).normal(size=9) * 1.5
  logits_V[[2, 5]] = -np.inf
  logits_BV = logits_lib.temperature(jnp.tile(jnp.float32(logits_V), (draws, 1)), value)
  expected_V = _softmax(logits_V / value)
  if k:
    logits_BV = logits_lib.top_k(logits_BV, k)
    expected_V[np.argsort(-expected_V)[k:]] = 0
    expected_V /= expected_V.sum()
  tokens_B = logits_lib.sample(logits_BV, jax.random.split(jax.random.key(1), draws))
  assert tokens_B.shape == (draws,) and tokens_B.dtype == jnp.int32
  counts_V = np.bincount(tokens_B, minlength=9)
  possible = expected_V > 0
  assert not counts_V[~possible].any()
  expected = draws * expected_V[possible]
  chi2 = ((counts_V[possible] - expected) ** 2 / expected).sum()
  degrees = possible.sum() - 1
  assert chi2 < degrees + 4 * np.sqrt(2 * degrees)


def test_a_draw_depends_on_its_own_row_and_key():
  keys_B = jax.random.split(jax.random.key(2), 5)
  logits_BV = jax.random.normal(jax.random.key(3), (5, 11))
  together = logits_lib.sample(logits_BV, keys_B).tolist()
  alone = [logits_lib.sample(logits_BV[i : i + 1], keys_B[i : i + 1]).item() for i in range(5)]
  assert together == alone
