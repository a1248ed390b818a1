"""Rows of conversations: a model learns what is answered, not what is asked.

A conversation is a turn `first`, a response, then prompts and responses in turn; each turn is a
document, and its label is its place in `TURNS`. What a split begins or ends with that isn't whole
isn't used.

Shapes: N turns, C conversations, R rows, L tokens of a row, S of what an encoder reads.
"""

import numpy as np

from gpt_jax.data.batches import batch, packing, stream

TURNS = ('first', 'prompt', 'response')
_FIRST, _, _RESPONSE = range(3)


class _Turns:
  """The turns of a split, without the special tokens between them: starts and lengths, int64 (N,).

  What stays is the eos that ends each response, and bos (`start_id`, if the documents have it) in
  front of turns with a label up to `with_bos`, of none with -1.
  """

  def __init__(self, split: stream.Split, start_id: int | None, with_bos: int) -> None:
    labels, documents = split.labels(), split.documents()
    ends_later = np.cumsum((labels == _RESPONSE)[::-1])[::-1] > 0
    used = (np.cumsum(labels == _FIRST) > 0) & ends_later
    labels, (starts, stops) = labels[used], documents[used].T
    has_bos = split.tokens.take(starts) == start_id
    self.starts = starts + (has_bos & (labels > with_bos))
    self.lengths = stops - (labels != _RESPONSE) - self.starts
    self.is_response = labels == _RESPONSE
    self.firsts = np.flatnonzero(labels == _FIRST)


class Conversations:
  """Rows of whole conversations that don't attend to each other; targets are the responses.

  A conversation longer than `block_size` ends at its last response that fits; if none does, it is
  left out.
  """

  def __init__(
    self, split: stream.Split, block_size: int, row_length: int, start_id: int | None, pad_id: int
  ) -> None:
    self._tokens, self._pad_id = split.tokens, pad_id
    self._turns = turns = _Turns(split, start_id, _FIRST)
    firsts, stops = turns.firsts, np.append(turns.firsts, len(turns.starts))[1:]
    ends = np.cumsum(turns.lengths, dtype=np.int64)
    # Inputs up to each turn: the last token of a conversation is none.
    reach = ends - np.repeat((ends - turns.lengths)[firsts], stops - firsts) - 1
    fitting = np.flatnonzero(turns.is_response & (reach <= block_size))
    last = np.append(-1, fitting)[np.searchsorted(fitting, stops)]
    kept = last >= firsts
    self._rows = packing.Rows(reach[last[kept]], row_length)
    chosen = np.flatnonzero(kept)[self._rows.order]
    self._firsts, self._lasts = firsts[chosen], last[chosen]
    self._lengths = reach[self._lasts]
    self.summary = f'{len(chosen):,} conversations in {self._rows.summary}'
    if (last + 1 < stops).any():
      cut = np.count_nonzero(kept & (last + 1 < stops))
      self.summary += f'; of those longer than {block_size:,} tokens {cut:,} are cut at a turn'
      self.summary += f' and {np.count_nonzero(~kept):,} left out'

  def __len__(self) -> int:
    return len(self._rows)

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `chunks.Stretches.rows`, with segments."""
    wanted, counts = self._rows.find(indices)
    firsts, lengths = self._firsts[wanted], self._lengths[wanted]
    turns = stream.ranges(firsts, self._lasts[wanted] + 1 - firsts)
    of_turns = self._turns.lengths[turns]
    tokens = self._tokens.gather(self._turns.starts[turns], of_turns)
    targets = np.where(np.repeat(self._turns.is_response[turns], of_turns), tokens, batch.IGNORED)
    stops = np.cumsum(lengths + 1)
    inputs, targets = np.delete(tokens, stops - 1), np.delete(targets, stops - lengths - 1)
    segments = np.repeat(stream.ranges(np.ones_like(counts), counts), lengths)
    return batch.packed(self._rows.inside(counts, lengths), inputs, targets, segments, self._pad_id)


class Pairs:
  """Rows of one prompt, which an encoder reads, and its response, which a decoder writes.

  The decoder's inputs begin with `start_id`, its targets are the response and eos. Pairs of which
  one side is longer than `block_size` are left out.
  """

  def __init__(
    self, split: stream.Split, block_size: int, start_id: int | None, pad_id: int
  ) -> None:
    self._tokens, self._turns = split.tokens, _Turns(split, start_id, -1)
    self._block_size, self._pad_id = block_size, pad_id
    self._start_id = pad_id if start_id is None else start_id
    is_response, lengths = self._turns.is_response, self._turns.lengths
    prompts = np.flatnonzero(~is_response[:-1] & is_response[1:])
    self._prompts = prompts[np.maximum(lengths[prompts], lengths[prompts + 1]) <= block_size]
    self.summary = f'{len(self):,} pairs'
    if out := len(prompts) - len(self):
      self.summary += f'; {out:,} longer than {block_size:,} tokens are left out'

  def __len__(self) -> int:
    return len(self._prompts)

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `chunks.Stretches.rows`, with sources."""
    prompts = self._prompts[indices]
    sources_RS, targets_RL = self._read(prompts), self._read(prompts + 1)
    return batch.to_decode(targets_RL, sources_RS, self._start_id, self._pad_id)

  def _read(self, turns: np.ndarray) -> np.ndarray:
    lengths = self._turns.lengths[turns]
    inside_RL = np.arange(self._block_size) < lengths[:, None]
    flat = self._tokens.gather(self._turns.starts[turns], lengths)
    return batch.spread(flat, inside_RL, batch.IGNORED)
