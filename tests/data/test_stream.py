"""Tokens are read across shards and spans as if they were in one array."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax.data.batches import stream


def _split(tokens, spans):
  return stream.Split(tokens, spans, lambda: spans, lambda: np.zeros(len(spans)))


@st.composite
def corpora(draw):
  """Shards, some empty, and the array that they are parts of."""
  sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
  dtype = draw(st.sampled_from([np.uint16, np.uint32]))
  whole = np.arange(1000, 1000 + sum(sizes), dtype=dtype)
  return stream.Tokens(tuple(np.split(whole, np.cumsum(sizes)[:-1]))), whole


@st.composite
def stretches(draw, size):
  starts = draw(st.lists(st.integers(0, size), max_size=8))
  lengths = [draw(st.integers(0, size - start)) for start in starts]
  return np.array(starts, np.int64), np.array(lengths, np.int64)


@st.composite
def splits(draw):
  """A split and its tokens, joined."""
  tokens, whole = draw(corpora())
  ends = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
  spans = np.array(ends[: len(ends) // 2 * 2], np.int64).reshape(-1, 2)
  joined = np.concatenate([whole[:0], *(whole[a:b] for a, b in spans)])
  return _split(tokens, spans), joined


@hypothesis.given(corpora(), st.data())
def test_any_stretch_is_read_as_from_one_array(corpus, data):
  tokens, whole = corpus
  start = data.draw(st.integers(0, len(whole)))
  stop = data.draw(st.integers(start, len(whole)))
  assert len(tokens) == len(whole)
  np.testing.assert_array_equal(tokens.read(start, stop), whole[start:stop])


@hypothesis.given(st.one_of(corpora(), splits()), st.data())
def test_many_stretches_are_read_and_joined(text_and_whole, data):
  text, whole = text_and_whole
  assert len(text) == len(whole)
  starts, lengths = data.draw(stretches(len(whole)))
  flat = text.gather(starts, lengths.astype(data.draw(st.sampled_from([np.int32, np.int64]))))
  assert flat.dtype == np.int32
  wanted = [whole[a : a + n] for a, n in zip(starts, lengths, strict=True)]
  assert flat.tolist() == np.concatenate([whole[:0], *wanted]).tolist()


@hypothesis.given(corpora(), st.data())
def test_single_tokens_are_taken_in_any_order(corpus, data):
  tokens, whole = corpus
  hypothesis.assume(len(whole))
  addresses = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1))), np.int64)
  taken = tokens.take(addresses)
  assert taken.dtype == np.int32
  assert taken.tolist() == whole[addresses].tolist()


@pytest.mark.parametrize('start', [-1, 13])
def test_no_stretch_may_reach_beyond_the_stream(start):
  tokens = stream.Tokens((np.arange(30, dtype=np.uint16),))
  split = _split(tokens, np.array([[5, 15], [20, 30]]))
  assert split.gather(np.array([12]), np.array([8])).tolist() == list(range(22, 30))
  with pytest.raises(IndexError, match='beyond the 20 tokens'):
    split.gather(np.array([0, start]), np.array([8, 8]))


def test_empty_spans_and_stretches_are_read_as_nothing():
  tokens = stream.Tokens((np.arange(9, dtype=np.uint16),))
  spans = np.array([[2, 2], [3, 3], [4, 4], [5, 9], [9, 9], [9, 9]])
  split = _split(tokens, spans)
  assert split.gather(np.array([0, 0, 4, 1]), np.array([0, 2, 0, 3])).tolist() == [5, 6, 6, 7, 8]


def test_memory_mapped_shards_are_read_alike(tmp_path):
  paths = [tmp_path / 'a', tmp_path / 'b']
  for number, path in enumerate(paths):
    np.arange(70_000 + 10 * number, 70_010 + 10 * number, dtype='<u4').tofile(path)
  tokens = stream.Tokens(tuple(np.memmap(path, '<u4', mode='r') for path in paths))
  assert tokens.gather(np.array([8]), np.array([4])).tolist() == list(range(70_008, 70_012))
  assert tokens.read(8, 12).tolist() == list(range(70_008, 70_012))


@hypothesis.given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 6))))
def test_ranges_are_joined(pairs):
  starts, lengths = np.array(pairs, np.int64).reshape(-1, 2).T
  wanted = [value for start, length in pairs for value in range(start, start + length)]
  assert stream.ranges(starts, lengths).tolist() == wanted
