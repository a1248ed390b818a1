"""Which rows make a batch: pure functions of their numbers.

Shapes: R rows, L tokens of context. Nothing here has a state, so that a run which resumes, on any
number of hosts, sees the batches it would have seen.
"""

import dataclasses
import functools

import numpy as np

from gpt_jax.data.batches import chunks as chunks_lib
from gpt_jax.data.batches import order


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The rows of one side of a split, in the order in which they are seen.

  Attributes:
    chunks: Of each source of the mixture.
    weights: Share of each source, see `order.Mixture`. None: the rows of all are one pool.
    seed: Of the order.
  """

  chunks: tuple[chunks_lib.Chunks, ...]
  weights: tuple[float, ...] | None
  seed: int

  def train_rows(self, numbers: np.ndarray) -> chunks_lib.Rows:
    """Rows of the endless sequence that training sees: all, in another order each epoch.

    Args:
      numbers: int64 (R,), at least 0: row r of step s is number s * batch_size + r.
    """
    return self._rows(*self._mixture.train(numbers))

  def val_rows(self, numbers: np.ndarray, *, total: int) -> chunks_lib.Rows:
    """Rows of an evaluation of `total` rows: the same each time, spread evenly over the text.

    Args:
      numbers: int64 (R,), each in [0, total).
      total: Rows in the evaluation; some come again if there are more than the text has.
    """
    return self._rows(*self._mixture.val(numbers, total))

  @functools.cached_property
  def _mixture(self) -> order.Mixture:
    return order.Mixture(tuple(map(len, self.chunks)), self.weights, self.seed)

  def _rows(self, sources: np.ndarray, indices: np.ndarray) -> chunks_lib.Rows:
    if len(self.chunks) == 1:
      return self.chunks[0].rows(indices)
    by_source = np.argsort(sources, kind='stable')
    places = np.argsort(by_source)
    parts = [chunk.rows(indices[sources == k]) for k, chunk in enumerate(self.chunks)]
    segments = [part.segments for part in parts if part.segments is not None]
    return chunks_lib.Rows(
      np.concatenate([part.inputs for part in parts])[places],
      np.concatenate([part.targets for part in parts])[places],
      np.concatenate(segments)[places] if segments else None,
    )
