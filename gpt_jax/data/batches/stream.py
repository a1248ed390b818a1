"""The tokens of a corpus by address, and a side of a split as one stream without gaps.

Shapes: K shards, S spans, N documents, R stretches or windows that are read together.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The tokens of a corpus, in one address space over its shards.

  Attributes:
    shards: Each (tokens,), uint16 or uint32, memory-mapped or not; may be empty.
  """

  shards: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return int(self._bounds[-1])

  def read(self, start: int, stop: int) -> np.ndarray:
    """The tokens from `start` up to `stop`: (stop - start,), a view if one shard has them all."""
    pieces = [
      shard[max(start - begin, 0) : max(stop - begin, 0)]
      for shard, begin in zip(self._arrays, self._bounds.tolist(), strict=False)
      if start < begin + len(shard) and begin < stop
    ]
    if len(pieces) == 1:
      return pieces[0]
    return np.concatenate(pieces) if pieces else np.empty(0, np.uint16)

  def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Reads many stretches, one after the other.

    Args:
      starts: int64 (R,), addresses.
      lengths: (R,), any integer type; each stretch lies inside the corpus.

    Returns:
      int32 (sum of `lengths`,).
    """
    starts, lengths, shards = _cut(starts, lengths, self._bounds)
    stops = np.cumsum(lengths)
    firsts = starts - self._bounds[shards]
    columns = (shards, firsts, firsts + lengths, stops - lengths, stops)
    arrays, flat = self._arrays, np.empty(stops[-1] if len(stops) else 0, np.int32)
    for shard, first, last, begin, end in zip(*(c.tolist() for c in columns), strict=True):
      flat[begin:end] = arrays[shard][first:last]
    return flat

  def take(self, addresses: np.ndarray) -> np.ndarray:
    """The tokens at `addresses`, int64 (R,): int32 (R,)."""
    shards = np.searchsorted(self._bounds, addresses, side='right') - 1
    taken = np.empty(len(addresses), np.int32)
    for shard in np.unique(shards).tolist():
      here = np.flatnonzero(shards == shard)
      taken[here] = self._arrays[shard][addresses[here] - self._bounds[shard]]
    return taken

  @functools.cached_property
  def _arrays(self) -> list[np.ndarray]:
    """The shards that have tokens, as plain arrays: slices of `np.memmap` take twice the time."""
    return [np.asarray(shard) for shard in self.shards if len(shard)]

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    """Address at which each of `_arrays` begins, and the end of the last: int64 (K + 1,)."""
    return np.cumsum([0, *map(len, self._arrays)], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Side:
  """One side of a split: what there is to train on, or to validate on.

  Attributes:
    tokens: The corpus, with the other side.
    spans: int64 (S, 2), [start, stop) of each stretch of this side in the addresses of `tokens`,
      ascending.
    documents: Returns int64 (N, 2), [start, stop) of each document of this side, ascending,
      end-of-text and start-of-text included. It may be slow: called at most once.
  """

  tokens: Tokens
  spans: np.ndarray
  documents: Callable[[], np.ndarray]


class Stream:
  """The spans of a side joined into one text, with addresses from 0."""

  def __init__(self, side: Side) -> None:
    starts, stops = side.spans[side.spans[:, 0] < side.spans[:, 1]].T
    self._tokens = side.tokens
    self._starts = starts
    self._bounds = np.concatenate([[0], np.cumsum(stops - starts)]).astype(np.int64)

  def __len__(self) -> int:
    return int(self._bounds[-1])

  def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Reads many stretches, which may run over the ends of shards and spans.

    Args:
      starts: int64 (R,), addresses in the stream.
      lengths: (R,), any integer type.

    Returns:
      int32 (sum of `lengths`,).

    Raises:
      IndexError: A stretch reaches beyond the stream.
    """
    if len(starts) and (starts.min() < 0 or (starts + lengths).max() > len(self)):
      raise IndexError(f'a stretch reaches beyond the {len(self):,} tokens of the stream')
    starts, lengths, spans = _cut(starts, lengths, self._bounds)
    return self._tokens.gather(starts - self._bounds[spans] + self._starts[spans], lengths)

  def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
    """As `gather`, all of one length: int32 (R, length)."""
    return self.gather(starts, np.full(len(starts), length)).reshape(len(starts), length)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """`np.arange(start, start + length)` of each, one after the other: int64 (sum of `lengths`,)."""
  before = np.cumsum(lengths, dtype=np.int64) - lengths
  return np.repeat(starts - before, lengths) + np.arange(np.sum(lengths), dtype=np.int64)


def _cut(
  starts: np.ndarray, lengths: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts stretches at `bounds`: start, length and number of the part that each piece lies in."""
  stops = starts + lengths
  first = np.searchsorted(bounds, starts, side='right') - 1
  last = np.searchsorted(bounds, stops, side='left') - 1
  counts = last - first + 1
  parts = ranges(first, counts)
  starts = np.maximum(np.repeat(starts, counts), bounds[parts])
  stops = np.minimum(np.repeat(stops, counts), bounds[parts + 1])
  return starts, stops - starts, parts
