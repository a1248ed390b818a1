"""Devices as a mesh with axes `data`, `fsdp` and `tensor`, and the placement of batches on it."""

import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from gpt_jax import config as config_lib
from gpt_jax import errors

# Sequences are sharded over both: fsdp shards the parameters that would otherwise be copies.
BATCH_AXES = ('data', 'fsdp')


def start(mesh: config_lib.MeshConfig) -> None:
  """Makes `mesh.cpu_devices` devices of the CPU, unless XLA_FLAGS gives their number.

  A program on one such device then runs in the thread that calls it: malloc can keep its memory,
  see `cpu_memory`, and a step's is freed before the next one takes its own.

  To be called before JAX first looks at its devices; has no effect on accelerators. A program that
  has used JAX already keeps its devices; raises `UserError` if it needs more.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    try:
      jax.config.update('jax_num_cpu_devices', mesh.cpu_devices)
    except RuntimeError as e:
      if mesh.cpu_devices > 1:
        problem = f'{mesh.cpu_devices} are too late: this program has used JAX already'
        raise errors.UserError('mesh.cpu_devices', problem, 'train before that') from e


def find_devices() -> list[jax.Device]:
  """Returns the devices of all processes; raises `UserError` if JAX finds none."""
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as e:  # the second without a message
    problem = f'JAX has none ({str(e).splitlines()[0] if str(e) else "no such platform"})'
    fix = 'pip install gpt_jax[cuda] or gpt_jax[tpu]'
    if platforms := os.environ.get('JAX_PLATFORMS'):
      fix += f', or unset JAX_PLATFORMS={platforms}'
    raise errors.UserError('devices', problem, fix) from e


def one_step_at_a_time() -> bool:
  """Returns whether a step must end before the next is dispatched: on several devices of CPUs.

  Those of a process share a pool of threads in which they wait for each other; with several steps
  in flight the waiting ones can take all of it, and XLA aborts the process after 40 seconds.
  """
  return jax.default_backend() == 'cpu' and jax.device_count() > 1


def compiler_options(
  mesh: jax.sharding.Mesh, *, deterministic: bool = False, kernels: pathlib.Path | None = None
) -> dict[str, str | bool]:
  """Returns options for XLA.

  If `deterministic`, GPUs add up in the same order each time, and use the kernels that the file
  `kernels` names, if it is there; XLA writes those that it measured to be fastest to KERNELS.new.

  By default, XLA for TPU cuts a product whose result is reduced to shards into as many small ones,
  which pass their sums around: by its own estimate, the computation of a step of gpt2_small with
  fsdp 8 on a v5e-8 takes 1.4 times as long.
  """
  platform = mesh.devices.flat[0].platform
  if platform == 'tpu':
    return {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}
  if platform != 'gpu' or not deterministic:
    return {}
  options: dict[str, str | bool] = {'xla_gpu_exclude_nondeterministic_ops': True}
  if kernels and jax.process_index() == 0:
    options['xla_gpu_dump_autotune_results_to'] = f'{kernels}.new'
  if kernels and kernels.exists():
    options['xla_gpu_load_autotune_results_from'] = str(kernels)
  return options


def make_mesh(
  config: config_lib.Config, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Returns the mesh that `config.mesh` describes, over `devices` or all of all processes.

  Raises:
    UserError: The axes don't multiply to the number of devices, or an axis doesn't divide what it
      shards.
  """
  devices = find_devices() if devices is None else devices
  wanted, count = config.mesh, len(devices)
  fixed = wanted.fsdp * wanted.tensor
  data = max(count // fixed, 1) if wanted.data == -1 else wanted.data
  if data * fixed != count:
    raise errors.UserError(
      'mesh.data',
      f'{data} × `mesh.fsdp` ({wanted.fsdp}) × `mesh.tensor` ({wanted.tensor}) must equal the '
      f'number of devices ({count})',
    )
  mesh = jax.sharding.Mesh(
    _arrange(devices, (data, wanted.fsdp, wanted.tensor)),
    ('data', 'fsdp', 'tensor'),
    # Linen's modules work on Auto axes only.
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  check_divisible(config, mesh)
  return mesh


def _arrange(devices: Sequence[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
  """Returns the devices as an array, neighbours where most is exchanged.

  Between slices (of TPUs; hosts, of GPUs) the network is slow: they are spread over `data`, then
  over `fsdp`, and `tensor` stays within one, if the sizes allow it.
  """
  data, fsdp, tensor = shape
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  over_data = math.gcd(data, slices)
  over_fsdp = slices // over_data
  if slices == 1 or fsdp % over_fsdp:
    return mesh_utils.create_device_mesh(shape, devices)
  within = (data // over_data, fsdp // over_fsdp, tensor)
  return mesh_utils.create_hybrid_device_mesh(within, (over_data, over_fsdp, 1), devices)


def check_divisible(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Raises `UserError` unless each axis divides what it shards (a vocabulary of 0: unknown)."""
  model, train = config.model, config.train
  micro_batch = train.batch_size // train.gradient_accumulation
  data, fsdp, tensor = mesh.shape.values()
  rules = [
    ('train.batch_size', f'{micro_batch} per micro-batch', micro_batch, data * fsdp, 'data × fsdp'),
    ('model.n_embd', f'{model.n_embd}', model.n_embd, fsdp, 'fsdp'),
    ('model.lstm_width', f'{model.lstm_width}', model.lstm_width, fsdp, 'fsdp')
    if model.kind == 'lstm'
    else ('model.n_head', f'{model.n_head}', model.n_head, tensor, 'tensor'),
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
      int32 arrays (R, …).
    abstract: The shape (A, B, …) of each global array, and its sharding along B.

  Returns:
    The tree of `make_rows`, with global arrays.
  """
  (A, B, _), sharding = abstract.shape, abstract.sharding
  indices = sharding.addressable_devices_indices_map(abstract.shape).values()
  held = np.unique([np.arange(B)[index[1]] for index in indices])
  rows = make_rows((np.arange(A, dtype=np.int64)[:, None] * B + held).ravel())

  def place(rows_RL: np.ndarray) -> jax.Array:
    L = rows_RL.shape[1]
    local_ABL = rows_RL.reshape(A, len(held), L)
    return jax.make_array_from_process_local_data(sharding, local_ABL, (A, B, L))

  return jax.tree.map(place, rows)


def mesh_of(params: Any) -> jax.sharding.Mesh | None:
  """Returns the mesh that parameters are on; None if they are on one device."""
  sharding = jax.tree.leaves(params)[0].sharding
  mesh = sharding.mesh if isinstance(sharding, jax.NamedSharding) else None
  return mesh if isinstance(mesh, jax.sharding.Mesh) else None


def spread(mesh: jax.sharding.Mesh | None, rows: np.ndarray) -> jax.Array | np.ndarray:
  """Splits rows among the devices of a mesh, if there is one."""
  return rows if mesh is None else jax.device_put(rows, jax.NamedSharding(mesh, jax.P(BATCH_AXES)))


def per_device_bytes(tree: object) -> int:
  """Returns the bytes that one device holds of abstract or concrete arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )
