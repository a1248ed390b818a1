"""Documents cut into pieces, and the pieces put into rows with little room left over.

Shapes: N documents, P pieces.
"""

from typing import NamedTuple

import numpy as np

from gpt_jax.data.batches import stream

_DOCUMENTS_AT_ONCE = 1 << 20


class Pieces(NamedTuple):
  """What rows are packed from: stretches of targets, each of one document.

  Attributes:
    starts: int64 (P,), address of the first target; the input before it is one address lower.
    lengths: int32 (P,), targets, from 1 to the length of a row.
    opens: bool (P,), whether the first input is instead the token put before the document.
  """

  starts: np.ndarray
  lengths: np.ndarray
  opens: np.ndarray


def cut(documents: np.ndarray, prefixed: np.ndarray, row_length: int) -> Pieces:
  """Cuts documents into pieces so that each token with one before it is a target exactly once.

  Args:
    documents: int64 (N, 2), [start, stop) of each.
    prefixed: bool (N,), whether a token is put before the document.
    row_length: Targets in a piece, at most.

  Returns:
    The pieces, in the order of the documents.
  """
  # In portions, because what is computed on the way takes several times the room of the pieces.
  portions = [
    _cut(documents[i : i + _DOCUMENTS_AT_ONCE], prefixed[i : i + _DOCUMENTS_AT_ONCE], row_length)
    for i in range(0, max(1, len(documents)), _DOCUMENTS_AT_ONCE)
  ]
  return Pieces(*map(np.concatenate, zip(*portions, strict=True)))


def _cut(documents: np.ndarray, prefixed: np.ndarray, row_length: int) -> Pieces:
  starts = documents[:, 0] + 1 - prefixed
  totals = np.maximum(documents[:, 1] - starts, 0)
  counts = -(-totals // row_length)
  owners = np.repeat(np.arange(len(documents)), counts)
  offsets = stream.ranges(np.zeros_like(counts), counts) * row_length
  lengths = np.minimum(totals[owners] - offsets, row_length).astype(np.int32)
  return Pieces(starts[owners] + offsets, lengths, prefixed[owners] & (offsets == 0))


def pack(lengths: np.ndarray, row_length: int) -> np.ndarray:
  """Puts pieces into rows by best fit, longest first, as few rows as that gives.

  Best-fit decreasing, as Ding et al., "Fewer Truncations Improve Language Modeling" (2024), pack
  documents: each piece goes into the fullest row that has room for it. Pieces of one length and
  rows with the same room are moved together, so that the time hardly depends on their number.

  Args:
    lengths: (P,), any integer type, each from 1 to `row_length`.
    row_length: Room in a row.

  Returns:
    int32 (P,), the row of each piece, numbered from 0 without gaps.
  """
  by_length = np.argsort(lengths, kind='stable')
  bounds = np.concatenate([[0], np.cumsum(np.bincount(lengths, minlength=row_length + 1))])
  rows = np.empty(len(lengths), np.int32)
  room = _Room(row_length)
  for length in np.flatnonzero(np.diff(bounds))[::-1].tolist():
    pieces = by_length[bounds[length] : bounds[length + 1]]
    while len(pieces):
      left, free = room.pop(length, len(pieces))
      # A row that takes one piece is then the fullest with room for the next, until it has none.
      each = left // length
      full = min(len(free), len(pieces) // each)
      rows[pieces[: full * each]] = np.repeat(free[:full], each)
      room.put(left - each * length, free[:full])
      pieces, free = pieces[full * each :], free[full:]
      if len(free) and len(pieces):
        rows[pieces] = free[0]
        room.put(left - len(pieces) * length, free[:1])
        pieces, free = pieces[:0], free[1:]
      room.put(left, free)
  return rows


class _Room:
  """Rows that have been opened, by the room left in them."""

  def __init__(self, row_length: int) -> None:
    self._row_length = row_length
    self._num_rows = 0
    self._rows: list[list[np.ndarray]] = [[] for _ in range(row_length + 1)]
    self._occupied = np.zeros(row_length + 1, bool)

  def pop(self, length: int, count: int) -> tuple[int, np.ndarray]:
    """The least room for `length` that some rows have, and such rows, else new ones for `count`."""
    left = length + int(self._occupied[length:].argmax())
    if not self._occupied[left]:
      opened = -(-count // (self._row_length // length))
      self._num_rows += opened
      return self._row_length, np.arange(self._num_rows - opened, self._num_rows, dtype=np.int32)
    rows = self._rows[left].pop()
    self._occupied[left] = bool(self._rows[left])
    return left, rows

  def put(self, left: int, rows: np.ndarray) -> None:
    """Notes that `rows` have room for `left`."""
    if len(rows):
      self._rows[left].append(rows)
      self._occupied[left] = True
