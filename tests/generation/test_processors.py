"""Processors keep, ban and weigh the tokens that they should; draws follow the softmax."""

import functools
from collections.abc import Callable
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpt_jax.generation import processors, sampling
from gpt_jax.generation import settings as settings_lib
from tests.generation import tiny

B, V = 3, 7
PADDING = 5  # the token whose logit is -inf in `rows_BV`

temperature = jax.jit(processors.temperature)
top_p = jax.jit(processors.top_p)
min_p = jax.jit(processors.min_p)
typical = jax.jit(processors.typical)
repetition_penalty = jax.jit(processors.repetition_penalty)
count_penalties = jax.jit(processors.count_penalties)
no_repeat_ngram = jax.jit(processors.no_repeat_ngram, static_argnums=3)
minimum_length = jax.jit(processors.minimum_length)


@functools.partial(jax.jit, static_argnums=1)
def top_k(logits_BV, k):
  """With -inf for the tokens that are not kept."""
  kept_BK, ids_BK = processors.top_k(logits_BV, k)
  rows_B1 = jnp.arange(len(kept_BK))[:, None]
  return jnp.full_like(logits_BV, -jnp.inf).at[rows_B1, ids_BK].set(kept_BK)


COUNTS_BV = np.array([[0, 1, 3, 0, 2, 0, 1], [1, 1, 1, 1, 1, 0, 1], [0] * 7])
HISTORY_BL = np.array([[1, 2, 1, 2], [3, 3, 3, 3], [4, 0, 6, 4]])
LENGTH_B = np.array([3, 4, 1])

# Processors with a traced parameter, as functions of up to B rows and that parameter.
TRACED: dict[str, Callable] = {
  'top_p': top_p,
  'min_p': min_p,
  'typical': typical,
  'temperature': temperature,
  'repetition_penalty': lambda x_BV, r: repetition_penalty(x_BV, COUNTS_BV[: len(x_BV)] > 0, r),
  'count_penalties': lambda x_BV, p: count_penalties(
    x_BV, COUNTS_BV[: len(x_BV)], presence=p, frequency=p
  ),
  'minimum_length': lambda x_BV, share: minimum_length(x_BV, 4, 9 * share, 2),
}
ALL: dict[str, Callable] = {
  'top_k': lambda x_BV: top_k(x_BV, 3),
  'no_repeat_ngram': lambda x_BV: no_repeat_ngram(
    x_BV, HISTORY_BL[: len(x_BV)], LENGTH_B[: len(x_BV)], 2
  ),
  **{name: functools.partial(lambda f, x_BV: f(x_BV, 0.5), f) for name, f in TRACED.items()},
}


def _padded(logits_BV):
  logits_BV[:, PADDING] = -np.inf
  return logits_BV


# Few distinct values, so that ties are common, next to any float at all.
few = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])
extreme = st.sampled_from([-3e38, -1e4, -100.0, -1e-7, -0.0, 1e-7, 100.0, 1e30, 3e38])
moderate = st.floats(-9, 9, width=32, allow_subnormal=False)  # XLA takes subnormals for 0
few_BV, moderate_BV, extreme_BV = (
  hnp.arrays(np.float32, (B, V), elements=st.one_of(few, others)).map(_padded)
  for others in (few, moderate, extreme)
)
rows_BV = st.one_of(few_BV, moderate_BV, extreme_BV)
fractions = st.one_of(
  st.sampled_from([0.0, 1e-6, 0.5, 1.0]), st.floats(0, 1, width=32, allow_subnormal=False)
)


def _softmax(logits_BV):
  with np.errstate(over='ignore', under='ignore'):
    logits_BV = np.asarray(logits_BV, np.float64)
    exp_BV = np.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    return exp_BV / exp_BV.sum(-1, keepdims=True)


def _costs(processor, logits_V):
  """What the tokens are sorted by; float64."""
  if processor is top_p:
    return -logits_V.astype(np.float64)
  # Meister et al. 2023, §4: how far a token's surprise is from the expected one.
  p_V = _softmax(logits_V)
  with np.errstate(divide='ignore'):
    surprise_V = -np.log(p_V)
  return np.abs(surprise_V - p_V[p_V > 0] @ surprise_V[p_V > 0])


