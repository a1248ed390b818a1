"""Chunks of whole sentences, each of one document.

Shapes: N documents, S sentences, C chunks.
"""

from collections.abc import Sequence

import numpy as np

from gpt_jax.data.batches import stream

_TOKENS_AT_ONCE = 1 << 22


def cut(
  tokens: stream.Tokens,
  documents: np.ndarray,
  *,
  end_ids: Sequence[int],
  min_length: int,
  max_length: int,
  overlap: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts chunks of consecutive sentences, as many in each as fit.

  A sentence goes up to and with a token that ends it; what follows the last such token of a
  document belongs to none.

  Args:
    tokens: The corpus.
    documents: int64 (N, 2), [start, stop) of each, ascending.
    end_ids: Tokens that end a sentence.
    min_length: Tokens in a chunk, at least.
    max_length: Tokens in a chunk, at most.
    overlap: Whether a chunk begins at every sentence where one of these lengths fits. If not, the
      next begins behind the last; where none fits, the search goes on one sentence further.

  Returns:
    Start and length of each chunk, int64 (C,) each, ascending.
  """
  starts, stops, owners = _sentences(tokens, documents, end_ids)
  numbers = np.arange(len(starts))
  reach = np.minimum(starts + max_length, documents[owners, 1])
  last = np.searchsorted(stops, reach, side='right') - 1
  lengths = stops[last] - starts
  fits = (last >= numbers) & (lengths >= min_length)
  chosen = np.flatnonzero(fits)
  if not overlap:
    chosen = _without_overlap(fits, np.where(fits, last, numbers) + 1)
  return starts[chosen], lengths[chosen]


def _without_overlap(fits: np.ndarray, following: np.ndarray) -> np.ndarray:
  """The sentences at which chunks begin, on the way that `following` gives: int64 (C,)."""
  # Views of memory: single elements are read from them twice as fast as from arrays.
  fits_at, next_at = fits.data, following.data
  chosen, sentence = [], 0
  while sentence < len(next_at):
    if fits_at[sentence]:
      chosen.append(sentence)
    sentence = next_at[sentence]
  return np.array(chosen, np.int64)


def _sentences(
  tokens: stream.Tokens, documents: np.ndarray, end_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Start, stop and document of each sentence: int64 (S,) each."""
  begin, end = (documents[0, 0], documents[-1, 1]) if len(documents) else (0, 0)
  found = [np.empty(0, np.int64)]
  for start in range(begin, end, _TOKENS_AT_ONCE):
    portion = tokens.read(start, min(start + _TOKENS_AT_ONCE, end))
    found.append(np.flatnonzero(np.isin(portion, end_ids)) + start + 1)
  stops = np.concatenate(found)
  owners = np.searchsorted(documents[:, 0], stops, side='left') - 1
  inside = stops <= documents[owners, 1]
  stops, owners = stops[inside], owners[inside]
  before = np.concatenate([[0], stops[:-1]])[: len(stops)]
  return np.maximum(before, documents[owners, 0]), stops, owners
