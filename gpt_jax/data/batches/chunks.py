"""Training examples made from a split: what a model reads and what it has to predict.

Shapes: R rows, L tokens of context (`block_size`), P pieces of documents.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data.batches import batch, packing, sentences, stream


def chunk(
  data: config.DataConfig,
  split: stream.Split,
  *,
  block_size: int,
  start_id: int | None,
  end_ids: Sequence[int],
  pad_id: int,
) -> 'Chunks':
  """Makes the rows of a split, of the kind `data.chunks`; which there are depends on no seed.

  windows: L + 1 tokens from each position of the stream (as nanoGPT draws them, Karpathy 2022).
  partition: the stream cut every L tokens, so that each token but the first is a target once per
  epoch. packed: see `Packed`. sentences: see `sentences.group`.

  `start_id`, unless None, is put before each packed document that doesn't begin with it; `end_ids`
  end a sentence; `pad_id` is the input where a row has no text. Raises `UserError` if the split has
  too little text for a single row.
  """
  rows: Chunks
  stretches = functools.partial(Stretches, block_size=block_size, pad_id=pad_id)
  total, length = len(split), block_size + 1
  match data.chunks:
    case 'windows':
      needed, size = f'{length:,} tokens', max(0, total - block_size)
      rows = stretches(
        f'{size:,} windows', size, split.gather, lambda i: (i, np.full(len(i), length))
      )
    case 'partition':
      needed, size = '2 tokens', max(0, -(-(total - 1) // block_size))
      rows = stretches(
        f'{size:,} blocks',
        size,
        split.gather,
        lambda i: (i * block_size, np.minimum(length, total - i * block_size)),
      )
    case 'packed':
      needed = '2 tokens of one document'
      rows = Packed(split, block_size, start_id, pad_id)
    case _:
      needed = f'whole sentences with {data.min_length} to {data.max_length} tokens'
      starts, lengths = sentences.group(data, split, end_ids)
      mean = lengths.sum() / max(1, len(starts))
      summary = f'{len(starts):,} chunks of whole sentences, {mean:.1f} tokens on average'
      rows = stretches(summary, len(starts), split.tokens.gather, lambda i: (starts[i], lengths[i]))
  if not len(rows):
    raise errors.UserError(
      'data.chunks',
      f'a row of {data.chunks} needs {needed}, and one split has {total:,} tokens in all',
      'use more text, or change `data.val_fraction`, `model.block_size` or the length of sentences',
    )
  return rows


@dataclasses.dataclass(frozen=True)
class Stretches:
  """Rows that are stretches of text, of at most L + 1 tokens.

  `locate` maps the numbers of rows (R,) to starts and lengths (R,), which `gather` reads as
  `stream.Split.gather` does. `summary` is for people.
  """

  summary: str
  size: int
  gather: Callable[[np.ndarray, np.ndarray], np.ndarray]
  locate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  block_size: int
  pad_id: int

  def __len__(self) -> int:
    return self.size

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """Returns the rows with these indices, int64 (R,), each in [0, len), as int32 (R, L)."""
    starts, lengths = self.locate(indices)
    flat = self.gather(starts, lengths)
    if (lengths == self.block_size + 1).all():
      whole = flat.reshape(len(lengths), self.block_size + 1)
      return batch.Batch(whole[:, :-1], whole[:, 1:])
    places = np.arange(self.block_size + 1)
    whole = _spread(flat, places < lengths[:, None], self.pad_id)
    predicted_RL = places[1:] < lengths[:, None]
    inputs = np.where(predicted_RL, whole[:, :-1], np.int32(self.pad_id))
    return batch.Batch(inputs, np.where(predicted_RL, whole[:, 1:], np.int32(batch.IGNORED)))


class Packed:
  """Rows of pieces of documents that must not attend to each other; see `packing`."""

  def __init__(
    self, split: stream.Split, block_size: int, start_id: int | None, pad_id: int
  ) -> None:
    documents = split.documents()
    documents = documents[documents[:, 0] < documents[:, 1]]
    prefixed = np.zeros(len(documents), bool)
    if start_id is not None:
      prefixed = split.tokens.take(documents[:, 0]) != start_id
    pieces = packing.divide(documents, prefixed, block_size)
    rows = packing.pack(pieces.lengths, block_size)
    order = np.argsort(rows, kind='stable')
    self._tokens = split.tokens
    self._block_size = block_size
    self._start_id = start_id
    self._pad_id = pad_id
    self._pieces = packing.Pieces(*(column[order] for column in pieces))
    # Row r has the pieces from bounds[r] up to bounds[r + 1].
    self._bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    filled = pieces.lengths.sum(dtype=np.int64) / max(1, len(self) * block_size)
    self.summary = f'{len(self):,} rows, {100 * filled:.1f} % filled'

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `Stretches.rows`, with segments."""
    counts = self._bounds[indices + 1] - self._bounds[indices]
    wanted = stream.ranges(self._bounds[indices], counts)
    starts, lengths, opens = (column[wanted] for column in self._pieces)
    heads = np.cumsum(lengths) - lengths
    targets = self._tokens.gather(starts, lengths)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    if self._start_id is not None:
      inputs[heads[opens]] = self._start_id
    inputs[heads[~opens]] = self._tokens.take(starts[~opens] - 1)
    segments = np.repeat(stream.ranges(np.ones_like(counts), counts), lengths)
    owners = np.repeat(np.arange(len(indices)), counts)
    filled = np.bincount(owners, weights=lengths, minlength=len(indices))
    inside_RL = np.arange(self._block_size) < filled[:, None]
    return batch.Batch(
      _spread(inputs, inside_RL, self._pad_id),
      _spread(targets, inside_RL, batch.IGNORED),
      _spread(segments, inside_RL, 0),
    )


Chunks = Stretches | Packed


def _spread(flat: np.ndarray, inside_RL: np.ndarray, fill: int) -> np.ndarray:
  """The values of `flat` at the True places, in their order, and `fill` elsewhere: int32 (R, L)."""
  spread_RL = np.full(inside_RL.shape, fill, np.int32)
  spread_RL[inside_RL] = flat
  return spread_RL
