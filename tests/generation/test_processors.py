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

from gpt_jax import config as config_lib
from gpt_jax.generation import processors, sampling

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
sample = jax.jit(processors.sample)


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
  'repetition_penalty': lambda x_BV, value: repetition_penalty(
    x_BV, COUNTS_BV[: len(x_BV)] > 0, value
  ),
  'count_penalties': lambda x_BV, value: count_penalties(
    x_BV, COUNTS_BV[: len(x_BV)], presence=value, frequency=value
  ),
  'minimum_length': lambda x_BV, value: minimum_length(x_BV, 4, 9 * value, 2),
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
rows_BV = st.one_of(
  hnp.arrays(np.float32, (B, V), elements=few),
  hnp.arrays(np.float32, (B, V), elements=st.one_of(few, moderate)),
  hnp.arrays(np.float32, (B, V), elements=st.one_of(few, extreme)),
).map(_padded)
moderate_BV = hnp.arrays(np.float32, (B, V), elements=few).map(_padded)
fractions = st.one_of(
  st.sampled_from([0.0, 1e-6, 0.5, 1.0]), st.floats(0, 1, width=32, allow_subnormal=False)
)


def _softmax(logits_BV):
  with np.errstate(over='ignore', under='ignore'):
    logits_BV = np.asarray(logits_BV, np.float64)
    exp_BV = np.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    return exp_BV / exp_BV.sum(-1, keepdims=True)


def _atypicality(p_V):
  """Meister et al. 2023, §4: how far a token's surprise is from the expected one."""
  with np.errstate(divide='ignore'):
    surprise_V = -np.log(p_V)
  return np.abs(surprise_V - p_V[p_V > 0] @ surprise_V[p_V > 0])


def _cheapest(costs_V, p_V, mass):
  """The shortest beginning of the tokens by cost that reaches `mass`: token ids."""
  order_V = np.argsort(costs_V, kind='stable')
  before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
  return order_V[before_V < mass]


def _kept(result_V):
  return np.flatnonzero(result_V > -np.inf)


def _check_reaches_but_just(kept, costs_V, p_V, mass):
  """`kept` are cheapest, reach `mass`, and without the last of them wouldn't."""
  others = np.setdiff1d(np.flatnonzero(p_V), kept)
  if len(others):
    assert costs_V[kept].max() <= costs_V[others].min() + 1e-5
  assert p_V[kept].sum() >= mass - 1e-6
  # The last one may be any of several of the same cost, whatever their probability.
  last = kept[costs_V[kept] >= costs_V[kept].max() - 1e-5]
  assert p_V[kept].sum() - p_V[last].max() < mass + 1e-6 or len(kept) == 1 or mass == 1


@hypothesis.given(rows_BV, fractions)
def test_top_p_keeps_the_fewest_that_reach_p(logits_BV, p):
  for logits_V, result_V in zip(logits_BV, np.asarray(top_p(logits_BV, p)), strict=True):
    kept = _kept(result_V)
    by_id = np.argsort(-logits_V, kind='stable')  # of equals, the lowest id first
    assert set(kept) == set(by_id[: len(kept)])
    with np.errstate(over='ignore'):
      _check_reaches_but_just(kept, -logits_V.astype(np.float64), _softmax(logits_V), p)


@hypothesis.given(rows_BV, fractions)
def test_typical_keeps_the_fewest_that_reach_the_mass(logits_BV, mass):
  for logits_V, result_V in zip(logits_BV, np.asarray(typical(logits_BV, mass)), strict=True):
    p_V, kept = _softmax(logits_V), _kept(result_V)
    _check_reaches_but_just(kept[p_V[kept] > 0], _atypicality(p_V), p_V, mass)
    for value in logits_V[kept]:
      equals = np.flatnonzero(logits_V == value)  # of which the lowest ids are kept
      assert set(kept) & set(equals) == set(equals[: np.isin(equals, kept).sum()])


@pytest.mark.parametrize(
  ('p', 'kept'), [(0, [0]), (0.25, [0]), (0.26, [0, 1]), (0.5, [0, 1]), (0.51, [0, 1, 3])]
)
@pytest.mark.parametrize('processor', [top_p, typical])
def test_a_mass_exactly_reached_is_enough(processor, p, kept):
  logits_BV = jnp.array([[2.0, 2.0, -jnp.inf, 2.0, 2.0]])
  assert _kept(processor(logits_BV, p)[0]).tolist() == kept


@pytest.mark.parametrize('processor', [top_p, typical])
def test_all_of_the_mass_is_all_tokens_however_sums_are_rounded(processor):
  logits_BV = np.random.default_rng(0).normal(size=(20, 3001)).astype(np.float32) * 30
  logits_BV[:, -1] = -3e38  # of probability 0 in float32
  np.testing.assert_array_equal(processor(logits_BV, 1.0), logits_BV)


def test_zero_and_minus_zero_are_equal():
  """Though their bits aren't: neither comes first, the lowest id does."""
  for zeros in ([0.0, -0.0], [-0.0, 0.0]):
    logits_BV = np.array([[-1.0, *zeros]], np.float32)
    for result_BV in (top_p(logits_BV, 0.1), top_k(logits_BV, 1), temperature(logits_BV, 0.0)):
      assert _kept(result_BV[0]).tolist() == [1]


