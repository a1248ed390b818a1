"""Rows of every kind show a model the text as it stands, each token as often as promised."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data.batches import chunks, stream

START, PADDING = 7, 9
_FIRST_ID = 100  # Ids from here on tell the address of a token.


@st.composite
def sides(draw):
  """Documents in shards, all of them or a few, in one or more spans; ids are addresses."""
  lengths = draw(st.lists(st.integers(0, 15), min_size=1, max_size=10))
  ends = np.cumsum([0, *lengths])
  documents = np.stack([ends[:-1], ends[1:]], 1)
  ids = np.arange(_FIRST_ID, _FIRST_ID + ends[-1], dtype=np.uint16)
  opened = [start for start, stop in documents if start < stop and draw(st.booleans())]
  ids[np.array(opened, np.int64)] = START
  cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=3)))
  chosen = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
  documents = documents[np.array(chosen) | draw(st.booleans())]
  return stream.Side(stream.Tokens(tuple(np.split(ids, cuts))), documents, lambda: documents)


block_sizes = st.integers(1, 20)


def _make(kind, side, block_size, *, start=START, end_ids=(), **options):
  data = config.DataConfig(chunks=kind, **options)
  return chunks.make(
    data, side, block_size=block_size, start=start, end_ids=end_ids, padding=PADDING
  )


def _all_rows(kind, side, block_size, **options):
  """Every row of a side, or a rejected example where it has too little text for one."""
  try:
    made = _make(kind, side, block_size, **options)
  except errors.UserError:
    hypothesis.reject()
  rows = made.rows(np.arange(len(made)))
  assert rows.inputs.dtype == rows.targets.dtype == np.int32
  assert rows.inputs.shape == rows.targets.shape == (len(made), block_size)
  return made, rows


def _joined(side):
  return np.concatenate([side.tokens.read(a, b) for a, b in side.spans.tolist()]).astype(int)


@hypothesis.given(sides(), block_sizes)
def test_there_is_a_window_at_every_place(side, block_size):
  made, rows = _all_rows('windows', side, block_size)
  text = _joined(side)
  views = np.lib.stride_tricks.sliding_window_view(text, block_size + 1)
  assert len(made) == len(text) - block_size
  assert rows.segments is None
  np.testing.assert_array_equal(rows.inputs, views[:, :-1])
  np.testing.assert_array_equal(rows.targets, views[:, 1:])


@hypothesis.given(sides(), block_sizes)
def test_a_partition_has_each_token_but_the_first_as_target_once(side, block_size):
  _, rows = _all_rows('partition', side, block_size)
  text = _joined(side)
  told = rows.targets != chunks.IGNORED
  assert rows.segments is None
  assert rows.targets[told].tolist() == text[1:].tolist()
  assert rows.inputs[told].tolist() == text[:-1].tolist()
  assert told[:-1].all() and told[-1].any(), 'padding elsewhere than in the last row'
  assert (rows.inputs[~told] == PADDING).all()


@hypothesis.given(sides(), block_sizes, st.sampled_from([START, None]))
def test_packed_rows_have_each_token_of_a_document_as_target_once(side, block_size, start):
  _, rows = _all_rows('packed', side, block_size, start=start)
  seen: collections.Counter[tuple[int, ...]] = collections.Counter()
  for inputs, targets, segments in zip(*rows, strict=True):
    count = segments.max()
    filled = int((segments > 0).sum())
    assert segments.tolist() == sorted(segments[:filled].tolist()) + [0] * (block_size - filled)
    assert set(segments[:filled].tolist()) == set(range(1, count + 1)) and count
    assert (inputs[filled:] == PADDING).all() and (targets[filled:] == chunks.IGNORED).all()
    for segment in range(1, count + 1):
      here = segments == segment
      seen[(inputs[here][0], *targets[here].tolist())] += 1
      assert inputs[here][1:].tolist() == targets[here][:-1].tolist()
  assert seen == collections.Counter(_pieces(side, block_size, start))


def _pieces(side, block_size, start):
  """The pieces of every document, cut one by one."""
  for first, stop in side.documents().tolist():
    ids = side.tokens.read(first, stop).tolist()
    if start is not None and ids[:1] != [start]:
      ids = [start, *ids]
    for begin in range(0, len(ids) - 1, block_size):
      yield tuple(ids[begin : begin + block_size + 1])


@hypothesis.given(sides(), block_sizes)
def test_packed_rows_are_few_and_tell_how_full_they_are(side, block_size):
  made, rows = _all_rows('packed', side, block_size)
  pieces = list(_pieces(side, block_size, START))
  filled = sum(len(piece) - 1 for piece in pieces)
  assert -(-filled // block_size) <= len(made) <= len(pieces)
  assert made.summary == (f'{len(made):,} rows, {100 * filled / rows.inputs.size:.1f} % filled')


@hypothesis.given(sides(), st.integers(2, 6), st.integers(0, 8), st.integers(0, 4), st.booleans())
def test_sentences_are_filled_up(side, low, more, room, overlap):
  block_size = low + more - 1 + room
  ends = tuple(range(_FIRST_ID, _FIRST_ID + 200, 3))
  options = {'min_length': low, 'max_length': low + more, 'overlap': overlap}
  _, rows = _all_rows('sentences', side, block_size, end_ids=ends, **options)
  assert rows.segments is None
  for inputs, targets in zip(rows.inputs, rows.targets, strict=True):
    length = int((targets != chunks.IGNORED).sum())
    chunk = [inputs[0], *targets[:length].tolist()]
    assert low <= len(chunk) <= low + more
    assert chunk[-1] in ends
    assert inputs[:length].tolist() == chunk[:-1]
    assert (inputs[length:] == PADDING).all() and (targets[length:] == chunks.IGNORED).all()
    address = chunk[-1] - _FIRST_ID + 1
    assert chunk == side.tokens.read(address - len(chunk), address).tolist()
    documents = side.documents()
    assert ((documents[:, 0] <= address - len(chunk)) & (address <= documents[:, 1])).any()


@pytest.mark.parametrize('kind', ['windows', 'partition', 'packed', 'sentences'])
@hypothesis.given(sides(), st.data())
def test_rows_are_read_alone_as_together(kind, side, data):
  options = {'end_ids': range(_FIRST_ID, 200, 2), 'min_length': 2, 'max_length': 5}
  made, rows = _all_rows(kind, side, 6, **options)
  indices = data.draw(st.lists(st.integers(0, len(made) - 1), max_size=6))
  some = made.rows(np.array(indices, np.int64))
  for column, all_of_it in zip(some, rows, strict=True):
    if all_of_it is not None:
      assert column.shape == (len(indices), 6)
      np.testing.assert_array_equal(column, all_of_it[indices])


def test_sentences_overlap_if_asked_to():
  ends = range(_FIRST_ID + 4, _FIRST_ID + 40, 5)
  options = {'end_ids': ends, 'min_length': 8, 'max_length': 10}
  assert len(_make('sentences', _text(40), 9, **options)) == 4
  assert len(_make('sentences', _text(40), 9, overlap=True, **options)) == 7


def _text(size):
  tokens = stream.Tokens((np.arange(_FIRST_ID, _FIRST_ID + size, dtype=np.uint16),))
  span = np.array([[0, size]], np.int64)
  return stream.Side(tokens, span, lambda: span)


@pytest.mark.parametrize(
  ('kind', 'enough', 'needed', 'remedy'),
  [
    ('windows', 9, '9 tokens', '--config.model.block_size'),
    ('partition', 2, '2 tokens', '--config.data.val_fraction'),
    ('packed', 2, '2 tokens of one document', '--config.data.val_fraction'),
    ('sentences', 6, 'whole sentences of one document with 6 to 8', '--config.data.min_length'),
  ],
)
def test_too_little_text_is_told(kind, enough, needed, remedy):
  options = {'start': None, 'end_ids': (_FIRST_ID + 5,), 'min_length': 6, 'max_length': 8}
  assert len(_make(kind, _text(enough), 8, **options)) == 1
  for size in (0, enough - 1):
    with pytest.raises(errors.UserError) as raised:
      _make(kind, _text(size), 8, **options)
    told = str(raised.value)
    assert f'one side of the split has {size} tokens' in told and f'takes {needed}' in told
    assert '--config.data.source' in told and remedy in told and '\n' not in told


@pytest.mark.parametrize(
  ('kind', 'summary'),
  [
    ('windows', '1,992 windows'),
    ('partition', '250 blocks'),
    ('packed', '250 rows, 100.0 % filled'),
    ('sentences', '200 chunks of whole sentences, 10.0 tokens on average'),
  ],
)
def test_chunks_are_summed_up_in_a_line(kind, summary):
  ends = [_FIRST_ID + i for i in range(2000) if i % 20 in (4, 19)]
  options = {'end_ids': ends, 'min_length': 5, 'max_length': 15}
  block_size = 14 if kind == 'sentences' else 8
  assert _make(kind, _text(2000), block_size, **options).summary == summary


@pytest.mark.parametrize('kind', ['packed', 'sentences'])
def test_documents_are_asked_for_once(kind):
  side, asked = _text(40), []

  def documents():
    asked.append(1)
    return side.documents()

  counted = stream.Side(side.tokens, side.spans, documents)
  made = _make(kind, counted, 39, end_ids=(_FIRST_ID + 30,))
  made.rows(np.array([0]))
  assert len(asked) == 1
