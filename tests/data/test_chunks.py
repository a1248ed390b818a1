"""Rows of every kind show a model the text as it is, each token as often as promised."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data.batches import batch, chunks, stream
from tests import raised

KINDS = ('windows', 'partition', 'packed', 'sentences', 'documents')
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
  size = len(documents)
  labels = np.array(draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size)), np.int64)
  tokens = stream.Tokens(tuple(np.split(ids, bounds)))
  return stream.Split(tokens, documents, lambda: documents, lambda: labels)


block_sizes = st.integers(1, 20)


def _chunk(kind, split, block_size, *, start_id=START, end_ids=(), **options):
  classify = kind == 'documents'
  data = config.DataConfig(chunks='windows' if classify else kind, **options)
  return chunks.chunk(
    data,
    split,
    task='classify' if classify else 'next_token',
    block_size=block_size,
    start_id=start_id,
    end_ids=end_ids,
    pad_id=PAD,
  )


def _all_rows(kind, split, block_size, **options):
  """All rows of a split; rejects examples that have too little text for one."""
  try:
    chunked = _chunk(kind, split, block_size, **options)
  except errors.UserError:
    hypothesis.reject()
  rows = chunked.rows(np.arange(len(chunked)))
  assert rows.inputs.dtype == rows.targets.dtype == np.int32
  assert rows.inputs.shape == rows.targets.shape
  assert rows.inputs.shape == (len(chunked), options.get('row_length') or block_size)
  assert (rows.segments is None) == (kind in ('windows', 'partition'))
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


def _segments(rows):
  """Inputs and targets of each segment of each row; the rest of a row is padding."""
  for inputs, targets, segments in zip(*rows[:3], strict=True):
    count, filled = segments.max(), int((segments > 0).sum())
    rest = [0] * (len(segments) - filled)
    assert segments.tolist() == sorted(segments[:filled].tolist()) + rest
    assert set(segments[:filled].tolist()) == set(range(1, count + 1)) and count
    assert (inputs[filled:] == PAD).all() and (targets[filled:] == batch.IGNORED).all()
    for segment in range(1, count + 1):
      here = segments == segment
      yield inputs[here].tolist(), targets[here].tolist()


@hypothesis.given(splits(), block_sizes, st.integers(0, 9), st.sampled_from([START, None]))
def test_packed_rows_have_each_token_of_a_document_as_target_once(split, size, more, start_id):
  _, rows = _all_rows('packed', split, size, start_id=start_id, row_length=size + more)
  seen: collections.Counter[tuple[int, ...]] = collections.Counter()
  for inputs, targets in _segments(rows):
    seen[(inputs[0], *targets)] += 1
    assert inputs[1:] == targets[:-1]
  assert seen == collections.Counter(_pieces(split, size, start_id))


@hypothesis.given(splits(), st.integers(1, 6), st.integers(0, 12))
def test_documents_have_their_class_at_their_end_and_are_read_in_windows(split, size, more):
  _, rows = _all_rows('documents', split, size, row_length=size + more)
  seen: collections.Counter[tuple[int, ...]] = collections.Counter()
  document: list[int] = []
  for inputs, targets in _segments(rows):
    *before, label = targets
    assert set(before) <= {batch.IGNORED} and len(inputs) <= size
    assert not document or len(document) % size == 0, 'a window before the last is not full'
    document += inputs
    if label != batch.IGNORED:
      seen[(label, *document)] += 1
      document = []
  assert not document
  labelled = zip(split.documents().tolist(), split.labels().tolist(), strict=True)
  assert seen == collections.Counter(
    (label, *split.tokens.read(start, min(stop, start + size + more)).tolist())
    for (start, stop), label in labelled
    if label >= 0 and start < stop
  )


def _pieces(split, block_size, start_id):
  """The pieces of every document, one by one."""
  for first, stop in split.documents().tolist():
    ids = split.tokens.read(first, stop).tolist()
    if start_id is not None and ids[:1] != [start_id]:
      ids = [start_id, *ids]
    for begin in range(0, len(ids) - 1, block_size):
      yield tuple(ids[begin : begin + block_size + 1])


@hypothesis.given(splits(), st.integers(2, 6), st.integers(0, 8), st.integers(0, 9), st.booleans())
def test_sentences_are_whole_and_packed(split, low, more, room, overlap):
  block_size = low + more - 1
  ends = tuple(range(_FIRST_ID, _FIRST_ID + 200, 3))
  options = {'min_length': low, 'max_length': low + more, 'overlap': overlap}
  options['row_length'] = block_size + room
  _, rows = _all_rows('sentences', split, block_size, end_ids=ends, **options)
  for inputs, targets in _segments(rows):
    chunk = [inputs[0], *targets]
    assert low <= len(chunk) <= low + more
    assert chunk[-1] in ends
    assert inputs == chunk[:-1]
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
  return stream.Split(tokens, span, lambda: span, lambda: np.array([1]))


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
    (
      'sentences',
      '134 rows, 95.9 % filled, 200 chunks of whole sentences, 10.0 tokens on average',
    ),
    ('documents', '1 documents, 1 of them cut to 8 tokens'),
  ],
)
def test_a_summary_has_the_number_of_rows(kind, summary):
  ends = [_FIRST_ID + i for i in range(2000) if i % 20 in (4, 19)]
  options = {'end_ids': ends, 'min_length': 5, 'max_length': 15}
  block_size = 14 if kind == 'sentences' else 8
  assert _chunk(kind, _text(2000), block_size, **options).summary == summary
