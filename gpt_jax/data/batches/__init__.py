"""Which rows make a batch: pure functions of their numbers.

Shapes: R rows, L tokens of context. Nothing here has a state, so a run that resumes, on any number
of hosts, sees the batches that it would have seen.
"""

import dataclasses
import functools

import numpy as np

from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.data.batches import chunks as chunks_lib
from gpt_jax.data.batches import order, spans


@dataclasses.dataclass(frozen=True)
class Dataset:
  """The rows of one split of a mixture, in the order in which they are seen."""

  chunks: tuple[chunks_lib.Chunks | spans.Spans, ...]  # of each source
  weights: tuple[float, ...] | None  # see `order.Mixture`
  seed: int  # of the order

  @property
  def summary(self) -> str:
    """The number and kind of the rows of each source."""
    return ' + '.join(chunks.summary for chunks in self.chunks)

  def train_rows(self, numbers: np.ndarray) -> batch_lib.Batch:
    """Returns (R, L) rows of the endless training sequence, which is in a new order each epoch.

    `numbers` are int64 (R,), at least 0: row r of step s is number s * batch_size + r.
    """
    return self._rows(*self._mixture.train(numbers))

  def train_places(self, numbers: np.ndarray) -> list[np.ndarray]:
    """Returns which rows of each source these rows of the training sequence are, sorted."""
    sources, indices = self._mixture.train(numbers)
    return [np.sort(indices[sources == source]) for source in range(len(self.chunks))]

  def val_rows(self, numbers: np.ndarray, *, total: int) -> batch_lib.Batch:
    """Returns (R, L) rows of an evaluation: always the same, spread evenly over the text.

    `numbers` are int64 (R,), each in [0, total); some rows repeat if the split has fewer than that.
    """
    return self._rows(*self._mixture.val(numbers, total))

  @functools.cached_property
  def _mixture(self) -> order.Mixture:
    return order.Mixture(tuple(map(len, self.chunks)), self.weights, self.seed)

  def _rows(self, sources: np.ndarray, indices: np.ndarray) -> batch_lib.Batch:
    """The rows with these indices in the chunks of their sources, in this order."""
    by_source = [
      chunks.rows(indices[sources == source]) for source, chunks in enumerate(self.chunks)
    ]
    places = np.argsort(np.argsort(sources, kind='stable'))
    return batch_lib.Batch(
      *(
        None if columns[0] is None else np.concatenate(columns)[places]
        for columns in zip(*by_source, strict=True)
      )
    )
