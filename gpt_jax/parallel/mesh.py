"""Devices as a mesh with axes `data`, `fsdp` and `tensor`, and the placement of batches on it."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors

# Sequences are sharded over both: fsdp shards the parameters that would otherwise be copies.
BATCH_AXES = ('data', 'fsdp')


def start(mesh: config_lib.MeshConfig) -> None:
  """Makes `mesh.cpu_devices` devices of the CPU, unless XLA_FLAGS gives their number.

  To be called before JAX first looks at its devices; has no effect on accelerators. The products of
  a small batch are too little work to share among cores; halves of the batch on devices of their
  own keep two cores busy: a step of configs/shakespeare_char_cpu.py took 51 ms on one device and
  takes 42 ms on two.
  """
  if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', mesh.cpu_devices)


def one_step_at_a_time() -> bool:
  """Returns whether a step must end before the next is dispatched: on several devices of one CPU.

  They share a pool of threads in which they wait for each other; with several steps in flight the
  waiting ones can take all of it, and XLA aborts the process after 40 seconds.
  """
  return jax.default_backend() == 'cpu' and jax.local_device_count() > 1


def make_mesh(config: config_lib.Config) -> jax.sharding.Mesh:
  """Returns the mesh that `config.mesh` describes, over all devices of all processes.

  Raises:
    UserError: The axes don't multiply to the number of devices, or an axis doesn't divide what it
      shards.
  """
  wanted, devices = config.mesh, jax.device_count()
  fixed = wanted.fsdp * wanted.tensor
  data = max(devices // fixed, 1) if wanted.data == -1 else wanted.data
  if data * fixed != devices:
    raise errors.UserError(
      'mesh.data',
      f'{data} × `mesh.fsdp` ({wanted.fsdp}) × `mesh.tensor` ({wanted.tensor}) must equal the '
      f'number of devices ({devices})',
    )
  mesh = jax.make_mesh(
    (data, wanted.fsdp, wanted.tensor),
    ('data', 'fsdp', 'tensor'),
    # Linen's modules work on Auto axes only; make_mesh would give Explicit ones.
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  check_divisible(config, mesh)
  return mesh


def check_divisible(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises `UserError` unless each axis divides what it shards (a vocabulary of 0: unknown)."""
  model, train = config.model, config.train
  micro_batch = train.batch_size // train.gradient_accumulation
  data, fsdp, tensor = mesh.shape.values()
  rules = [
    ('train.batch_size', f'{micro_batch} per micro-batch', micro_batch, data * fsdp, 'data × fsdp'),
    ('model.n_embd', f'{model.n_embd}', model.n_embd, fsdp, 'fsdp'),
    ('model.n_head', f'{model.n_head}', model.n_head, tensor, 'tensor'),
    ('model.pad_vocab_to', 'the padded vocabulary', model.padded_vocab_size, tensor, 'tensor'),
  ]
  errors.raise_all(
    [
      errors.UserError(key, f'{what} must be divisible by {parts}, the size of mesh axis {axis}')
      for key, what, size, parts, axis in rules
      if size % parts
    ]
  )


def batch_sharding(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Returns the sharding of a batch of shape (A, B, L): accumulation, sequences, length."""
  return jax.NamedSharding(mesh, jax.P(None, BATCH_AXES, None))


def global_batch(make_rows: Callable[[np.ndarray], Any], abstract: jax.ShapeDtypeStruct) -> Any:
  """Builds global arrays from the rows that this process holds.

  Args:
    make_rows: Takes numbers of rows in the batch, int64 (R,), each in [0, A·B); returns a pytree of
      int32 arrays (R, L).
    abstract: The shape (A, B, L) of each global array, and its sharding along B.

  Returns:
    The tree of `make_rows`, with global arrays.
  """
  (A, B, L), sharding = abstract.shape, abstract.sharding
  indices = sharding.addressable_devices_indices_map(abstract.shape).values()
  held = np.unique([np.arange(B)[index[1]] for index in indices])
  rows = make_rows((np.arange(A, dtype=np.int64)[:, None] * B + held).ravel())

  def place(rows_RL: np.ndarray) -> jax.Array:
    local_ABL = rows_RL.reshape(A, len(held), L)
    return jax.make_array_from_process_local_data(sharding, local_ABL, abstract.shape)

  return jax.tree.map(place, rows)


def per_device_bytes(tree: object) -> int:
  """Returns the bytes that one device holds of abstract or concrete arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
