"""Training examples made from a split: what a model reads and what it has to predict.

Shapes: R rows, L tokens of a row (`block_size`, or `row_length`), P pieces of documents.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data.batches import batch, conversations, packing, sentences, stream

_OF_TASK = {'classify': 'documents', 'instruct': 'conversations', 'translate': 'pairs'}
# What a split must have for a row of each kind.
_NEEDED = {
  'windows': '{length:,} tokens',
  'partition': '2 tokens',
  'packed': '2 tokens of one document',
  'sentences': 'whole sentences with {data.min_length} to {data.max_length} tokens',
  'documents': 'a document with a class',
  'conversations': 'a prompt and its response within `model.block_size`',
  'pairs': 'a prompt and its response, each within `model.block_size`',
}


def chunk(
  data: config.DataConfig,
  split: stream.Split,
  *,
  task: str,
  block_size: int,
  start_id: int | None,
  end_ids: Sequence[int],
  pad_id: int,
) -> 'Chunks':
  """Makes the rows of a split; which there are depends on no seed.

  To classify they are `Documents`, to instruct `Conversations`, to translate `Pairs`; for other
  tasks `data.chunks` decides.

  windows: L + 1 tokens from each position of the stream (as nanoGPT draws them, Karpathy 2022).
  partition: the stream cut every L tokens, so that each token but the first is a target once per
  epoch. packed: see `Packed`. sentences: those of `sentences.group`, packed too.

  `start_id`, unless None, is put before each packed document that doesn't begin with it; `end_ids`
  end a sentence; `pad_id` is the input where a row has no text. Raises `UserError` if the split has
  too little text for a single row.
  """
  rows: Chunks
  stretches = functools.partial(Stretches, block_size=block_size, pad_id=pad_id)
  total, length, row_length = len(split), block_size + 1, data.row_length or block_size
  kind = _OF_TASK.get(task, data.chunks)
  match kind:
    case 'windows':
      size = max(0, total - block_size)
      rows = stretches(
        f'{size:,} windows', size, split.gather, lambda i: (i, np.full(len(i), length))
      )
    case 'partition':
      size = max(0, -(-(total - 1) // block_size))
      rows = stretches(
        f'{size:,} blocks',
        size,
        split.gather,
        lambda i: (i * block_size, np.minimum(length, total - i * block_size)),
      )
    case 'packed':
      rows = Packed.documents(split, block_size, row_length, start_id, pad_id)
    case 'documents':
      rows = Documents(split, block_size, row_length, pad_id)
    case 'conversations':
      rows = conversations.Conversations(split, block_size, row_length, start_id, pad_id)
    case 'pairs':
      rows = conversations.Pairs(split, block_size, start_id, pad_id)
    case _:
      rows = Packed.sentences(data, split, end_ids, row_length, pad_id)
  if not len(rows):
    needed = _NEEDED[kind].format(length=length, data=data)
    raise errors.UserError(
      'data.chunks',
      f'a row of {kind} needs {needed}, and the text to train or validate on has {total:,} tokens',
      'use more text, or change `data.val_fraction`, `data.test_fraction` or `model.block_size`',
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
    whole = batch.spread(flat, places < lengths[:, None], self.pad_id)
    predicted_RL = places[1:] < lengths[:, None]
    inputs = np.where(predicted_RL, whole[:, :-1], np.int32(self.pad_id))
    return batch.Batch(inputs, np.where(predicted_RL, whole[:, 1:], np.int32(batch.IGNORED)))


class Packed:
  """Rows of pieces of text that must not attend to each other; see `packing`."""

  def __init__(
    self,
    tokens: stream.Tokens,
    pieces: packing.Pieces,
    row_length: int,
    start_id: int | None,
    pad_id: int,
  ) -> None:
    self._tokens = tokens
    self._start_id = start_id
    self._pad_id = pad_id
    self._rows = packing.Rows(pieces.lengths, row_length)
    self._pieces = packing.Pieces(*(column[self._rows.order] for column in pieces))
    self.summary = self._rows.summary

  @classmethod
  def documents(
    cls,
    split: stream.Split,
    block_size: int,
    row_length: int,
    start_id: int | None,
    pad_id: int,
  ) -> 'Packed':
    """Makes the rows of all documents, in pieces of at most `block_size` tokens."""
    documents = split.documents()
    documents = documents[documents[:, 0] < documents[:, 1]]
    prefixed = np.zeros(len(documents), bool)
    if start_id is not None:
      prefixed = split.tokens.take(documents[:, 0]) != start_id
    pieces = packing.divide(documents, prefixed, block_size)
    return cls(split.tokens, pieces, row_length, start_id, pad_id)

  @classmethod
  def sentences(
    cls,
    data: config.DataConfig,
    split: stream.Split,
    end_ids: Sequence[int],
    row_length: int,
    pad_id: int,
  ) -> 'Packed':
    """Makes the rows of chunks of whole sentences."""
    starts, lengths = sentences.group(data, split, end_ids)
    pieces = packing.Pieces(starts + 1, lengths - 1, np.zeros(len(starts), bool))
    rows = cls(split.tokens, pieces, row_length, None, pad_id)
    mean = lengths.sum() / max(1, len(starts))
    rows.summary += f', {len(starts):,} chunks of whole sentences, {mean:.1f} tokens on average'
    return rows

  def __len__(self) -> int:
    return len(self._rows)

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `Stretches.rows`, with segments."""
    wanted, counts = self._rows.find(indices)
    starts, lengths, opens = (column[wanted] for column in self._pieces)
    heads = np.cumsum(lengths) - lengths
    targets = self._tokens.gather(starts, lengths)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    if self._start_id is not None:
      inputs[heads[opens]] = self._start_id
    inputs[heads[~opens]] = self._tokens.take(starts[~opens] - 1)
    segments = np.repeat(stream.ranges(np.ones_like(counts), counts), lengths)
    return batch.packed(self._rows.inside(counts, lengths), inputs, targets, segments, self._pad_id)


