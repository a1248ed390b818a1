"""The device mesh: axes `data`, `fsdp` and `tensor`, and the placement of batches on it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import validation

# Sequences are spread over both: fsdp cuts up the parameters of what would be copies.
BATCH_AXES = ('data', 'fsdp')


def make_mesh(config: config_lib.Config) -> jax.sharding.Mesh:
  """The mesh that `config.mesh` describes, over all devices of all processes.

  Raises:
    UserError: the axes don't multiply to the number of devices, or an axis doesn't divide what it
      has to cut.
  """
  wanted, devices = config.mesh, jax.device_count()
  fixed = wanted.fsdp * wanted.tensor
  data = max(devices // fixed, 1) if wanted.data == -1 else wanted.data
  if data * fixed != devices:
    validation.fail(
      [
        f'mesh.data: {data} × mesh.fsdp {wanted.fsdp} × mesh.tensor {wanted.tensor} must equal '
        f'the number of devices ({devices})'
      ]
    )
  validation.fail(_indivisible(config, data))
  return jax.make_mesh(
    (data, wanted.fsdp, wanted.tensor),
    ('data', 'fsdp', 'tensor'),
    # Linen's modules work on Auto axes only; make_mesh would give Explicit ones.
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )


def _indivisible(config: config_lib.Config, data: int) -> list[str]:
  model, fsdp, tensor = config.model, config.mesh.fsdp, config.mesh.tensor
  micro_batch = config.train.batch_size // config.train.gradient_accumulation
  rules = [
    (
      'train.batch_size / train.gradient_accumulation',
      micro_batch,
      data * fsdp,
      'mesh.data × mesh.fsdp',
    ),
    ('model.n_embd', model.n_embd, fsdp, 'mesh.fsdp'),
    ('model.n_head', model.n_head, tensor, 'mesh.tensor'),
    ('model.vocab_size (padded)', model.padded_vocab_size, tensor, 'mesh.tensor'),
  ]
  return [
    f'{key}: {size} must be divisible by {axis} ({parts})'
    for key, size, parts, axis in rules
    if size % parts
  ]


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Sharding of a batch of shape (accumulation, sequences, length)."""
  return jax.NamedSharding(mesh, jax.P(None, BATCH_AXES, None))


def global_batch(
  make_rows: Callable[[np.ndarray], Any],
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
) -> Any:
  """Global arrays of `shape` (accumulation, sequences, length), built from their rows.

  Args:
    make_rows: from the numbers of some of the accumulation × sequences rows, int64 (rows,), to
      their values: a pytree of int32 arrays of shape (rows, length). A process is asked only for
      the rows that its own devices hold, and once where several devices hold the same.
    shape: the global shape.
    sharding: one that cuts along sequences.

  Returns:
    What `make_rows` does, with global arrays in place of rows.
  """
  parts, sequences, length = shape
  numbers = np.arange(parts * sequences, dtype=np.int64).reshape(parts, sequences)

  def wanted(index: Any) -> np.ndarray:
    return numbers[index[:2]]

  made: dict[bytes, Any] = {}
  for index in sharding.addressable_devices_indices_map(shape).values():
    rows = wanted(index)
    if rows.tobytes() not in made:
      made[rows.tobytes()] = make_rows(rows.ravel())

  def assemble(*leaves: np.ndarray) -> jax.Array:
    values = dict(zip(made, leaves, strict=True))

    def piece(index: Any) -> np.ndarray:
      rows = wanted(index)
      return values[rows.tobytes()].reshape(*rows.shape, length)

    return jax.make_array_from_callback(shape, sharding, piece)

  return jax.tree.map(assemble, *made.values())


def per_device_bytes(tree: object) -> int:
  """Bytes that one device holds of abstract or concrete arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
