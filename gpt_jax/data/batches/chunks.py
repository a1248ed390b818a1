"""The rows that text is cut into: what a model reads and what it has to predict.

Shapes: R rows, L tokens of context (`block_size`), P pieces of documents.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data.batches import packing, sentences, stream

IGNORED = -1  # The target where nothing is to be predicted.


class Rows(NamedTuple):
  """Rows of a batch.

  Attributes:
    inputs: int32 (R, L).
    targets: int32 (R, L), `IGNORED` where nothing is to be predicted.
    segments: int32 (R, L), 1, 2, … number the documents packed into a row, 0 is padding; None where
      rows aren't packed.
  """

  inputs: np.ndarray
  targets: np.ndarray
  segments: np.ndarray | None


class Chunks(Protocol):
  """The rows that a side of a split is cut into; which there are depends on no seed.

  Attributes:
    summary: A line for people.
  """

  summary: str

  def __len__(self) -> int: ...

  def rows(self, indices: np.ndarray) -> Rows:
    """The rows with these indices, int64 (R,), each in [0, len)."""
    ...


def make(
  data: config.DataConfig,
  side: stream.Side,
  *,
  block_size: int,
  start: int | None,
  end_ids: Sequence[int],
  padding: int,
) -> Chunks:
  """Cuts a side of a split as `data.chunks` says.

  Args:
    data: Which way to cut, and its options.
    side: What to cut.
    block_size: L.
    start: Token put before a document in packed rows, unless it begins with it; or None.
    end_ids: Tokens that end a sentence.
    padding: Token that fills inputs where a row has no text.

  Raises:
    UserError: There is too little text for a single row.
  """
  made: Chunks
  if data.chunks == 'windows':
    made = Windows(stream.Stream(side), block_size)
  elif data.chunks == 'partition':
    made = Partition(stream.Stream(side), block_size, padding)
  elif data.chunks == 'packed':
    made = Packed(side, block_size, start, padding)
  else:
    made = Sentences(data, side, block_size, end_ids, padding)
  if not len(made):
    raise _too_little(data, len(stream.Stream(side)), block_size)
  return made


class Windows:
  """L + 1 tokens from each place of the stream (as nanoGPT draws them, Karpathy 2022)."""

  def __init__(self, text: stream.Stream, block_size: int) -> None:
    self._text = text
    self._block_size = block_size
    self.summary = f'{len(self):,} windows'

  def __len__(self) -> int:
    return max(0, len(self._text) - self._block_size)

  def rows(self, indices: np.ndarray) -> Rows:
    whole = self._text.windows(indices, self._block_size + 1)
    return Rows(whole[:, :-1], whole[:, 1:], None)


class Partition:
  """The stream cut every L tokens: each token but the first is a target once an epoch."""

  def __init__(self, text: stream.Stream, block_size: int, padding: int) -> None:
    self._text = text
    self._block_size = block_size
    self._padding = padding
    self.summary = f'{len(self):,} blocks'

  def __len__(self) -> int:
    return max(0, -(-(len(self._text) - 1) // self._block_size))

  def rows(self, indices: np.ndarray) -> Rows:
    starts = indices * self._block_size
    lengths = np.minimum(self._block_size + 1, len(self._text) - starts)
    return _filled_up(self._text.gather(starts, lengths), lengths, self._block_size, self._padding)


class Packed:
  """Pieces of documents, several in a row, that must not see each other."""

  def __init__(self, side: stream.Side, block_size: int, start: int | None, padding: int) -> None:
    documents = side.documents()
    documents = documents[documents[:, 0] < documents[:, 1]]
    prefixed = np.zeros(len(documents), bool)
    if start is not None:
      prefixed = side.tokens.take(documents[:, 0]) != start
    pieces = packing.cut(documents, prefixed, block_size)
    rows = packing.pack(pieces.lengths, block_size)
    order = np.argsort(rows, kind='stable')
    self._tokens = side.tokens
    self._block_size = block_size
    self._start = start
    self._padding = padding
    self._pieces = packing.Pieces(*(column[order] for column in pieces))
    # Row r has the pieces from bounds[r] up to bounds[r + 1].
    self._bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    filled = pieces.lengths.sum(dtype=np.int64) / max(1, len(self) * block_size)
    self.summary = f'{len(self):,} rows, {100 * filled:.1f} % filled'

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def rows(self, indices: np.ndarray) -> Rows:
    counts = self._bounds[indices + 1] - self._bounds[indices]
    wanted = stream.ranges(self._bounds[indices], counts)
    starts, lengths, opens = (column[wanted] for column in self._pieces)
    heads = np.cumsum(lengths) - lengths
    targets = self._tokens.gather(starts, lengths)
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    if self._start is not None:
      inputs[heads[opens]] = self._start
    inputs[heads[~opens]] = self._tokens.take(starts[~opens] - 1)
    segments = np.repeat(stream.ranges(np.ones_like(counts), counts), lengths)
    owners = np.repeat(np.arange(len(indices)), counts)
    filled = np.bincount(owners, weights=lengths, minlength=len(indices))
    inside_RL = np.arange(self._block_size) < filled[:, None]
    return Rows(
      _spread(inputs, inside_RL, self._padding),
      _spread(targets, inside_RL, IGNORED),
      _spread(segments, inside_RL, 0),
    )


class Sentences:
  """A few whole sentences of one document in each row."""

  def __init__(
    self,
    data: config.DataConfig,
    side: stream.Side,
    block_size: int,
    end_ids: Sequence[int],
    padding: int,
  ) -> None:
    self._tokens = side.tokens
    self._block_size = block_size
    self._padding = padding
    self._starts, self._lengths = sentences.cut(
      side.tokens,
      side.documents(),
      end_ids=end_ids,
      min_length=data.min_length,
      max_length=data.max_length,
      overlap=data.overlap,
    )
    mean = self._lengths.sum() / max(1, len(self))
    self.summary = f'{len(self):,} chunks of whole sentences, {mean:.1f} tokens on average'

  def __len__(self) -> int:
    return len(self._starts)

  def rows(self, indices: np.ndarray) -> Rows:
    lengths = self._lengths[indices]
    flat = self._tokens.gather(self._starts[indices], lengths)
    return _filled_up(flat, lengths, self._block_size, self._padding)


def _filled_up(flat: np.ndarray, lengths: np.ndarray, block_size: int, padding: int) -> Rows:
  """Rows of stretches of at most L + 1 tokens, given one after the other."""
  if (lengths == block_size + 1).all():
    whole = flat.reshape(len(lengths), block_size + 1)
    return Rows(whole[:, :-1], whole[:, 1:], None)
  places = np.arange(block_size + 1)
  whole = _spread(flat, places < lengths[:, None], padding)
  predicted_RL = places[1:] < lengths[:, None]
  inputs = np.where(predicted_RL, whole[:, :-1], np.int32(padding))
  return Rows(inputs, np.where(predicted_RL, whole[:, 1:], np.int32(IGNORED)), None)


def _spread(flat: np.ndarray, inside_RL: np.ndarray, fill: int) -> np.ndarray:
  """The values of `flat` where `inside_RL`, in its order, and `fill` elsewhere: int32."""
  spread_RL = np.full(inside_RL.shape, fill, np.int32)
  spread_RL[inside_RL] = flat
  return spread_RL


def _too_little(data: config.DataConfig, num_tokens: int, block_size: int) -> errors.UserError:
  needed, remedies = {
    'windows': (f'{block_size + 1:,} tokens', ['a smaller --config.model.block_size']),
    'partition': ('2 tokens', []),
    'packed': ('2 tokens of one document', []),
    'sentences': (
      f'whole sentences of one document with {data.min_length} to {data.max_length} tokens',
      ['other --config.data.min_length, --config.data.max_length or --config.data.sentence_end'],
    ),
  }[data.chunks]
  remedies = ['more text (--config.data.source)', *remedies, 'another --config.data.val_fraction']
  return errors.UserError(
    f'too little text for --config.data.chunks={data.chunks}: one side of the split has '
    f'{num_tokens:,} tokens, and a row takes {needed}. Give {", ".join(remedies[:-1])} or '
    f'{remedies[-1]}.'
  )