def test_typical_can_leave_out_the_most_probable():
  p_BV = np.array([[0.4] + [0.05] * 12], np.float32)  # entropy 2.2; surprises 0.9 and 3.0
  assert _kept(typical(np.log(p_BV), 0.5)[0]).tolist() == list(range(1, 11))


@pytest.mark.parametrize('processor', [top_p, typical])
def test_a_whole_vocabulary_is_cut_as_in_float64(processor):
  spread_B1 = np.array([[0.5], [4.0], [0.5], [4.0]])
  mass_B1 = np.array([[0.3], [0.3], [0.95], [0.95]], np.float32)
  logits_BV = np.float32(np.random.default_rng(0).normal(size=(4, 50_257)) * spread_B1)
  results_BV = np.asarray(processor(logits_BV, mass_B1))
  for logits_V, result_V, (mass,) in zip(logits_BV, results_BV, mass_B1, strict=True):
    p_V, kept = _softmax(logits_V), _kept(result_V)
    costs_V = -logits_V if processor is top_p else _atypicality(p_V)
    expected = _cheapest(costs_V, p_V, mass)
    assert len(np.setxor1d(kept, expected)) <= 6  # the border, of some 10,000
    assert p_V[kept].sum() == pytest.approx(p_V[expected].sum(), abs=1e-5)


@hypothesis.given(rows_BV, fractions)
def test_min_p_keeps_what_is_probable_enough(logits_BV, p):
  p_BV = _softmax(logits_BV)
  ratio_BV = p_BV / p_BV.max(-1, keepdims=True)
  kept_BV = np.asarray(min_p(logits_BV, p)) > -np.inf
  assert kept_BV[(ratio_BV > p * (1 + 1e-5)) & (logits_BV > -np.inf)].all()
  assert not kept_BV[ratio_BV < p * (1 - 1e-5)].any()
  largest_BV = logits_BV == logits_BV.max(-1, keepdims=True)
  assert kept_BV[largest_BV].all()
  if p == 1:
    assert not kept_BV[~largest_BV & (ratio_BV < 1 - 1e-6)].any()
  if p == 0:
    np.testing.assert_array_equal(kept_BV, logits_BV > -np.inf)


@hypothesis.given(rows_BV, st.sampled_from([1, 3, 7, 9]))
def test_top_k_returns_the_k_largest_in_order(logits_BV, k):
  kept_BK, ids_BK = map(np.asarray, processors.top_k(logits_BV, k))
  order_BV = np.argsort(-logits_BV, axis=-1, kind='stable')  # of equals, the lowest id first
  np.testing.assert_array_equal(ids_BK, order_BV[:, :k])
  np.testing.assert_array_equal(kept_BK, np.take_along_axis(logits_BV, ids_BK, axis=1))


@jax.jit
def _process(how, logits_BV):
  """Of rows whose history doesn't matter."""
  history = mock.Mock(num_generated_B=jnp.zeros(B, jnp.int32))
  return sampling.process(how, logits_BV, history)


@hypothesis.given(
  rows_BV, st.sampled_from([4, V - 1]), st.lists(st.floats(0.1, 1), min_size=3, max_size=3)
)
def test_truncation_of_kept_tokens_is_that_of_the_vocabulary(logits_BV, k, fractions):
  """What `top_k` keeps is all that the others see, and they would keep the same of all tokens."""
  p, least, mass = (np.float32(fraction) for fraction in fractions)
  options = {'top_k': k, 'top_p': p, 'min_p': least, 'typical_p': mass, 'temperature': 1}
  how = sampling.make(config_lib.GenerationConfig(**options), vocab_size=V)
  choices = _process(how, logits_BV)
  expected_BV = top_k(temperature(logits_BV, 1.0), k)
  for processor, value in ((top_p, p), (min_p, least), (typical, mass)):
    expected_BV = processor(expected_BV, value)
  assert choices.logits_BC.shape == (B, k)
  np.testing.assert_allclose(choices.probabilities(V), _softmax(expected_BV), atol=1e-6)


@hypothesis.given(rows_BV, fractions, st.sampled_from(['top_p', 'min_p', 'typical']))
def test_truncation_keeps_some_token_and_its_logit(logits_BV, p, name):
  result_BV = np.asarray(TRACED[name](logits_BV, p))
  kept_BV = result_BV > -np.inf
  assert kept_BV.any(-1).all()
  np.testing.assert_array_equal(result_BV[kept_BV], logits_BV[kept_BV])


@hypothesis.given(moderate_BV, st.floats(0.05, 20))
def test_temperature_divides_the_logits(logits_BV, value):
  expected_BV = _softmax(logits_BV.astype(np.float64) / value)
  result_BV = np.asarray(temperature(logits_BV, value))
  np.testing.assert_allclose(_softmax(result_BV), expected_BV, atol=1e-5)


