"""Batches on the devices, made ahead of their use."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable

import jax
import numpy as np

from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib

_AHEAD = 2  # batches made while the device works on another


def batches(
  make_rows: Callable[[np.ndarray], batch_lib.Batch],
  abstract: jax.ShapeDtypeStruct,
  numbers: Iterable[int],
) -> Generator[batch_lib.Batch, None, None]:
  """Yields batches in the order of `numbers`, made and put on the devices by another thread.

  Args:
    make_rows: Takes numbers of rows, int64 (R,), and returns a batch of NumPy arrays (R, L). Batch
      n has the rows n·A·B to (n + 1)·A·B - 1.
    abstract: Shape (A, B, L) and sharding of the arrays of a batch.
    numbers: The batches wanted.
  """
  A, B, _ = abstract.shape

  def make(number: int) -> batch_lib.Batch:
    return mesh_lib.global_batch(lambda rows_R: make_rows(number * A * B + rows_R), abstract)

  pool = concurrent.futures.ThreadPoolExecutor(1)
  pending: collections.deque[concurrent.futures.Future[batch_lib.Batch]] = collections.deque()
  try:
    for number in numbers:
      pending.append(pool.submit(make, number))
      if len(pending) > _AHEAD:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