def _kept(result_V):
  return np.flatnonzero(result_V > -np.inf)


@pytest.mark.parametrize('processor', [top_p, typical])
@hypothesis.given(rows_BV, fractions)
def test_the_fewest_that_reach_the_mass_are_kept(processor, logits_BV, mass):
  for logits_V, result_V in zip(logits_BV, np.asarray(processor(logits_BV, mass)), strict=True):
    p_V, costs_V, kept = _softmax(logits_V), _costs(processor, logits_V), _kept(result_V)
    assert kept.size and (result_V[kept] == logits_V[kept]).all()
    for value in logits_V[kept]:
      equals = np.flatnonzero(logits_V == value)  # of which the lowest ids are kept
      assert set(kept) & set(equals) == set(equals[: np.isin(equals, kept).sum()])
    kept = kept[p_V[kept] > 0]
    others = np.setdiff1d(np.flatnonzero(p_V), kept)
    if len(others):
      assert costs_V[kept].max() <= costs_V[others].min() + 1e-5
    assert p_V[kept].sum() >= mass - 1e-6
    # The last one may be any of several of the same cost, whatever their probability.
    last = kept[costs_V[kept] >= costs_V[kept].max() - 1e-5]
    assert p_V[kept].sum() - p_V[last].max() < mass + 1e-6 or len(kept) == 1 or mass == 1


@pytest.mark.parametrize(
  ('p', 'kept'), [(0, [0]), (0.25, [0]), (0.26, [0, 1]), (0.5, [0, 1]), (0.51, [0, 1, 3])]
)
@pytest.mark.parametrize('processor', [top_p, typical])
def test_a_mass_exactly_reached_is_enough(processor, p, kept):
  result_BV = processor(jnp.array([[2.0, 2.0, -jnp.inf, 2.0, 2.0]]), p)
  assert _kept(result_BV[0]).tolist() == kept


@pytest.mark.parametrize('processor', [top_p, typical])
def test_all_of_the_mass_is_all_tokens_however_sums_are_rounded(processor):
  logits_BV = np.random.default_rng(0).normal(size=(20, 3001)).astype(np.float32) * 30
  logits_BV[:, -1] = -3e38  # of probability 0 in float32
  np.testing.assert_array_equal(processor(logits_BV, 1.0), logits_BV)


@pytest.mark.parametrize('equals', [[5.0, 5.0], [0.0, -0.0], [-0.0, 0.0]], ids=str)
def test_of_equal_logits_the_lowest_id_is_kept(equals):
  """Zero and minus zero are equal, though their bits aren't."""
  logits_BV = np.array([[-1.0, *equals]], np.float32)
  for result_BV in (top_p(logits_BV, 0.1), top_k(logits_BV, 1), temperature(logits_BV, 0.0)):
    assert _kept(result_BV[0]).tolist() == [1]
  assert result_BV[0, 1] == 0


@pytest.mark.parametrize('processor', [top_p, typical])
def test_a_whole_vocabulary_is_cut_as_in_float64(processor):
  mass_B1 = np.array([[0.3], [0.3], [0.95], [0.95]], np.float32)
  logits_BV = np.random.default_rng(0).normal(size=(4, 50_257)).astype(np.float32)
  logits_BV *= np.array([[0.5], [4.0], [0.5], [4.0]])
  results_BV = np.asarray(processor(logits_BV, mass_B1))
  for logits_V, result_V, mass in zip(logits_BV, results_BV, mass_B1[:, 0], strict=True):
    p_V, kept = _softmax(logits_V), _kept(result_V)
    order_V = np.argsort(_costs(processor, logits_V), kind='stable')
    expected = order_V[np.cumsum(p_V[order_V]) - p_V[order_V] < mass]
    assert len(np.setxor1d(kept, expected)) <= 6  # the border, of some 10,000
    assert p_V[kept].sum() == pytest.approx(p_V[expected].sum(), abs=1e-5)


