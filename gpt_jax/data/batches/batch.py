"""One batch: what the data pipeline makes, and, as arrays on the devices, what a step takes."""

from typing import Any, NamedTuple

IGNORED = -1  # a target that doesn't count


class Batch(NamedTuple):
  """Token ids and the ids that follow them: NumPy or JAX arrays, int32, of one shape (…, B, L)."""

  inputs: Any
  targets: Any  # the token after each input, `IGNORED` where nothing is to be predicted
  segments: Any = None  # documents in a row from 1, 0 for padding; None if rows are not packed
  sources: Any = (
    None  # what an encoder reads, `IGNORED` behind its end; None if there is no encoder
  )
