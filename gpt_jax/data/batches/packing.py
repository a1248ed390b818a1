"""Documents divided into pieces, and the pieces packed into rows with little room left over.

Shapes: N documents, P pieces.
"""

from typing import NamedTuple

import numpy as np

from gpt_jax.data.batches import stream

_DOCUMENTS_AT_ONCE = 1 << 20


class Pieces(NamedTuple):
  """What rows are packed from: stretches of targets, each of one document."""

  starts: np.ndarray  # int64 (P,), address of the first target; its input is one address lower
  lengths: np.ndarray  # int32 (P,), targets, from 1 to the length of a row
  opens: np.ndarray  # bool (P,), whether the first input is the token put before the document


def divide(documents: np.ndarray, prefixed: np.ndarray, row_length: int) -> Pieces:
  """Divides documents so that each token that has one before it is a target exactly once.

  `documents`, [start, stop) of each, are int64 (N, 2); the pieces are in this order. `prefixed` is
  bool (N,), whether a token is put before the document.
  """
  # A portion at a time, because intermediate arrays take several times the room of the pieces.
  step = _DOCUMENTS_AT_ONCE
  portions = [
    _divide(documents[i : i + step], prefixed[i : i + step], row_length)
    for i in range(0, max(1, len(documents)), step)
  ]
  return Pieces(*map(np.concatenate, zip(*portions, strict=True)))


def _divide(documents: np.ndarray, prefixed: np.ndarray, row_length: int) -> Pieces:
  starts = documents[:, 0] + 1 - prefixed
  totals = np.maximum(documents[:, 1] - starts, 0)
  counts = -(-totals // row_length)
  owners = np.repeat(np.arange(len(documents)), counts)
  offsets = stream.ranges(np.zeros_like(counts), counts) * row_length
  lengths = np.minimum(totals[owners] - offsets, row_length).astype(np.int32)
  return Pieces(starts[owners] + offsets, lengths, prefixed[owners] & (offsets == 0))


def pack(lengths: np.ndarray, row_length: int) -> np.ndarray:
  """Packs pieces into few rows by best-fit decreasing.

  Each piece, longest first, goes into the fullest row with room for it (Ding et al., "Fewer
  Truncations Improve Language Modeling", 2024). Pieces of one length, and rows with the same room,
  are moved together, so the time hardly depends on their number.

  `lengths` are (P,), integers from 1 to `row_length`. Returns the row of each piece, int32 (P,),
  numbered from 0 without gaps.
  """
  by_length = np.argsort(lengths, kind='stable')
  bounds = np.concatenate([[0], np.cumsum(np.bincount(lengths, minlength=row_length + 1))])
  rows = np.empty(len(lengths), np.int32)
  open_rows = _OpenRows(row_length)
  for length in np.flatnonzero(np.diff(bounds))[::-1].tolist():
    pieces = by_length[bounds[length] : bounds[length + 1]]
    while len(pieces):
      room, free = open_rows.pop(length, len(pieces))
      # A row that takes one piece is then the fullest with room for the next, until it has none.
      each = room // length
      full = min(len(free), len(pieces) // each)
      rows[pieces[: full * each]] = np.repeat(free[:full], each)
      open_rows.put(room - each * length, free[:full])
      pieces, free = pieces[full * each :], free[full:]
      if len(free) and len(pieces):
        rows[pieces] = free[0]
        open_rows.put(room - len(pieces) * length, free[:1])
        pieces, free = pieces[:0], free[1:]
      open_rows.put(room, free)
  return rows


class Rows:
  """Pieces in packed rows.

  Attributes:
    order: int64 (P,), the pieces in the order of their rows.
  """

  def __init__(self, lengths: np.ndarray, row_length: int) -> None:
    rows = pack(lengths, row_length)
    self.order = np.argsort(rows, kind='stable')
    self._row_length = row_length
    # Row r has the pieces from bounds[r] up to bounds[r + 1], in this order.
    self._bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    filled = lengths.sum(dtype=np.int64) / max(1, len(self) * row_length)
    self.summary = f'{len(self):,} rows, {100 * filled:.1f} % filled'

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def find(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places in `order` of the pieces of rows (R,), and how many each row has."""
    counts = self._bounds[indices + 1] - self._bounds[indices]
    return stream.ranges(self._bounds[indices], counts), counts

  def inside(self, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns where rows are filled, bool (R, L), from what `find` found."""
    owners = np.repeat(np.arange(len(counts)), counts)
    filled = np.bincount(owners, weights=lengths, minlength=len(counts))
    return np.arange(self._row_length) < filled[:, None]


class _OpenRows:
  """The rows so far, by the room left in them."""

  def __init__(self, row_length: int) -> None:
    self._row_length = row_length
    self._num_rows = 0
    self._rows: list[list[np.ndarray]] = [[] for _ in range(row_length + 1)]
    self._occupied = np.zeros(row_length + 1, bool)

  def pop(self, length: int, count: int) -> tuple[int, np.ndarray]:
    """The least room for `length` that some rows have, and such rows, else new ones for `count`."""
    room = length + int(self._occupied[length:].argmax())
    if not self._occupied[room]:
      opened = -(-count // (self._row_length // length))
      self._num_rows += opened
      return self._row_length, np.arange(self._num_rows - opened, self._num_rows, dtype=np.int32)
    rows = self._rows[room].pop()
    self._occupied[room] = bool(self._rows[room])
    return room, rows

  def put(self, room: int, rows: np.ndarray) -> None:
    if len(rows):
      self._rows[room].append(rows)
      self._occupied[room] = True
