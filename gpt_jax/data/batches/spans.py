"""Rows of texts with spans left out: an encoder reads what is left, a decoder writes the spans.

This is how T5 is pre-trained (Raffel et al. 2020, §3.1.4): of each text 15 % of the tokens are left
out, in spans of 3 on average. Where one was, the source has a mask; the target has a mask, the
first span, a mask, the second, and so on, then eos. The n-th mask stands for the n-th span, where
T5 has a token of its own for each: they are numbered by their order, so one mask is enough.

Shapes: R rows, L tokens of a row's text, W numbers drawn for a row.
"""

import dataclasses
from typing import Any

import numpy as np

from gpt_jax.data.batches import batch, chunks, order

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # of SplitMix64, see `order.mix`


def sizes(length: Any) -> tuple[Any, Any]:
  """Returns how many tokens of a text of this length are left out, and in how many spans."""
  out = np.maximum(1, (15 * length + 50) // 100)
  return out, np.maximum(1, (out + 1) // 3)


def target_length(block_size: int) -> int:
  """Returns how long the spans of a text get, with their masks and eos."""
  return int(sum(sizes(block_size))) + 1


@dataclasses.dataclass(frozen=True)
class Spans:
  """Rows of texts with spans left out, which the number of a row decides: no seed, no epoch."""

  texts: chunks.Chunks
  mask_id: int
  eos_id: int
  start_id: int  # of the decoder's inputs
  pad_id: int

  @property
  def summary(self) -> str:
    return f'{self.texts.summary}, of which 15 % is left out in spans'

  def __len__(self) -> int:
    return len(self.texts)

  def rows(self, indices: np.ndarray) -> batch.Batch:
    """As `chunks.Stretches.rows`, with sources; inputs and targets have `target_length`."""
    text_RL, targets_RL, *_ = self.texts.rows(indices)
    is_text_RL = targets_RL != batch.IGNORED
    L = text_RL.shape[1]
    is_out_RL = choose(indices, is_text_RL.sum(1), L)
    is_out_RL &= text_RL != self.eos_id  # which would end what the decoder writes
    begins_RL = is_out_RL & ~np.pad(is_out_RL[:, :-1], ((0, 0), (1, 0)))
    masked_RL = np.where(begins_RL, self.mask_id, text_RL)
    sources_RL = _closed_up(masked_RL, is_text_RL & (begins_RL | ~is_out_RL), L)
    # A mask and a token of each place, unless they aren't wanted, then eos.
    both = np.stack([masked_RL, text_RL], 2).reshape(-1, 2 * L)
    wanted = np.stack([begins_RL, is_out_RL], 2).reshape(-1, 2 * L)
    both = np.pad(both, ((0, 0), (0, 1)), constant_values=self.eos_id)
    wanted = np.pad(wanted, ((0, 0), (0, 1)), constant_values=True)
    targets = _closed_up(both, wanted, target_length(L))
    return batch.to_decode(targets, sources_RL, self.start_id, self.pad_id)


def choose(numbers: np.ndarray, lengths: np.ndarray, most: int) -> np.ndarray:
  """Returns which tokens of texts are left out, bool (R, `most`), as `sizes` says.

  At least one token is between two spans; each way to place them is equally likely. `numbers` and
  `lengths` of the texts, from 1 to `most`, are int64 (R,); what a row gets depends on its own.
  """
  out_R, spans_R = sizes(lengths)
  # Both kinds of tokens are cut into parts at random. What stays has one part more, and a token too
  # many at each end, so that a text may begin or end with a span.
  stays_R, W = lengths - out_R + 2, most + 2
  places = np.arange(2 * W, dtype=np.uint64)
  counters = numbers.astype(np.uint64)[:, None] * np.uint64(2 * W) + places
  lots_RW = np.split(order.mix(counters * _GAMMA), 2, axis=1)
  stays_RW = _parts(lots_RW[0], stays_R, spans_R + 1)
  stays_RW[:, 0] = W  # the other one comes to lie behind the end
  # Of equal parts, what stays comes first.
  parts_RW = np.concatenate([stays_RW, _parts(lots_RW[1], out_R, spans_R)], 1)
  return (parts_RW.argsort(1, kind='stable')[:, :most] >= W) & (np.arange(most) < lengths[:, None])


def _parts(lots_RW: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """The number of the part of each place, W behind the end; the least lots begin the parts."""
  W = lots_RW.shape[1]
  is_in_RW = np.arange(W) < lengths[:, None]
  lots_RW = np.where(is_in_RW, lots_RW >> 1, np.uint64(2**63))
  lots_RW[:, 0] = 0
  begins_RW = lots_RW.argsort(1, kind='stable').argsort(1) < counts[:, None]
  return np.where(is_in_RW, begins_RW.cumsum(1), W)


def _closed_up(values: np.ndarray, wanted: np.ndarray, length: int) -> np.ndarray:
  """The values that are wanted, side by side, and `IGNORED` behind them: int32 (R, `length`)."""
  inside = np.arange(length) < wanted.sum(1)[:, None]
  return batch.spread(values[wanted], inside, batch.IGNORED)