@pytest.mark.parametrize('value', [0.0, 1e-45, 2e-38])
def test_the_coldest_temperatures_keep_the_largest_logit(value):
  logits_BV = jnp.array([[1.0, 7.0, -jnp.inf, 6.0], [300.0, -300.0, -jnp.inf, 299.0]])
  result_BV = temperature(logits_BV, np.float32(value))
  assert np.argmax(result_BV, -1).tolist() == [1, 0]
  np.testing.assert_array_equal(_softmax(result_BV).max(-1), 1)


def test_of_equal_logits_temperature_0_takes_the_first():
  result_V = temperature(jnp.array([[1.0, 5.0, 5.0]]), 0.0)[0]
  assert result_V.tolist() == [-np.inf, 0, -np.inf]


def test_the_hottest_temperature_is_uniform_and_skips_padding():
  result_BV = temperature(jnp.array([[1.0, 500.0, -jnp.inf]]), np.float32(1e37))
  np.testing.assert_allclose(_softmax(result_BV), [[0.5, 0.5, 0]], atol=1e-6)


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_the_sign():
  logits_BV = jnp.array([[3.0, -3.0, 0.0, -jnp.inf, 3.0, -3.0]])
  seen_BV = jnp.array([[True, True, True, True, False, False]])
  result_BV = repetition_penalty(logits_BV, seen_BV, 1.5)
  np.testing.assert_allclose(result_BV, [[2, -4.5, 0, -np.inf, 3, -3]])


@hypothesis.given(
  moderate_BV,
  hnp.arrays(np.int32, (B, V), elements=st.integers(0, 50)),
  st.floats(-2, 2, width=32),
  st.floats(-2, 2, width=32),
)
def test_presence_and_frequency_penalties_are_those_of_openai(logits_BV, counts_BV, once, each):
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
  result_BV = no_repeat_ngram(logits_BV, tokens_BL, length_B, n)
  np.testing.assert_array_equal(result_BV, expected_BV)


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
  assert not np.isnan(result_BV).any()
  assert (result_BV[:, PADDING] == -np.inf).all()


@pytest.mark.parametrize('name', ALL)
def test_a_row_is_independent_of_the_others(name):
  logits_BV = _padded(np.random.default_rng(1).normal(size=(B, V)).astype(np.float32))
  others_BV = logits_BV.copy()
  others_BV[1:, :PADDING] = 9 * others_BV[:0:-1, :PADDING]
  result_V = ALL[name](jnp.asarray(logits_BV))[0]
  np.testing.assert_array_equal(ALL[name](jnp.asarray(others_BV))[0], result_V)
  np.testing.assert_array_equal(ALL[name](jnp.asarray(logits_BV[:1]))[0], result_V)


# One row of 12 tokens, of which 2 and 11 are padding.
ROW_V = np.random.default_rng(0).normal(size=12) * 1.5
ROW_V[[2, 11]] = -np.inf
ROW_P_V = _softmax(ROW_V)
ROW_SEEN_V = np.array([0, 2, 0, 1, 0, 0, 3, 1, 0, 0, 1, 0]) > 0


def _only(kept):
  return np.where(np.isin(np.arange(12), kept), ROW_V, -np.inf)


# What is to be drawn from, and the logits of its distribution.
DRAWS: dict[str, tuple[Callable, np.ndarray]] = {
  'as they are': (lambda x: x, ROW_V),
  'temperature': (lambda x: temperature(x, 2.5), ROW_V / 2.5),
  'top_k': (lambda x: top_k(x, 6), _only(np.argsort(-ROW_V)[:6])),
  'top_p': (lambda x: top_p(x, 0.9), _only(_cheapest(-ROW_V, ROW_P_V, 0.9))),
  'min_p': (lambda x: min_p(x, 0.1), _only(np.flatnonzero(ROW_P_V / ROW_P_V.max() >= 0.1))),
  'typical': (lambda x: typical(x, 0.6), _only(_cheapest(_atypicality(ROW_P_V), ROW_P_V, 0.6))),
  'repetition_penalty': (
    lambda x: repetition_penalty(x, ROW_SEEN_V[None], 1.8),
    np.where(ROW_SEEN_V, np.where(ROW_V > 0, ROW_V / 1.8, ROW_V * 1.8), ROW_V),
  ),
}


@pytest.mark.parametrize('name', DRAWS)
def test_draws_follow_the_distribution(name):
  """Pearson's χ² of 20,000 draws, with the rows' keys and a distribution from NumPy."""
  processor, expected_logits_V = DRAWS[name]
  draws, expected_V = 20_000, _softmax(expected_logits_V)
  logits_BV = jnp.tile(processor(jnp.float32(ROW_V)[None]), (draws, 1))
  tokens_B = sample(logits_BV, jax.random.split(jax.random.key(1), draws))
  assert tokens_B.shape == (draws,) and tokens_B.dtype == jnp.int32
  counts_V = np.bincount(tokens_B, minlength=12)
  possible = expected_V > 0
  assert 2 < possible.sum() <= 10
  assert not counts_V[~possible].any()
  expected = draws * expected_V[possible]
  chi2 = ((counts_V[possible] - expected) ** 2 / expected).sum()
  assert jax.scipy.stats.chi2.sf(chi2, possible.sum() - 1) > 0.01
