"""Rows of every kind show a model the text as it is, each token as often as promised."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data.batches import batch, chunks, stream
from tests import raised

KINDS = ('windows', 'partition', 'packed', 'sentences')
START, PAD = 7, 9
_FIRST_ID = 100  # ids from here on are addresses of tokens


@st.composite
def splits(draw):
  """Documents in shards, all of them or a few, in one or more spans; ids are addresses."""
  lengths = draw(st.lists(st.integers(0, 15), min_size=1, max_size=10))
  ends = np.cumsum([0, *lengths])
  documents = np.stack([ends[:-1], ends[1:]], 1)
  ids = np.arange(_FIRST_ID, _FIRST_ID + ends[-1], dtype=np.uint16)
  opened = [start for start, stop in documents if start < stop and draw(st.booleans())]
  ids[np.array(opened, np.int64)] = START
  bounds = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=3)))
  chosen = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
  documents = documents[np.array(chosen) | draw(st.booleans())]
  return stream.Split(stream.Tokens(tuple(np.split(ids, bounds))), documents, lambda: documents)


block_sizes = st.integers(1, 20)


def _chunk(kind, split, block_size, *, start_id=START, end_ids=(), **options):
  data = config.DataConfig(chunks=kind, **options)
  return chunks.chunk(
    data, split, block_size=block_size, start_id=start_id, end_ids=end_ids, pad_id=PAD
  )


def _all_rows(kind, split, block_size, **options):
  """All rows of a split; rejects examples that have too little text for one."""
  try:
    chunked = _chunk(kind, split, block_size, **options)
  except errors.UserError:
    hypothesis.reject()
  rows = chunked.rows(np.arange(len(chunked)))
  assert rows.inputs.dtype == rows.targets.dtype == np.int32
  assert rows.inputs.shape == rows.targets.shape == (len(chunked), block_size)
  assert (rows.segments is None) == (kind != 'packed')
  return chunked, rows


def _joined(split):
  return np.concatenate([split.tokens.read(a, b) for a, b in split.spans.tolist()]).astype(int)


@hypothesis.given(splits(), block_sizes)
def test_there_is_a_window_at_every_position(split, block_size):
  _, rows = _all_rows('windows', split, block_size)
  views = np.lib.stride_tricks.sliding_window_view(_joined(split), block_size + 1)
  np.testing.assert_array_equal(rows.inputs, views[:, :-1])
  np.testing.assert_array_equal(rows.targets, views[:, 1:])


@hypothesis.given(splits(), block_sizes)
def test_a_partition_has_each_token_but_the_first_as_target_once(split, block_size):
  _, rows = _all_rows('partition', split, block_size)
  text = _joined(split)
  counts = rows.targets != batch.IGNORED
  assert rows.targets[counts].tolist() == text[1:].tolist()
  assert rows.inputs[counts].tolist() == text[:-1].tolist()
  assert counts[:-1].all() and counts[-1].any(), 'padding in another row than the last'
  assert (rows.inputs[~counts] == PAD).all()


@hypothesis.given(splits(), block_sizes, st.sampled_from([START, None]))
def test_packed_rows_have_each_token_of_a_document_as_target_once(split, block_size, start_id):
  _, rows = _all_rows('packed', split, block_size, start_id=start_id)
  seen: collections.Counter[tuple[int, ...]] = collections.Counter()
  for inputs, targets, segments in zip(*rows, strict=True):
    count = segments.max()
    filled = int((segments > 0).sum())
    assert segments.tolist() == sorted(segments[:filled].tolist()) + [0] * (block_size - filled)
    assert set(segments[:filled].tolist()) == set(range(1, count + 1)) and count
    assert (inputs[filled:] == PAD).all() and (targets[filled:] == batch.IGNORED).all()
    for segment in range(1, count + 1):
      here = segments == segment
      seen[(inputs[here][0], *targets[here].tolist())] += 1
      assert inputs[here][1:].tolist() == targets[here][:-1].tolist()
  assert seen == collections.Counter(_pieces(split, block_size, start_id))


def _pieces(split, block_size, start_id):
  """The pieces of every document, one by one."""
  for first, stop in split.documents().tolist():
    ids = split.tokens.read(first, stop).tolist()
    if start_id is not None and ids[:1] != [start_id]:
      ids = [start_id, *ids]
    for begin in range(0, len(ids) - 1, block_size):
      yield tuple(ids[begin : begin + block_size + 1])


@hypothesis.given(splits(), st.integers(2, 6), st.integers(0, 8), st.integers(0, 4), st.booleans())
def test_sentences_are_whole_and_padded(split, low, more, room, overlap):
  block_size = low + more - 1 + room
  ends = tuple(range(_FIRST_ID, _FIRST_ID + 200, 3))
  options = {'min_length': low, 'max_length': low + more, 'overlap': overlap}
  _, rows = _all_rows('sentences', split, block_size, end_ids=ends, **options)
  for inputs, targets in zip(rows.inputs, rows.targets, strict=True):
    length = int((targets != batch.IGNORED).sum())
    chunk = [inputs[0], *targets[:length].tolist()]
    assert low <= len(chunk) <= low + more
    assert chunk[-1] in ends
    assert inputs[:length].tolist() == chunk[:-1]
    assert (inputs[length:] == PAD).all() and (targets[length:] == batch.IGNORED).all()
    address = chunk[-1] - _FIRST_ID + 1
    assert chunk == split.tokens.read(address - len(chunk), address).tolist()
    documents = split.documents()
    assert ((documents[:, 0] <= address - len(chunk)) & (address <= documents[:, 1])).any()


@pytest.mark.parametrize('kind', KINDS)
@hypothesis.given(splits(), st.data())
def test_rows_are_read_alone_as_together(kind, split, data):
  options = {'end_ids': range(_FIRST_ID, 200, 2), 'min_length': 2, 'max_length': 5}
  chunked, rows = _all_rows(kind, split, 6, **options)
  indices = data.draw(st.lists(st.integers(0, len(chunked) - 1), max_size=6))
  some = chunked.rows(np.array(indices, np.int64))
  for column, all_of_it in zip(some, rows, strict=True):
    if all_of_it is not None:
      assert column.shape == (len(indices), 6)
      np.testing.assert_array_equal(column, all_of_it[indices])


def _text(size):
  tokens = stream.Tokens((np.arange(_FIRST_ID, _FIRST_ID + size, dtype=np.uint16),))
  span = np.array([[0, size]], np.int64)
  return stream.Split(tokens, span, lambda: span)


@pytest.mark.parametrize(
  ('kind', 'enough'), [('windows', 9), ('partition', 2), ('packed', 2), ('sentences', 6)]
)
def test_too_little_text_is_reported(kind, enough):
  options = {'start_id': None, 'end_ids': (_FIRST_ID + 5,), 'min_length': 6, 'max_length': 8}
  assert len(_chunk(kind, _text(enough), 8, **options)) == 1
  for size in (0, enough - 1):
    error = raised.user_error(_chunk, kind, _text(size), 8, **options)
    assert error.key == 'data.chunks' and f'{size} tokens' in str(error)


@pytest.mark.parametrize(
  ('kind', 'summary'),
  [
    ('windows', '1,992 windows'),
    ('partition', '250 blocks'),
    ('packed', '250 rows, 100.0 % filled'),
    ('sentences', '200 chunks of whole sentences, 10.0 tokens on average'),
  ],
)
def test_a_summary_has_the_number_of_rows(kind, summary):
  ends = [_FIRST_ID + i for i in range(2000) if i % 20 in (4, 19)]
  options = {'end_ids': ends, 'min_length': 5, 'max_length': 15}
  block_size = 14 if kind == 'sentences' else 8
  assert _chunk(kind, _text(2000), block_size, **options).summary == summary
