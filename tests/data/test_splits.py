"""The three splits of a source: they hold all of it, and nothing twice."""

import types
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config
from gpt_jax.data import splits
from gpt_jax.data.batches import stream
from tests import raised


def _source(lengths: Any, *, names: Any = None, shard_of: Any = None, hashes: Any = None) -> Any:
  """Documents of `lengths` in shards with these splits; token i is i."""
  ends = np.cumsum(lengths)
  shard_of = shard_of or [0] * len(lengths)
  bounds = [ends[i] for i in range(len(lengths) - 1) if shard_of[i] != shard_of[i + 1]]
  shards = np.split(np.arange(ends[-1], dtype=np.uint32), bounds)
  documents = np.empty(len(lengths), stream.DOCUMENT)
  documents['end'] = ends
  documents['hash'] = np.random.default_rng(0).integers(0, 2**64, len(lengths), np.uint64)
  if hashes:
    documents['hash'] = hashes
  documents['label'] = np.arange(len(lengths)) % 3 - 1
  return types.SimpleNamespace(
    spec='text:x',
    tokens=stream.Tokens(tuple(shards)),
    shard_splits=tuple(names or [''] * len(shards)),
    documents=documents,
    classes=('bad', 'good'),
  )


def _split(source, **data):
  """The training and the validation split."""
  return splits.make(source, config.DataConfig(**data))[:2]


def _covered(split):
  return [i for start, stop in split.spans for i in range(start, stop)]


def _documents(split):
  return [tuple(bounds) for bounds in split.documents().tolist()]


@hypothesis.given(
  lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
  kind=st.sampled_from(['position', 'document']),
  val_fraction=st.floats(0.01, 0.99),
  test_fraction=st.floats(0, 0.99),
  data=st.data(),
)
def test_the_splits_hold_all_and_nothing_twice(lengths, kind, val_fraction, test_fraction, data):
  shards = st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths))
  source = _source(lengths, shard_of=sorted(data.draw(shards)))
  fractions = {'val_fraction': val_fraction, 'test_fraction': test_fraction}
  found = splits.make(source, config.DataConfig(split=kind, **fractions))
  assert sorted(i for split in found for i in _covered(split)) == list(range(len(source.tokens)))
  assert sorted(document for split in found for document in _documents(split)) == sorted(
    (end - length, end) for length, end in zip(lengths, np.cumsum(lengths).tolist(), strict=True)
  )
  if kind == 'document':
    for split in found:
      assert _covered(split) == [i for a, b in _documents(split) for i in range(a, b)]
      assert np.all(split.spans[1:, 0] > split.spans[:-1, 1]), 'spans that touch are joined'


def test_by_position_the_end_is_for_validation():
  train, val = _split(_source([4, 6, 10]), split='position', val_fraction=0.25)
  assert train.spans.tolist() == [[0, 15]] and val.spans.tolist() == [[15, 20]]
  assert _documents(train) == [(0, 4), (4, 10), (10, 20)] and _documents(val) == []
  train, val = _split(_source([7]), split='position', val_fraction=0.25)
  assert train.spans.tolist() == [[0, 5]] and val.spans.tolist() == [[5, 7]]


def test_a_document_is_held_out_by_its_hash_whatever_else_there_is():
  source = _source([1, 1], hashes=[2**62, 2**62 - 1])
  train, val = _split(source, split='document', val_fraction=0.25)
  assert (_documents(train), _documents(val)) == ([(0, 1)], [(1, 2)])
  many = _source([3] * 2000)
  _, val = _split(many, split='document', val_fraction=0.1)
  _, more = _split(many, split='document', val_fraction=0.2)
  assert 140 < len(_documents(val)) < 260
  assert set(_documents(val)) < set(_documents(more))


def test_tests_take_their_share_first_and_validation_its_own_of_the_rest():
  _, val, test = splits.make(
    _source([4, 6, 10]), config.DataConfig(val_fraction=0.25, test_fraction=0.2)
  )
  assert test.spans.tolist() == [[16, 20]] and val.spans.tolist() == [[12, 16]]
  data = config.DataConfig(split='document', val_fraction=0.25, test_fraction=0.2)
  train, val, test = splits.make(_source([3] * 10_000), data)
  assert len(_documents(test)) == pytest.approx(2000, rel=0.1)
  assert len(_documents(val)) == pytest.approx(2000, rel=0.1)
  # Without tests the same documents stay in training, and more.
  fewer, _ = _split(_source([3] * 10_000), split='document', val_fraction=0.4)
  assert set(_documents(fewer)) == set(_documents(train))


@pytest.mark.parametrize('classes', [('bad', 'good'), ('x', 'good', 'bad')])
def test_documents_keep_their_classes_in_whatever_split(classes):
  source = _source([1] * 300)
  data = config.DataConfig(split='document', val_fraction=0.3, test_fraction=0.3)
  for split in splits.make(source, data, classes):
    names = [(*classes, None)[label] for label in split.labels()]
    starts = [start for start, _ in _documents(split)]
    assert names == [(None, 'bad', 'good')[start % 3] for start in starts] and names


@pytest.mark.parametrize(
  ('names', 'train', 'val'),
  [
    (['train', 'validation', 'test'], [0], [1]),
    (['train', 'test', 'unsupervised'], [0, 2], [1]),
    (['', 'validation', 'train'], [0, 2], [1]),
  ],
)
def test_a_given_split_is_taken_as_it_is(names, train, val):
  source = _source([2, 3, 4], names=names, shard_of=[0, 1, 2])
  bounds = [(0, 2), (2, 5), (5, 9)]
  for split, shards in zip(_split(source, split='given'), (train, val), strict=True):
    assert _documents(split) == [bounds[i] for i in shards]
    assert _covered(split) == [i for shard in shards for i in range(*bounds[shard])]


@pytest.mark.parametrize('name', ['', 'train', 'validation', 'other'])
def test_a_split_that_is_not_given_is_reported(name):
  error = raised.user_error(_split, _source([2], names=[name]), split='given')
  assert error.key == 'data.split' and (name or 'none') in str(error)
