"""Batches are pure functions of (seed, step) and stay inside the corpus."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax.data import batches

sizes = st.tuples(st.integers(1, 40), st.integers(1, 300)).map(lambda t: (t[0], t[0] + t[1]))
seeds = st.integers(0, 2**70)
steps = st.integers(0, 2**40)


@hypothesis.given(sizes, st.integers(1, 20), seeds, steps)
def test_every_training_window_is_inside(size, batch_size, seed, step):
  block_size, num_tokens = size
  starts = batches.train_starts(
    num_tokens, block_size=block_size, batch_size=batch_size, seed=seed, step=step
  )
  assert starts.dtype == np.int64 and starts.shape == (batch_size,)
  assert starts.min() >= 0 and starts.max() + block_size + 1 <= num_tokens


@hypothesis.given(seeds, steps)
def test_a_batch_depends_on_seed_and_step_alone(seed, step):
  def draw(seed, step):
    return batches.train_starts(10**9, block_size=8, batch_size=8, seed=seed, step=step).tolist()

  first = draw(seed, step)
  np.random.default_rng(seed).random(100)
  draw(seed + 1, step + 1)
  assert draw(seed, step) == first
  assert draw(seed, step + 1) != first
  assert draw(seed + 1, step) != first
  assert draw(step, seed) != first or seed == step


def test_a_larger_batch_begins_with_the_smaller_one():
  small, large = (
    batches.train_starts(10**6, block_size=8, batch_size=b, seed=3, step=7) for b in (8, 64)
  )
  assert large[:8].tolist() == small.tolist()


def test_batches_are_the_same_on_every_machine_and_version():
  """A record: if it fails, runs that resume see other text than they would have seen."""
  starts = batches.train_starts(1_003_854, block_size=64, batch_size=4, seed=1337, step=5)
  assert starts.tolist() == [123518, 515911, 261795, 943154]


def test_training_starts_are_uniform():
  num_places, draws = 50, 50_000
  starts = np.concatenate(
    [
      batches.train_starts(num_places + 16, block_size=16, batch_size=500, seed=0, step=step)
      for step in range(draws // 500)
    ]
  )
  counts = np.bincount(starts, minlength=num_places)
  expected = draws / num_places
  chi_square = ((counts - expected) ** 2 / expected).sum()
  assert len(counts) == num_places
  assert chi_square < 85.4  # 49 degrees of freedom: exceeded once in a thousand


@hypothesis.given(sizes, st.integers(1, 10), st.integers(1, 10))
def test_validation_windows_are_spread_over_the_split(size, batch_size, num_batches):
  block_size, num_tokens = size
  starts = np.concatenate(
    [
      batches.val_starts(
        num_tokens,
        block_size=block_size,
        batch_size=batch_size,
        num_batches=num_batches,
        index=index,
      )
      for index in range(num_batches)
    ]
  )
  count, last = batch_size * num_batches, num_tokens - block_size - 1
  gaps = np.diff(starts)
  assert starts[0] == 0 and (count == 1 or starts[-1] == last)
  assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
  if count * block_size <= num_tokens - 1:
    assert (gaps >= block_size).all(), 'windows overlap though there is room'
  if count > 1 and count * block_size >= num_tokens - 1:
    seen = starts[:, None] + np.arange(block_size + 1)
    assert set(seen.ravel().tolist()) == set(range(num_tokens)), 'a token is never seen'


@pytest.mark.parametrize('dtype', ['<u2', '<u4'])
def test_windows_give_the_tokens_from_their_starts_on(dtype, tmp_path):
  np.arange(60_000, 60_500).astype(dtype).tofile(tmp_path / 'tokens')
  tokens = np.memmap(tmp_path / 'tokens', dtype, mode='r')
  windows = batches.windows(tokens, np.array([0, 7, 500 - 16]), 16)
  assert windows.dtype == np.int32
  assert windows.shape == (3, 16)
  assert windows[:, 0].tolist() == [60_000, 60_007, 60_484]
  assert (np.diff(windows) == 1).all()


@hypothesis.given(st.data())
def test_rows_of_a_batch_are_read_alone_as_together(data):
  tokens = np.array(data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=20)), np.uint16)
  starts = batches.train_starts(len(tokens), block_size=9, batch_size=12, seed=0, step=0)
  rows = data.draw(st.slices(12))
  whole = batches.windows(tokens, starts, 9)
  np.testing.assert_array_equal(batches.windows(tokens, starts[rows], 9), whole[rows])


def test_no_window_may_reach_beyond_the_end():
  assert batches.windows(np.arange(20), np.array([12]), 8)[0, -1] == 19
  with pytest.raises(IndexError):
    batches.windows(np.arange(20), np.array([13]), 8)
