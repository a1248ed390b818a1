"""The two sides of a corpus: they hold all of it, and nothing twice."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data.batches import sides, stream


def make(lengths, splits=None, shard_of=None, seed=0):
  """Documents of `lengths` in shards; token i of the corpus is i."""
  ends = np.cumsum(lengths)
  shard_of = shard_of or [0] * len(lengths)
  tokens = np.arange(ends[-1], dtype=np.uint32)
  bounds = [0, *(ends[i] for i in range(len(lengths) - 1) if shard_of[i] != shard_of[i + 1])]
  shards = [tokens[a:b] for a, b in zip(bounds, [*bounds[1:], ends[-1]], strict=True)]
  hashes = np.random.default_rng(seed).integers(0, 2**64, len(lengths), np.uint64)
  return sides.Tokenized(
    source='text:x',
    tokens=stream.Tokens(tuple(shards)),
    splits=tuple(splits or [''] * len(shards)),
    documents=lambda: sides.Documents(ends.astype(np.int64), hashes),
  )


def covered(side):
  return [i for start, stop in side.spans for i in range(start, stop)]


def documents(side):
  return [tuple(bounds) for bounds in side.documents().tolist()]


_LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@hypothesis.given(
  lengths=_LENGTHS,
  split=st.sampled_from(['position', 'document']),
  val_fraction=st.floats(0.01, 0.99),
  data=st.data(),
)
def test_the_sides_hold_all_and_nothing_twice(lengths, split, val_fraction, data):
  shard_of = sorted(
    data.draw(st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
  )
  whole = make(lengths, shard_of=shard_of)
  train, val = whole.sides(config.DataConfig(split=split, val_fraction=val_fraction))
  assert sorted(covered(train) + covered(val)) == list(range(len(whole.tokens)))
  assert sorted(documents(train) + documents(val)) == sorted(
    (end - length, end) for length, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)
  )
  if split == 'document':
    for side in (train, val):
      assert covered(side) == [i for a, b in documents(side) for i in range(a, b)]
      assert np.all(side.spans[1:, 0] > side.spans[:-1, 1]), 'stretches that touch are one'


def test_by_position_the_end_is_for_validation():
  train, val = make([4, 6, 10]).sides(config.DataConfig(split='position', val_fraction=0.25))
  assert train.spans.tolist() == [[0, 15]] and val.spans.tolist() == [[15, 20]]
  assert documents(train) == [(0, 4), (4, 10), (10, 20)] and documents(val) == []
  train, val = make([7]).sides(config.DataConfig(split='position', val_fraction=0.25))
  assert train.spans.tolist() == [[0, 5]] and val.spans.tolist() == [[5, 7]]


def test_the_hash_at_the_limit_is_for_training():
  whole = dataclasses.replace(
    make([1, 1]),
    documents=lambda: sides.Documents(
      np.array([1, 2], np.int64), np.array([2**62, 2**62 - 1], np.uint64)
    ),
  )
  train, val = whole.sides(config.DataConfig(split='document', val_fraction=0.25))
  assert (documents(train), documents(val)) == ([(0, 1)], [(1, 2)])


def test_documents_go_to_the_side_of_their_hash_whatever_else_there_is():
  lengths = [3] * 2000
  whole = make(lengths)
  train, val = whole.sides(config.DataConfig(split='document', val_fraction=0.1))
  assert 140 < len(documents(val)) < 260
  hashes = whole.documents().hashes
  held_out = {int(hashes[start // 3]) for start, _ in documents(val)}
  kept = {int(hashes[start // 3]) for start, _ in documents(train)}
  assert max(held_out) < min(kept)
  _, more = whole.sides(config.DataConfig(split='document', val_fraction=0.2))
  assert set(documents(val)) < set(documents(more))


@pytest.mark.parametrize(
  ('splits', 'train', 'val'),
  [
    (['train', 'validation', 'test'], [0], [1]),
    (['train', 'test', 'unsupervised'], [0, 2], [1]),
    (['', 'validation', 'train'], [0, 2], [1]),
  ],
)
def test_a_given_split_is_taken_as_it_is(splits, train, val):
  whole = make([2, 3, 4], splits=splits, shard_of=[0, 1, 2])
  bounds = [(0, 2), (2, 5), (5, 9)]
  found = whole.sides(config.DataConfig(split='given'))
  for side, shards in zip(found, (train, val), strict=True):
    assert documents(side) == [bounds[i] for i in shards]
    assert covered(side) == [i for shard in shards for i in range(*bounds[shard])]


@pytest.mark.parametrize('splits', [[''], ['train'], ['validation'], ['other']])
def test_a_split_that_is_not_given_is_named(splits):
  found = splits[0] or 'none'
  with pytest.raises(errors.UserError, match=f'{found}.*data.split=position or document'):
    make([2], splits=splits).sides(config.DataConfig(split='given'))
