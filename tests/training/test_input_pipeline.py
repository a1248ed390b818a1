"""Batches arrive in order, with the rows of their number, made ahead of their use."""

import itertools
import threading

import jax
import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import input_pipeline

A, B, L = 2, 4, 3


def _rows(numbers_R):
  """Rows that show their number: inputs n·10, n·10 + 1, …; targets one more."""
  inputs_RL = (10 * numbers_R[:, None] + np.arange(L)).astype(np.int32)
  return batch_lib.Batch(inputs_RL, inputs_RL + 1)


def _batches(numbers, make_rows=_rows):
  mesh = jax.make_mesh((jax.device_count(), 1, 1), ('data', 'fsdp', 'tensor'))
  sharding = mesh_lib.batch_sharding(mesh)
  abstract = jax.ShapeDtypeStruct((A, B, L), np.int32, sharding=sharding)
  return input_pipeline.batches(make_rows, abstract, numbers)


def test_a_batch_has_the_rows_of_its_number_on_the_devices():
  found = list(_batches([0, 5, 10**12]))
  assert all(isinstance(batch.inputs, jax.Array) for batch in found)
  for number, batch in zip([0, 5], found[:2], strict=True):
    inputs_RL, targets_RL, *_ = _rows(np.arange(number * A * B, (number + 1) * A * B))
    np.testing.assert_array_equal(batch.inputs, inputs_RL.reshape(A, B, L))
    np.testing.assert_array_equal(batch.targets, targets_RL.reshape(A, B, L))
    assert batch.segments is None


def test_batches_come_in_order_and_are_made_ahead():
  made, asked = [], threading.Event()

  def make_rows(numbers_R):
    made.append(int(numbers_R[0]) // (A * B))
    if made[-1] == 2:
      asked.set()
    return _rows(numbers_R)

  def first(batch):
    return int(np.asarray(batch.inputs)[0, 0, 0]) // (10 * A * B)

  numbers = iter(range(9))
  stream = _batches(numbers, make_rows)
  assert first(next(stream)) == 0
  assert asked.wait(60), 'none is made ahead'
  assert next(numbers) == 3, 'two are made ahead, and no more'
  assert [first(batch) for batch in stream] == [1, 2, 4, 5, 6, 7, 8]
  assert made == [0, 1, 2, 4, 5, 6, 7, 8]
  assert list(_batches([])) == []


def test_an_error_in_the_other_thread_is_raised_at_its_batch():
  def make_rows(numbers_R):
    if numbers_R[0] == A * B:
      raise errors.UserError('data', 'is damaged')
    return _rows(numbers_R)

  stream = _batches(range(3), make_rows)
  next(stream)
  with pytest.raises(errors.UserError):
    next(stream)


def test_a_stream_closed_early_leaves_no_thread():
  before = threading.active_count()
  stream = _batches(itertools.count())
  next(stream)
  stream.close()
  assert threading.active_count() == before
