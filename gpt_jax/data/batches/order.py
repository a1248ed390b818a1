"""In which order rows are seen: pure functions of their number, as fast for the last as the first.

Shapes: R rows that are asked for together, E epochs among them, K sources.
"""

import dataclasses
import fractions
import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np

PERIOD = 2**16  # rows in which a weighted mixture has its exact shares
_ROUNDS = 8
_SCHEDULE = -1  # takes the place of a source's number in a key


def permute(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
  """Returns the images of `indices` under a keyed permutation of `range(size)`, without a table.

  The generalized Feistel cipher of Black & Rogaway, "Ciphers with arbitrary finite domains" (2002),
  section 5: numbers are pairs in a × b places, with a · b slightly above `size`; images outside are
  enciphered again. It mixes well but keeps no secrets. It must never change: runs that resume rely
  on it. `indices` are int64 (R,), `size` is from 1 to 2**62.
  """
  keys_KR = np.broadcast_to(_round_keys(key)[:, None], (_ROUNDS, len(indices)))
  return _permute(indices, size, keys_KR)


def reshuffle(numbers: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
  """Returns the indices of rows `numbers`, if each epoch has all of `range(size)` in a new order.

  `numbers` are int64 (R,), at least 0, without end.
  """
  epochs, which = np.unique(numbers // size, return_inverse=True)
  keys_EK = [_round_keys((*key, epoch)) for epoch in epochs.tolist()]
  keys_KE = np.array(keys_EK, np.uint64).reshape(-1, _ROUNDS).T
  return _permute(numbers % size, size, keys_KE[:, which])


def _permute(indices: np.ndarray, size: int, keys_KR: np.ndarray) -> np.ndarray:
  a = math.isqrt(size - 1) + 1
  b = -(-size // a)
  values = _encipher(indices.astype(np.uint64), a, b, keys_KR)
  while len(outside := np.flatnonzero(values >= size)):
    values[outside] = _encipher(values[outside], a, b, keys_KR[:, outside])
  return values.astype(np.int64)


def _encipher(values: np.ndarray, a: int, b: int, keys_KR: np.ndarray) -> np.ndarray:
  """A permutation of `range(a * b)`: each half in turn moves by a hash of the other."""
  left, right = np.divmod(values, np.uint64(b))
  for number, key in enumerate(keys_KR):
    # Half of the hash's range, so that the sum stays below 2**64.
    if number % 2:
      right = (right + (mix(left + key) >> 1)) % np.uint64(b)
    else:
      left = (left + (mix(right + key) >> 1)) % np.uint64(a)
  return left * np.uint64(b) + right


def mix(x: np.ndarray) -> np.ndarray:
  """Returns hashes, uint64, by the finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
  x = (x ^ (x >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> 27)) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> 31)


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
  """uint64 (_ROUNDS,), by BLAKE2b: unlike `SeedSequence`, it distinguishes (0,), (0, 0)."""
  digest = hashlib.blake2b(','.join(map(str, key)).encode(), digest_size=8 * _ROUNDS).digest()
  return np.frombuffer(digest, '<u8').astype(np.uint64)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Which source a row comes from, and which of the source's rows it is.

  Weights are shares of the sources, above 0, in any unit: every `PERIOD` training rows have these
  shares to the nearest row, but at least one row of each source. Without weights, the rows of all
  sources are one pool.
  """

  sizes: tuple[int, ...]  # rows of each source, at least 1
  weights: tuple[float, ...] | None
  seed: int  # of the order

  def train(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of an endless sequence, in which none of a source repeats before all have come.

    Takes their numbers, int64 (R,); returns their sources and the rows in these, each int64 (R,).
    """
    if self.weights is None:
      bounds = np.cumsum([0, *self.sizes])
      indices = reshuffle(numbers, sum(self.sizes), (self.seed, 0))
      sources = np.searchsorted(bounds, indices, side='right') - 1
      return sources, indices - bounds[sources]
    counts, source_at, turn_at = self._schedule
    periods, places = np.divmod(numbers, PERIOD)
    sources = source_at[places]
    turns = periods * counts[sources] + turn_at[places]
    rows = np.empty_like(turns)
    for source in np.unique(sources).tolist():
      here = sources == source
      rows[here] = reshuffle(turns[here], self.sizes[source], (self.seed, source))
    return sources, rows

  def val(self, indices: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of an evaluation: each source's share, spread evenly from its first to its last.

    As `train`, but for `indices` in [0, total).
    """
    counts = _shares(self.weights or self.sizes, total)
    bounds = np.cumsum([0, *counts])
    sources = np.searchsorted(bounds, indices, side='right') - 1
    last = np.array(self.sizes, np.int64)[sources] - 1
    return sources, (indices - bounds[sources]) * last // np.maximum(1, counts[sources] - 1)

  @functools.cached_property
  def _schedule(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every period: rows of each source (K,); source and turn at each place (PERIOD,)."""
    counts = _shares(self.weights or self.sizes, PERIOD)
    for source in np.flatnonzero(counts == 0).tolist():
      counts[counts.argmax()] -= 1
      counts[source] = 1
    slots = permute(np.arange(PERIOD), PERIOD, (self.seed, _SCHEDULE))
    source_at = np.repeat(np.arange(len(counts)), counts)[slots]
    turn_at = np.empty(PERIOD, np.int64)
    for source, count in enumerate(counts.tolist()):
      turn_at[source_at == source] = np.arange(count)
    return counts, source_at, turn_at


def _shares(weights: Sequence[float], total: int) -> np.ndarray:
  """`total` divided in proportion to `weights` by the largest remainders: int64 (K,)."""
  exact = [fractions.Fraction(weight) for weight in weights]
  quotas = [weight * total / sum(exact) for weight in exact]
  counts = np.array([int(quota) for quota in quotas], np.int64)
  by_remainder = sorted(range(len(quotas)), key=lambda i: int(quotas[i]) - quotas[i])
  counts[by_remainder[: total - counts.sum()]] += 1
  return counts
