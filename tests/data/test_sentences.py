"""Chunks are whole sentences of one document, as many as fit."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config
from gpt_jax.data.batches import sentences, stream

ENDS = (1, 7)


@st.composite
def corpora(draw):
  """Tokens in shards, documents with gaps between them, and limits for a chunk."""
  size = draw(st.integers(0, 60))
  ids = draw(st.lists(st.sampled_from([0, 1, 2, 7, 9]), min_size=size, max_size=size))
  cuts = sorted(draw(st.lists(st.integers(0, size), max_size=3)))
  tokens = stream.Tokens(tuple(np.split(np.array(ids, np.uint16), cuts)))
  ends = sorted(draw(st.lists(st.integers(0, size), max_size=10)))
  documents = np.array(ends[: len(ends) // 2 * 2], np.int64).reshape(-1, 2)
  low = draw(st.integers(2, 8))
  return tokens, documents, low, draw(st.integers(low, 16))


def _slowly(corpus, overlap):
  """The chunks, one sentence at a time."""
  tokens, documents, low, high = corpus
  found = []
  for start, stop in documents.tolist():
    ids = tokens.read(start, stop).tolist()
    ends = [start + i + 1 for i, token in enumerate(ids) if token in ENDS]
    begins = [start, *ends][: len(ends)]
    sentence = 0
    while sentence < len(ends):
      begin = begins[sentence]
      fitting = [i for i, end in enumerate(ends) if sentence <= i and end - begin <= high]
      if fitting and ends[fitting[-1]] - begin >= low:
        found.append((begin, ends[fitting[-1]]))
        sentence = sentence + 1 if overlap else fitting[-1] + 1
      else:
        sentence += 1
  return found


def _group(corpus, overlap):
  tokens, documents, low, high = corpus
  data = config.DataConfig(min_length=low, max_length=high, overlap=overlap)
  split = stream.Split(tokens, documents, lambda: documents, lambda: np.array([]))
  starts, lengths = sentences.group(data, split, ENDS)
  assert starts.dtype == lengths.dtype == np.int64
  return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))


@hypothesis.given(corpora(), st.booleans())
def test_chunks_are_those_found_sentence_by_sentence(corpus, overlap):
  assert _group(corpus, overlap) == _slowly(corpus, overlap)


def test_an_example():
  ids = [5, 5, 1, 5, 5, 5, 7, 5, 1, 5, 0, 5, 5, 5, 5, 5, 5, 1, 5, 5, 1]
  tokens, documents = stream.Tokens((np.array(ids, np.uint16),)), np.array([[0, 11], [11, 21]])
  assert _group((tokens, documents, 3, 6), False) == [(0, 3), (3, 9), (18, 21)]
  assert _group((tokens, documents, 3, 6), True) == [(0, 3), (3, 9), (18, 21)]
  assert _group((tokens, documents, 2, 7), False) == [(0, 7), (7, 9), (11, 18), (18, 21)]
  assert _group((tokens, documents, 2, 7), True) == [(0, 7), (3, 9), (7, 9), (11, 18), (18, 21)]


@pytest.mark.parametrize('portion', [1, 5, 19])
def test_long_text_is_searched_in_portions(portion, monkeypatch):
  ids = np.random.default_rng(0).integers(0, 10, 500).astype(np.uint16)
  tokens, documents = stream.Tokens((ids[:123], ids[123:])), np.array([[3, 200], [200, 490]])
  whole = _group((tokens, documents, 2, 30), True)
  monkeypatch.setattr(sentences, '_TOKENS_AT_ONCE', portion)
  assert whole and _group((tokens, documents, 2, 30), True) == whole


def test_text_without_ends_has_no_chunks():
  tokens = stream.Tokens((np.zeros(9, np.uint16),))
  assert _group((tokens, np.array([[0, 9]]), 2, 9), False) == []
  assert _group((tokens, np.empty((0, 2), np.int64), 2, 9), True) == []