@hypothesis.given(rows_BV, fractions)
@hypothesis.example(np.zeros((B, V), np.float32), 1.0)
def test_min_p_keeps_what_is_probable_enough(logits_BV, p):
  p_BV = _softmax(logits_BV)
  ratio_BV = p_BV / p_BV.max(-1, keepdims=True)
  result_BV = np.asarray(min_p(logits_BV, p))
  kept_BV = result_BV > -np.inf
  assert (result_BV[kept_BV] == logits_BV[kept_BV]).all()
  assert kept_BV[(ratio_BV > p * (1 + 1e-5)) & (logits_BV > -np.inf)].all()
  assert not kept_BV[ratio_BV < p * (1 - 1e-5)].any()
  largest_BV = logits_BV == logits_BV.max(-1, keepdims=True)
  assert kept_BV[largest_BV].all()
  if p == 1:
    assert not kept_BV[~largest_BV & (ratio_BV < 1 - 1e-6)].any()
  if p == 0:
    np.testing.assert_array_equal(result_BV, logits_BV)


@hypothesis.given(rows_BV, st.sampled_from([1, 3, 7, 9]))
def test_top_k_returns_the_k_largest_in_order(logits_BV, k):
  kept_BK, ids_BK = map(np.asarray, processors.top_k(logits_BV, k))
  order_BV = np.argsort(-logits_BV, axis=-1, kind='stable')  # of equals, the lowest id first
  np.testing.assert_array_equal(ids_BK, order_BV[:, :k])
  np.testing.assert_array_equal(kept_BK, np.take_along_axis(logits_BV, ids_BK, axis=1))


@jax.jit
def _process(how, logits_BV):
  """Of rows whose history doesn't matter."""
  history = mock.Mock(num_generated_B=jnp.zeros(B, jnp.int32), prompt_BV=None, counts_BV=None)
  return sampling.process(how, logits_BV, history)


@hypothesis.given(rows_BV, st.sampled_from([4, V - 1]), st.tuples(*[st.floats(0.1, 1)] * 3))
def test_truncation_of_kept_tokens_is_that_of_the_vocabulary(logits_BV, k, fractions):
  """What `top_k` keeps is all that the others see, and they would keep the same of all tokens."""
  # Equal or apart: rounding swaps what is nearly equal.
  logits_BV = np.float32(np.round(np.float64(logits_BV) * 64) / 64)
  p, least, mass = (np.float32(fraction) for fraction in fractions)
  options = {'top_k': k, 'top_p': p, 'min_p': least, 'typical_p': mass, 'temperature': 1}
  how = sampling.make(settings_lib.Settings(**options), vocab_size=V)
  choices = _process(how, logits_BV)
  expected_BV = top_k(temperature(logits_BV, 1.0), k)
  for processor, value in ((top_p, p), (min_p, least), (typical, mass)):
    expected_BV = processor(expected_BV, value)
  assert choices.logits_BC.shape == (B, k)
  np.testing.assert_allclose(choices.probabilities(V), _softmax(expected_BV), atol=1e-6)


@hypothesis.given(few_BV, st.one_of(st.floats(0.05, 20), st.just(1e37)))
def test_temperature_divides_the_logits(logits_BV, value):
  expected_BV = _softmax(logits_BV.astype(np.float64) / value)
  np.testing.assert_allclose(_softmax(temperature(logits_BV, value)), expected_BV, atol=1e-5)


@pytest.mark.parametrize('value', [0.0, 1e-45, 2e-38])
def test_the_coldest_temperatures_keep_the_largest_logit(value):
  logits_BV = jnp.array([[1.0, 7.0, -jnp.inf, 6.0], [300.0, -300.0, -jnp.inf, 299.0]])
  result_BV = temperature(logits_BV, np.float32(value))
  assert np.argmax(result_BV, -1).tolist() == [1, 0]
  np.testing.assert_array_equal(_softmax(result_BV).max(-1), 1)


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_the_sign():
  logits_BV = jnp.array([[3.0, -3.0, 0.0, -jnp.inf, 3.0, -3.0]])
  seen_BV = jnp.array([[True, True, True, True, False, False]])
  expected_BV = [[2, -4.5, 0, -np.inf, 3, -3]]
  np.testing.assert_allclose(repetition_penalty(logits_BV, seen_BV, 1.5), expected_BV)


