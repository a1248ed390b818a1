"""Pieces cover documents once; rows are as few as best fit makes them."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from gpt_jax.data.batches import packing


@st.composite
def documents(draw):
  """Documents with gaps between them, and whether each gets a token before it."""
  steps = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=10))
  ends = np.cumsum([n for step in steps for n in step], dtype=np.int64).reshape(-1, 2)
  prefixed = draw(st.lists(st.booleans(), min_size=len(ends), max_size=len(ends)))
  return ends, np.array(prefixed, bool)


@hypothesis.given(documents(), st.integers(1, 8))
def test_pieces_cover_each_target_of_a_document_once_in_as_few_as_possible(drawn, row_length):
  spans, prefixed = drawn
  pieces = packing.divide(spans, prefixed, row_length)
  assert [column.dtype for column in pieces] == [np.int64, np.int32, np.bool_]
  targets = [
    address
    for start, length in zip(pieces.starts, pieces.lengths, strict=True)
    for address in range(start, start + length)
  ]
  assert targets == [
    address
    for (start, stop), prefix in zip(spans, prefixed, strict=True)
    for address in range(start + (not prefix), stop)
  ]
  assert ((pieces.lengths >= 1) & (pieces.lengths <= row_length)).all()
  numbers = np.maximum(spans[:, 1] - spans[:, 0] - 1 + prefixed, 0)
  assert len(pieces.lengths) == np.ceil(numbers / row_length).sum()
  opened = spans[prefixed & (spans[:, 0] < spans[:, 1]), 0]
  assert pieces.starts[pieces.opens].tolist() == opened.tolist()


def test_documents_are_divided_alike_in_portions(monkeypatch):
  ends = np.cumsum(np.random.default_rng(0).integers(0, 30, 101))
  spans, prefixed = np.stack([ends[:-1], ends[1:]], 1), np.arange(100) % 3 > 0
  whole = packing.divide(spans, prefixed, 8)
  monkeypatch.setattr(packing, '_DOCUMENTS_AT_ONCE', 7)
  for first, second in zip(whole, packing.divide(spans, prefixed, 8), strict=True):
    np.testing.assert_array_equal(first, second)


def _best_fit_decreasing(lengths, row_length):
  """The room left in each row, one piece at a time."""
  room: list[int] = []
  for length in sorted(lengths, reverse=True):
    fitting = [i for i, left in enumerate(room) if left >= length]
    if fitting:
      room[min(fitting, key=lambda i: room[i])] -= length
    else:
      room.append(row_length - length)
  return room


problems = st.integers(1, 30).flatmap(
  lambda room: st.tuples(st.lists(st.integers(1, room), max_size=80), st.just(room))
)


@hypothesis.given(problems)
def test_rows_are_those_of_best_fit_one_piece_at_a_time(problem):
  lengths, row_length = problem
  rows = packing.pack(np.array(lengths, np.int32), row_length)
  assert rows.dtype == np.int32
  assert set(rows.tolist()) == set(range(rows.max(initial=-1) + 1)), 'a row is empty'
  left = row_length - np.bincount(rows, weights=lengths)
  assert sorted(left.tolist()) == sorted(_best_fit_decreasing(lengths, row_length))


def test_packing_is_the_same_each_time():
  """A record: if it fails, runs that resume see other rows than they would have seen."""
  lengths = np.array([3, 5, 2, 8, 4, 1, 1, 5, 3, 2])
  assert packing.pack(lengths, 8).tolist() == [1, 1, 3, 0, 3, 4, 4, 2, 2, 3]
