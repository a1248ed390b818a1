"""The tokens of a corpus by address, and a split of it as one stream without gaps.

Shapes: K shards, S spans, N documents, R stretches that are read together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

# A document: its end (it begins at the end of the one before), a hash of its tokens, and the number
# of its class, -1 if it has none.
DOCUMENT: np.dtype[Any] = np.dtype([('end', '<u8'), ('hash', '<u8'), ('label', '<i8')])


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The tokens of a corpus, in one address space over its shards."""

  shards: tuple[np.ndarray, ...]  # each (tokens,), uint16 or uint32, perhaps memory-mapped or empty

  def __len__(self) -> int:
    return int(self._bounds[-1])

  @property
  def nbytes(self) -> int:
    return sum(shard.nbytes for shard in self.shards)

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns the tokens in [start, stop) that there are, as int32; `start` lies in the corpus."""
    return self.gather(np.array([start]), np.array([min(stop, len(self)) - start]))

  def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Reads many stretches and joins them: int32 (sum of `lengths`,).

    `starts` are addresses, int64 (R,); `lengths` are (R,). Each stretch lies inside the corpus.
    """
    starts, lengths, shards = _break_at(self._bounds, starts, lengths)
    stops = np.cumsum(lengths)
    firsts = starts - self._bounds[shards]
    columns = (shards, firsts, firsts + lengths, stops - lengths, stops)
    arrays, flat = self._arrays, np.empty(stops[-1] if len(stops) else 0, np.int32)
    for shard, first, last, begin, end in zip(*(c.tolist() for c in columns), strict=True):
      flat[begin:end] = arrays[shard][first:last]
    return flat

  def take(self, addresses: np.ndarray) -> np.ndarray:
    """Returns the tokens at `addresses`, int64 (R,), as int32 (R,)."""
    shards = np.searchsorted(self._bounds, addresses, side='right') - 1
    taken = np.empty(len(addresses), np.int32)
    for shard in np.unique(shards).tolist():
      here = np.flatnonzero(shards == shard)
      taken[here] = self._arrays[shard][addresses[here] - self._bounds[shard]]
    return taken

  @functools.cached_property
  def _arrays(self) -> list[np.ndarray]:
    """The shards that have tokens, as plain arrays: slicing `np.memmap` takes twice the time."""
    return [np.asarray(shard) for shard in self.shards if len(shard)]

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    """Address at which each of `_arrays` begins, and the end of the last: int64 (K + 1,)."""
    return np.cumsum([0, *map(len, self._arrays)], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Split:
  """The training or validation split of a corpus: spans of its tokens, joined into one stream.

  Spans and documents are [start, stop) in the addresses of `tokens`, ascending.
  """

  tokens: Tokens  # the whole corpus
  spans: np.ndarray  # int64 (S, 2)
  documents: Callable[[], np.ndarray]  # returns int64 (N, 2), bos and eos included; may be slow
  labels: Callable[[], np.ndarray]  # returns their classes, int64 (N,), -1 for none

  def __len__(self) -> int:
    return int(self._bounds[-1])

  def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """As `Tokens.gather`, with addresses in the stream, from 0: stretches may cross spans.

    Raises `IndexError` if a stretch reaches beyond the stream.
    """
    if len(starts) and (starts.min() < 0 or (starts + lengths).max() > len(self)):
      raise IndexError(f'a stretch reaches beyond the {len(self):,} tokens of the stream')
    starts, lengths, spans = _break_at(self._bounds, starts, lengths)
    return self.tokens.gather(starts - self._bounds[spans] + self._spans[spans, 0], lengths)

  @functools.cached_property
  def _spans(self) -> np.ndarray:
    """The spans that aren't empty."""
    return self.spans[self.spans[:, 0] < self.spans[:, 1]]

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    """Start of each of `_spans` in the stream, and the end of the last: int64 (S + 1,)."""
    return np.concatenate([[0], np.cumsum(self._spans[:, 1] - self._spans[:, 0])]).astype(np.int64)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Returns `np.arange(start, start + length)` of each, joined: int64 (sum of `lengths`,)."""
  before = np.cumsum(lengths, dtype=np.int64) - lengths
  return np.repeat(starts - before, lengths) + np.arange(np.sum(lengths), dtype=np.int64)


def _break_at(
  bounds: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Breaks stretches at `bounds`: start and length of each piece, and the interval it lies in."""
  stops = starts + lengths
  first = np.searchsorted(bounds, starts, side='right') - 1
  last = np.searchsorted(bounds, stops, side='left') - 1
  counts = last - first + 1
  intervals = ranges(first, counts)
  starts = np.maximum(np.repeat(starts, counts), bounds[intervals])
  stops = np.minimum(np.repeat(stops, counts), bounds[intervals + 1])
  return starts, stops - starts, intervals
