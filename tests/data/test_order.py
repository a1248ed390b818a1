"""Orders are permutations, look random, never change, and mix sources in exact shares."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax.data.batches import order

seeds = st.integers(0, 2**70)
keys = st.lists(seeds, min_size=1, max_size=3).map(tuple)


def _chi_square(counts):
  expected = counts.sum() / counts.size
  return ((counts - expected) ** 2 / expected).sum()


@hypothesis.given(st.integers(1, 3000), keys)
def test_every_index_comes_once(size, key):
  images = order.permute(np.arange(size), size, key)
  assert images.dtype == np.int64
  assert sorted(images.tolist()) == list(range(size))


@hypothesis.given(
  st.one_of(st.integers(0, 1000), st.integers(2**20, 2**62), st.just(2**48)).map(lambda n: n + 1),
  keys,
  st.data(),
)
def test_large_sizes_are_permuted_too(size, key, data):
  size = min(size, 2**62)
  indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
  images = order.permute(np.array(indices, np.int64), size, key).tolist()
  assert len(set(images)) == len(indices)
  assert all(0 <= image < size for image in images)


def test_other_keys_are_other_orders():
  short = [(0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (1, 23), (12, 3)]
  keys = [*short, (2**32,), (2**32 + 1, 0), (1, 1, 0)]
  images = [order.permute(np.arange(1000), 1000, key) for key in keys]
  for first, second in itertools.combinations(images, 2):
    assert (first == second).sum() < 12  # One is expected: 12 or more, once in 10**9.


def test_orders_are_the_same_on_every_machine_and_version():
  """A record: if it fails, runs that resume see other text than they would have seen."""
  assert order.permute(np.arange(8), 8, (0,)).tolist() == [3, 0, 7, 5, 2, 6, 4, 1]
  assert order.permute(np.arange(4), 10**12, (1337, 2, 3)).tolist() == [
    385335632199,
    31464271525,
    913246893069,
    559054914206,
  ]
  far = np.array([0, 10**15, 2**60])
  assert order.reshuffle(far, 1_003_854, (1337, 0)).tolist() == [275226, 28775, 320327]


@pytest.mark.parametrize('size', [3, 7, 50])
def test_an_index_goes_everywhere_alike(size):
  images = np.stack([order.permute(np.arange(size), size, (seed, 5)) for seed in range(2000)])
  critical = {3: 13.8, 7: 22.5, 50: 85.4}[size]
  for places in images.T[:: max(1, size // 3)]:
    assert _chi_square(np.bincount(places, minlength=size)) < critical


@pytest.mark.parametrize('size', [10**6, 2**40 + 9, 2**48])
def test_neighbours_go_far_apart(size):
  images = order.permute(np.arange(50_000), size, (0,))
  gaps = np.diff(images) % size
  for values in (images, gaps):
    counts = np.bincount(values * 50 // size, minlength=50)
    assert _chi_square(counts) < 85.4  # 49 degrees of freedom: exceeded once in a thousand
  lows = np.bincount(images % 50, minlength=50)
  assert _chi_square(lows) < 85.4


@hypothesis.given(st.integers(1, 60), seeds, st.integers(0, 10**12))
def test_each_epoch_has_every_row_in_an_order_of_its_own(size, seed, epoch):
  numbers = epoch * size + np.arange(3 * size)
  epochs = order.reshuffle(numbers, size, (seed,)).reshape(3, size)
  for i, indices in enumerate(epochs):
    assert sorted(indices.tolist()) == list(range(size))
    wanted = order.permute(np.arange(size), size, (seed, epoch + i))
    assert indices.tolist() == wanted.tolist()


def test_no_rows_are_no_rows():
  none = np.empty(0, np.int64)
  assert order.reshuffle(none, 5, (0,)).shape == (0,)
  mixture = order.Mixture((5, 6), (0.5, 0.5), 0)
  for sources, rows in (mixture.train(none), mixture.val(none, 4)):
    assert sources.shape == rows.shape == (0,)


@hypothesis.given(st.lists(st.integers(1, 30), min_size=1, max_size=4), seeds, st.integers(0, 99))
def test_without_weights_the_rows_of_all_sources_are_one_pool(sizes, seed, epoch):
  mixture = order.Mixture(tuple(sizes), None, seed)
  total = sum(sizes)
  sources, rows = mixture.train(epoch * total + np.arange(total))
  seen = sorted(zip(sources.tolist(), rows.tolist(), strict=True))
  assert seen == [(k, row) for k, size in enumerate(sizes) for row in range(size)]


def test_the_pool_is_mixed():
  sources, _ = order.Mixture((10_000, 10_000), None, 0).train(np.arange(10_000))
  assert 4800 < (sources == 0).sum() < 5200


weights = st.lists(st.one_of(st.floats(1e-9, 1), st.integers(1, 100)), min_size=2, max_size=5)


@hypothesis.given(weights, seeds, st.integers(0, 2**30))
def test_each_period_has_the_exact_shares(weights, seed, period):
  mixture = order.Mixture((100,) * len(weights), tuple(weights), seed)
  sources, _ = mixture.train(period * order.PERIOD + np.arange(order.PERIOD))
  counts = np.bincount(sources, minlength=len(weights))
  exact = order.PERIOD * np.array(weights) / sum(weights)
  assert counts.min() >= 1
  # A source that is given its one row takes it from another.
  assert (np.abs(counts - exact) < 1 + (exact < 1).sum()).all()


def test_shares_go_to_the_largest_remainders():
  sources, _ = order.Mixture((9, 9, 9), (0.7, 0.2, 0.1), 0).train(np.arange(order.PERIOD))
  assert np.bincount(sources).tolist() == [45875, 13107, 6554]  # 45875.2, 13107.2, 6553.6
  sources, _ = order.Mixture((9, 9), (1e-12, 1.0), 0).train(np.arange(order.PERIOD))
  assert np.bincount(sources).tolist() == [1, order.PERIOD - 1]


@pytest.mark.parametrize('seed', [0, 2**65])
@pytest.mark.parametrize(
  ('sizes', 'weights'),
  [
    ((40_000, 7), (0.5, 0.5)),
    ((1, 30_000, 999), (2.0, 5.0, 3.0)),
    ((131_072, 5), (1.0, 1e-9)),
    ((12_345,), (0.1,)),
  ],
)
def test_no_row_comes_again_before_its_epoch_ends(sizes, weights, seed):
  mixture = order.Mixture(sizes, weights, seed)
  sources, rows = mixture.train(np.arange(2 * order.PERIOD))
  for source, size in enumerate(sizes):
    mine = rows[sources == source]
    whole = mine[: len(mine) // size * size].reshape(-1, size)
    assert (np.sort(whole, axis=1) == np.arange(size)).all()
    rest = mine[whole.size :]
    assert len(np.unique(rest)) == len(rest)


def test_sources_alternate_at_random_and_have_orders_of_their_own():
  mixture = order.Mixture((10**6, 10**6), (0.5, 0.5), 0)
  sources, rows = mixture.train(np.arange(order.PERIOD))
  runs = np.count_nonzero(np.diff(sources)) + 1
  assert abs(runs - order.PERIOD / 2) < 5 * order.PERIOD**0.5 / 2
  orders = [rows[sources == source][:30_000] for source in (0, 1)]
  assert (orders[0] == orders[1]).sum() < 5
  other, _ = order.Mixture((10**6, 10**6), (0.5, 0.5), 1).train(np.arange(order.PERIOD))
  assert 0.45 < (sources == other).mean() < 0.55


def test_mixtures_are_the_same_on_every_machine_and_version():
  """A record, as above."""
  sources, rows = order.Mixture((1000, 50), (0.7, 0.3), 1337).train(np.arange(10**9, 10**9 + 6))
  assert sources.tolist() == [1, 1, 0, 0, 0, 0]
  assert rows.tolist() == [32, 31, 6, 581, 558, 19]
  sources, rows = order.Mixture((1000, 50), None, 1337).train(np.arange(10**9, 10**9 + 6))
  assert (sources * 1000 + rows).tolist() == [613, 350, 612, 53, 855, 501]


@hypothesis.given(
  st.lists(st.integers(1, 500), min_size=1, max_size=4), st.integers(1, 100), st.data()
)
def test_evaluation_is_spread_evenly_over_each_source(sizes, total, data):
  weights = data.draw(st.none() | st.just(tuple(float(1 + k) for k in range(len(sizes)))))
  mixture = order.Mixture(tuple(sizes), weights, 0)
  sources, rows = mixture.val(np.arange(total), total)
  assert (np.diff(sources) >= 0).all()
  shares = np.array(weights or sizes) / sum(weights or sizes) * total
  assert (np.abs(np.bincount(sources, minlength=len(sizes)) - shares) < 1).all()
  for source, size in enumerate(sizes):
    mine = rows[sources == source]
    gaps = np.diff(mine)
    assert len(mine) == 0 or mine[0] == 0
    assert len(mine) < 2 or (mine[-1] == size - 1 and gaps.max() - gaps.min() <= 1)
  alone = [tuple(v.tolist() for v in mixture.val(np.array([i]), total)) for i in range(total)]
  assert alone == [([s], [r]) for s, r in zip(sources.tolist(), rows.tolist(), strict=True)]
