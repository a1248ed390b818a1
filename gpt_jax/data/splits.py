"""The training and the validation split of a source, as `data.split` asks for."""

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data import pretokenized, store
from gpt_jax.data.batches import stream

Source = store.Store | pretokenized.TokenFiles
_HELD_OUT = ('validation', 'test')  # validate on the first of these that a source has


def train_and_val(source: Source, data: config.DataConfig) -> tuple[stream.Split, stream.Split]:
  """Returns the training and the validation split.

  `data.split` decides. position: the last `data.val_fraction` of the tokens are for validation.
  document: documents whose hash is in the lowest `data.val_fraction` of all hashes are, so that
  equal documents are in one split and documents added later move none. given: the source's own.
  A document belongs to the split of its first token. Raises `UserError` if the source has no splits
  of its own.
  """
  end = len(source.tokens)
  match data.split:
    case 'position':
      middle = int(end * (1 - data.val_fraction))
      train, val = np.array([[0, middle]]), np.array([[middle, end]])
    case 'document':
      held_out = source.documents['hash'] < np.uint64(data.val_fraction * 2**64)
      bounds = _document_bounds(source)
      train, val = _joined(bounds[~held_out]), _joined(bounds[held_out])
    case _:
      train, val = _given(source)
  return _split(source, train), _split(source, val)


def _given(source: Source) -> tuple[np.ndarray, np.ndarray]:
  """The spans of the source's own splits, int64 (S, 2)."""
  names = source.shard_splits
  held_out = next((name for name in _HELD_OUT if name in names), None)
  train = [name not in _HELD_OUT for name in names]
  if held_out is None or not any(train):
    found = ', '.join(sorted(set(names) - {''})) or 'none'
    raise errors.UserError(
      'data.split',
      f'given needs a training and a validation split, and {source.spec} has: {found}',
      'use position or document',
    )
  stops = np.cumsum([len(shard) for shard in source.tokens.shards])
  bounds = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)
  return _joined(bounds[train]), _joined(bounds[[name == held_out for name in names]])


def _split(source: Source, spans: np.ndarray) -> stream.Split:

  def documents() -> np.ndarray:
    bounds = _document_bounds(source)
    span = np.searchsorted(spans[:, 0], bounds[:, 0], side='right') - 1
    inside = np.flatnonzero(span >= 0)
    return bounds[inside[bounds[inside, 0] < spans[span[inside], 1]]]

  return stream.Split(source.tokens, spans, documents)


def _document_bounds(source: Source) -> np.ndarray:
  """[start, stop) of each document, int64 (N, 2)."""
  ends = source.documents['end'].astype(np.int64)
  return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def _joined(bounds: np.ndarray) -> np.ndarray:
  """`bounds` (N, 2) with neighbours that touch joined."""
  starts, stops = bounds.T
  apart = starts[1:] != stops[:-1]
  first, last = np.concatenate([[True], apart]), np.concatenate([apart, [True]])
  return np.stack([starts[first[: len(bounds)]], stops[last[: len(bounds)]]], axis=1)
