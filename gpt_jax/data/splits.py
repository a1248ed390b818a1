"""The training, validation and test split of a source, as `data.split` asks for."""

from collections.abc import Sequence

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data import pretokenized, store
from gpt_jax.data.batches import conversations, stream

Source = store.Store | pretokenized.TokenFiles
_HELD_OUT = ('validation', 'test')  # validate on the first of these that a source has


def make(
  source: Source, data: config.DataConfig, classes: Sequence[str] = ()
) -> tuple[stream.Split, stream.Split, stream.Split]:
  """Returns the training, the validation and the test split; the last may be empty.

  `data.split` decides. position: the last `data.test_fraction` of the tokens are for tests, and the
  last `data.val_fraction` of the others for validation. document: documents whose hash is in the
  lowest `data.test_fraction` of all hashes are for tests, and those in the next lowest for
  validation, so that equal documents are in one split and documents added later move none; the
  turns of a conversation have the hash of the first. given: the source's own. A document belongs to
  the split of its first token. Labels are numbers in `classes`. Raises `UserError` if the source
  has no splits of its own.
  """
  end, rest = len(source.tokens), 1 - data.test_fraction
  match data.split:
    case 'position':
      stop = int(end * rest)
      middle = int(stop * (1 - data.val_fraction))
      spans = [np.array([[a, b]]) for a, b in ((0, middle), (middle, stop), (stop, end))]
    case 'document':
      bounds, hashes = _document_bounds(source), source.documents['hash']
      if data.template:
        is_first = source.documents['label'] == source.classes.index(conversations.TURNS[0])
        hashes = hashes[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
      is_test = hashes < np.uint64(data.test_fraction * 2**64)
      held_out = hashes < np.uint64((data.test_fraction + data.val_fraction * rest) * 2**64)
      spans = [_joined(bounds[of]) for of in (~held_out, held_out & ~is_test, is_test)]
    case _:
      spans = _given(source)
  train, val, test = (_split(source, of_split, classes) for of_split in spans)
  return train, val, test


def _given(source: Source) -> list[np.ndarray]:
  """The spans of the source's own splits, int64 (S, 2) each."""
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
  return [_joined(bounds[train])] + [
    _joined(bounds[[name == wanted for name in names]]) for wanted in (held_out, 'test')
  ]


def _split(source: Source, spans: np.ndarray, classes: Sequence[str]) -> stream.Split:
  numbers = np.array([*map((*classes, *source.classes).index, source.classes), -1])

  def inside() -> np.ndarray:
    starts = _document_bounds(source)[:, 0]
    span = np.searchsorted(spans[:, 0], starts, side='right') - 1
    found = np.flatnonzero(span >= 0)
    return found[starts[found] < spans[span[found], 1]]

  return stream.Split(
    source.tokens,
    spans,
    documents=lambda: _document_bounds(source)[inside()],
    labels=lambda: numbers[source.documents['label'][inside()]],
  )


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
