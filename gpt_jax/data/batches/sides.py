"""What there is to learn from, wherever it is kept, and its two sides: training and validation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.batches import stream

_VALIDATION = ('validation', 'test')  # splits to validate on: the first that the source has


class Documents(NamedTuple):
  """The documents of a text, in its order: a document begins where the one before ends."""

  ends: np.ndarray  # int64 (N,), in the addresses of the text
  hashes: np.ndarray  # uint64 (N,), of the tokens


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """The tokens of one source.

  Attributes:
    source: Its spec.
    tokens: All of them.
    splits: For each shard of `tokens`, what the source says that it is for, or ''.
    documents: Gives the documents; computed once.
  """

  source: str
  tokens: stream.Tokens
  splits: tuple[str, ...]
  documents: Callable[[], Documents]

  def sides(self, data: config_lib.DataConfig) -> tuple[stream.Side, stream.Side]:
    """The sides for training and for validation, as `data.split` says.

    `position`: the last `data.val_fraction` of the tokens are for validation; of documents, those
    that begin there. `document`: the documents whose hash is in the lowest `data.val_fraction` of
    all hashes, so that equal documents are on one side and text that is added moves none. `given`:
    the source's own split.

    Raises:
      UserError: The source has no such split.
    """
    match data.split:
      case 'position':
        return self._by_position(int(len(self.tokens) * (1 - data.val_fraction)))
      case 'document':
        return self._by_document(data.val_fraction)
    return self._given()

  def _by_position(self, cut: int) -> tuple[stream.Side, stream.Side]:
    def side(start: int, stop: int) -> stream.Side:
      def documents() -> np.ndarray:
        starts, ends = self._bounds()
        inside = (starts >= start) & (starts < stop)
        return np.stack([starts[inside], ends[inside]], axis=1)

      return stream.Side(self.tokens, np.array([[start, stop]]), documents)

    return side(0, cut), side(cut, len(self.tokens))

  def _by_document(self, val_fraction: float) -> tuple[stream.Side, stream.Side]:
    starts, ends = self._bounds()
    held_out = self.documents().hashes < np.uint64(val_fraction * 2**64)

    def side(chosen: np.ndarray) -> stream.Side:
      bounds = np.stack([starts[chosen], ends[chosen]], axis=1)
      return stream.Side(self.tokens, _joined(bounds), lambda: bounds)

    return side(~held_out), side(held_out)

  def _given(self) -> tuple[stream.Side, stream.Side]:
    held_out = next((name for name in _VALIDATION if name in self.splits), None)
    train = [name not in _VALIDATION for name in self.splits]
    if held_out is None or not any(train):
      found = ', '.join(sorted(set(self.splits) - {''})) or 'none'
      raise errors.UserError(
        f'{self.source} has no split of its own for both training and validation (its splits: '
        f'{found}): use --config.data.split=position or document.'
      )
    stops = np.cumsum([len(shard) for shard in self.tokens.shards])

    def side(chosen: np.ndarray) -> stream.Side:
      bounds = np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)[chosen]

      def documents() -> np.ndarray:
        starts, ends = self._bounds()
        inside = chosen[np.searchsorted(stops, starts, side='right')]
        return np.stack([starts[inside], ends[inside]], axis=1)

      return stream.Side(self.tokens, _joined(bounds), documents)

    return side(np.array(train)), side(np.array([name == held_out for name in self.splits]))

  def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """Where each document begins and ends, int64 (N,)."""
    ends = self.documents().ends
    return np.concatenate([[0], ends[:-1]]), ends


def _joined(bounds: np.ndarray) -> np.ndarray:
  """`bounds` (N, 2) with neighbours that touch made one."""
  if not len(bounds):
    return bounds
  apart = np.flatnonzero(bounds[1:, 0] != bounds[:-1, 1])
  starts = bounds[np.concatenate([[0], apart + 1]), 0]
  stops = bounds[np.concatenate([apart, [len(bounds) - 1]]), 1]
  return np.stack([starts, stops], axis=1)