class Documents:
  """Rows of documents to classify, each cut to the length of a row, in windows of `block_size`.

  The target of a document's last token is its class; there are no others. Windows don't attend to
  each other. Documents without a class are left out.
  """

  def __init__(self, split: stream.Split, block_size: int, row_length: int, pad_id: int) -> None:
    documents, labels = split.documents(), split.labels()
    chosen = (labels >= 0) & (documents[:, 0] < documents[:, 1])
    documents, labels = documents[chosen], labels[chosen]
    whole = documents[:, 1] - documents[:, 0]
    lengths = np.minimum(whole, row_length)
    self._tokens, self._block_size, self._pad_id = split.tokens, block_size, pad_id
    self._rows = packing.Rows(lengths, row_length)
    order = self._rows.order
    self._starts, self._lengths, self._labels = documents[order, 0], lengths[order], labels[order]
    cut = np.count_nonzero(whole > row_length)
    self.summary = f'{len(lengths):,} documents, {cut:,} of them cut to {row_length:,} tokens'

  def __len__(self) -> int:
    return len(self._rows)

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `Stretches.rows`, with segments."""
    wanted, counts = self._rows.find(indices)
    lengths = self._lengths[wanted]
    inputs = self._tokens.gather(self._starts[wanted], lengths)
    targets = np.full(len(inputs), batch.IGNORED)
    targets[np.cumsum(lengths) - 1] = self._labels[wanted]
    windows = -(-lengths // self._block_size)
    firsts = np.cumsum(windows) - windows
    rows = np.repeat(np.arange(len(indices)), counts)
    firsts -= firsts[np.cumsum(counts) - counts][rows]  # of the row
    places = stream.ranges(np.zeros_like(lengths), lengths)
    segments = 1 + np.repeat(firsts, lengths) + places // self._block_size
    return batch.packed(self._rows.inside(counts, lengths), inputs, targets, segments, self._pad_id)


Chunks = Stretches | Packed | Documents | conversations.Conversations | conversations.Pairs
