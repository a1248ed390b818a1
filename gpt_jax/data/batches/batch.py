"""One batch: what the data pipeline makes, and, as arrays on the devices, what a step takes."""

from typing import Any, NamedTuple

import numpy as np

IGNORED = -1  # a target that doesn't count


class Batch(NamedTuple):
  """Token ids and the ids that follow them: NumPy or JAX arrays, int32, of one shape (…, B, L)."""

  inputs: Any
  targets: Any  # the token after each input, `IGNORED` where nothing is to be predicted
  segments: Any = None  # documents in a row from 1, 0 for padding; None if rows are not packed
  sources: Any = (
    None  # what an encoder reads, `IGNORED` behind its end; None if there is no encoder
  )


def packed(
  inside_RL: np.ndarray,
  inputs: np.ndarray,
  targets: np.ndarray,
  segments: np.ndarray,
  pad_id: int,
) -> Batch:
  """Returns rows with these values at the True places, and padding elsewhere."""
  return Batch(
    spread(inputs, inside_RL, pad_id),
    spread(targets, inside_RL, IGNORED),
    spread(segments, inside_RL, 0),
  )


def to_decode(targets: np.ndarray, sources: np.ndarray, start_id: int, pad_id: int) -> Batch:
  """Returns rows of targets that a decoder writes, from `start_id` on, and sources that it sees."""
  inputs = np.where(targets == IGNORED, pad_id, np.roll(targets, 1, axis=1))
  inputs[:, 0] = start_id
  return Batch(inputs.astype(np.int32), targets, sources=sources)


def spread(flat: np.ndarray, inside_RL: np.ndarray, fill: int) -> np.ndarray:
  """Returns `flat` at the True places, in their order, and `fill` elsewhere: int32 (R, L)."""
  spread_RL = np.full(inside_RL.shape, fill, np.int32)
  spread_RL[inside_RL] = flat
  return spread_RL