@hypothesis.given(
  few_BV,
  hnp.arrays(np.int32, (B, V), elements=st.integers(0, 50)),
  hnp.arrays(np.float32, 2, elements=st.floats(-2, 2, width=32)),
)
def test_presence_and_frequency_penalties_are_those_of_openai(logits_BV, counts_BV, penalties):
  once, each = penalties
  # mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
  expected_BV = logits_BV - counts_BV * np.float64(each) - (counts_BV > 0) * np.float64(once)
  result_BV = count_penalties(logits_BV, counts_BV, presence=once, frequency=each)
  np.testing.assert_allclose(result_BV, expected_BV, rtol=1e-5, atol=1e-5)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
  hnp.arrays(np.int32, (4, 9), elements=st.integers(0, 2)),
  hnp.arrays(np.int32, 4, elements=st.integers(0, 9)),
  st.sampled_from([1, 2, 3, 9, 10]),
  st.sampled_from([-1, 0, 2, 99]),
)
def test_no_ngram_is_completed_twice(tokens_BL, length_B, n, beyond):
  """Against a search of each row's known tokens; of what follows them nothing matters."""
  expected_BV = np.array([[0.5, -1.5, 2.0, 0.0, -np.inf]] * 4, np.float32)
  logits_BV = jnp.asarray(expected_BV)
  for row, length in enumerate(length_B):
    known = tokens_BL[row, :length].tolist()
    tokens_BL[row, length:] = beyond
    ngrams = [known[i : i + n] for i in range(length - n + 1)]
    for token in range(5):
      if n <= length + 1 and known[length - n + 1 :] + [token] in ngrams:
        expected_BV[row, token] = -np.inf
  np.testing.assert_array_equal(no_repeat_ngram(logits_BV, tokens_BL, length_B, n), expected_BV)


def test_eos_waits_for_the_minimum_of_each_row():
  num_generated_B1 = np.array([[0], [6], [7], [8]])
  for eos_id, banned in ((2, [True, True, False, False]), (-1, [False] * 4)):
    result_BV = minimum_length(jnp.zeros((4, 3)), num_generated_B1, 7, eos_id)
    assert np.isinf(result_BV[:, eos_id]).tolist() == banned
    assert np.isinf(result_BV).sum() == sum(banned)


@pytest.mark.parametrize('name', ALL)
@hypothesis.given(logits_BV=rows_BV)
def test_padding_stays_impossible_and_nothing_is_nan(name, logits_BV):
  result_BV = np.asarray(ALL[name](jnp.asarray(logits_BV)))
  assert result_BV.shape == (B, V) and result_BV.dtype == np.float32
  assert not np.isnan(result_BV).any() and (result_BV[:, PADDING] == -np.inf).all()


@pytest.mark.parametrize('name', ALL)
def test_a_row_is_independent_of_the_others(name):
  logits_BV = _padded(np.random.default_rng(1).normal(size=(B, V)).astype(np.float32))
  others_BV = logits_BV.copy()
  others_BV[1:, :PADDING] = 9 * others_BV[:0:-1, :PADDING]
  result_V = ALL[name](jnp.asarray(logits_BV))[0]
  np.testing.assert_array_equal(ALL[name](jnp.asarray(others_BV))[0], result_V)
  np.testing.assert_array_equal(ALL[name](jnp.asarray(logits_BV[:1]))[0], result_V)


def test_draws_follow_the_distribution():
  """Of 20,000 rows with their own keys; tokens 2 and 11 are not possible."""
  logits_V = np.random.default_rng(0).normal(size=12) * 1.5
  logits_V[[2, 11]] = -np.inf
  keys_B = jax.random.split(jax.random.key(1), 20_000)
  token_B = jax.jit(processors.sample)(jnp.tile(jnp.float32(logits_V), (20_000, 1)), keys_B)
  assert token_B.shape == (20_000,) and token_B.dtype == jnp.int32
  chances = {(token,): p for token, p in enumerate(_softmax(logits_V).tolist())}
  assert tiny.chi2_p(np.asarray(token_B)[:, None], chances) > 0.01
