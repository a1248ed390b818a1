"""A mesh fits its devices and what it shards, and a batch doesn't depend on it."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs 8 devices; see launch/test.sh'
)


def _config(*, data=-1, fsdp=1, tensor=1, batch_size=8, accumulation=1, **model):
  tiny = {'n_layer': 1, 'n_head': 8, 'n_embd': 16, 'vocab_size': 32, 'pad_vocab_to': 1}
  return config_lib.Config(
    model=config_lib.ModelConfig(**{**tiny, **model}),
    train=config_lib.TrainConfig(batch_size=batch_size, gradient_accumulation=accumulation),
    mesh=config_lib.MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
  )


@pytest.mark.parametrize('fsdp, tensor, left', [(1, 1, 8), (4, 1, 2), (2, 2, 2), (1, 8, 1)])
def test_data_takes_the_remaining_devices(fsdp, tensor, left):
  mesh = mesh_lib.make_mesh(_config(fsdp=fsdp, tensor=tensor))
  assert dict(mesh.shape) == {'data': left, 'fsdp': fsdp, 'tensor': tensor}
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  'axes',
  [{'data': 3}, {'data': 16}, {'data': 4}, {'data': 8, 'fsdp': 2}, {'fsdp': 3}, {'tensor': 16}],
  ids=str,
)
def test_axes_must_multiply_to_the_number_of_devices(axes):
  with pytest.raises(errors.UserError) as e:
    mesh_lib.make_mesh(_config(**axes))
  assert e.value.key == 'mesh.data'
  assert all(str(size) in str(e.value) for size in (8, *axes.values()))


@pytest.mark.parametrize(
  'changes, keys',
  [
    ({'batch_size': 12}, ['train.batch_size']),
    ({'fsdp': 4, 'batch_size': 20}, ['train.batch_size']),
    ({'batch_size': 16, 'accumulation': 4}, ['train.batch_size']),
    ({'fsdp': 4, 'n_embd': 18, 'n_head': 3}, ['model.n_embd']),
    ({'tensor': 4, 'n_head': 2}, ['model.n_head']),
    ({'tensor': 4, 'vocab_size': 30}, ['model.pad_vocab_to']),
    (
      {'fsdp': 2, 'tensor': 4, 'n_head': 3, 'n_embd': 9, 'vocab_size': 31, 'batch_size': 5},
      ['train.batch_size', 'model.n_embd', 'model.n_head', 'model.pad_vocab_to'],
    ),
    ({'batch_size': 16, 'accumulation': 2, 'vocab_size': 0}, []),  # not known yet
    ({'tensor': 4, 'vocab_size': 30, 'pad_vocab_to': 16}, []),
  ],
  ids=str,
)
def test_what_is_sharded_must_be_divisible(changes, keys):
  try:
    mesh_lib.make_mesh(_config(**changes))
    found = []
  except errors.UserError as e:
    found = [error.key for error in e.all]
  assert found == keys


@pytest.mark.parametrize('axes', [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)], ids=str)
@pytest.mark.parametrize('parts', [1, 3])
def test_a_global_batch_is_the_same_on_every_mesh_and_its_rows_are_made_once(axes, parts):
  data, fsdp, tensor = axes
  mesh = mesh_lib.make_mesh(_config(data=data, fsdp=fsdp, tensor=tensor, batch_size=16))
  table = np.random.default_rng(0).integers(0, 1000, (parts * 16, 6), dtype=np.int32)
  asked = []

  def make_rows(numbers):
    assert numbers.dtype == np.int64 and numbers.ndim == 1
    asked.extend(numbers.tolist())
    return {'inputs': table[numbers, :-1], 'targets': table[numbers, 1:], 'nothing': None}

  sharding = mesh_lib.batch_sharding(mesh)
  abstract = jax.ShapeDtypeStruct((parts, 16, 5), np.int32, sharding=sharding)
  batch = mesh_lib.global_batch(make_rows, abstract)
  assert batch['nothing'] is None
  for array, values in ((batch['inputs'], table[:, :-1]), (batch['targets'], table[:, 1:])):
    assert array.sharding == sharding and array.dtype == np.int32
    np.testing.assert_array_equal(array, values.reshape(parts, 16, 5))
  assert sorted(asked) == list(range(parts * 16))
  held = {shard.device: shard.data.shape for shard in array.addressable_shards}
  assert held == dict.fromkeys(jax.devices(), (parts, 16 // (data * fsdp), 5))


_HOST = """
import json, sys
import jax, numpy as np
from gpt_jax.parallel import mesh as mesh_lib
number, port = map(int, sys.argv[1:])
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'127.0.0.1:{port}', 2, number)
found = []
for shape in [(4, 1, 1), (2, 1, 2), (1, 1, 4)]:
  sharding = mesh_lib.batch_sharding(jax.make_mesh(shape, ('data', 'fsdp', 'tensor')))
  abstract = jax.ShapeDtypeStruct((2, 8, 3), np.int32, sharding=sharding)
  asked = []
  def make_rows(numbers):
    asked.extend(numbers.tolist())
    return (np.arange(3) + 3 * numbers[:, None]).astype(np.int32)
  batch = mesh_lib.global_batch(make_rows, abstract)
  whole = np.arange(48).reshape(2, 8, 3)
  for shard in batch.addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
  found.append(asked)
print(json.dumps(found))
"""


def test_each_of_two_hosts_makes_only_the_rows_that_it_holds():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  hosts = [
    subprocess.Popen(
      [sys.executable, '-c', _HOST, str(number), str(port)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, 'XLA_FLAGS': ''},
      text=True,
    )
    for number in range(2)
  ]
  outputs = [host.communicate(timeout=240) for host in hosts]
  for host, (_, messages) in zip(hosts, outputs, strict=True):
    assert host.returncode == 0, messages
  first, second = (json.loads(output) for output, _ in outputs)
  rows = list(range(16))
  for ours, theirs in zip(first[:2], second[:2], strict=True):
    assert sorted(ours + theirs) == rows and len(ours) == 8, 'a row is on two hosts'
  assert first[2] == second[2] == rows  # each holds a copy of all


@dataclasses.dataclass(frozen=True)
class _Device:
  """What `mesh_utils` asks of a device of one of several hosts."""

  id: int
  slice_index: int
  platform: str = 'gpu'
  device_kind: str = 'a GPU'

  @property
  def process_index(self) -> int:
    return self.slice_index


@pytest.mark.parametrize(
  'hosts, axes, crossed',
  [
    (2, (2, 4, 1), ['data']),
    (2, (4, 1, 2), ['data']),
    (4, (2, 4, 1), ['data', 'fsdp']),
    (2, (1, 8, 1), ['fsdp']),
    (2, (1, 2, 4), ['fsdp']),
    (1, (2, 2, 2), []),
  ],
)
def test_hosts_are_spread_over_data_then_fsdp_and_never_tensor(hosts, axes, crossed):
  # In an order that has nothing to do with hosts.
  devices = [_Device(i, i % hosts) for i in range(8)]
  data, fsdp, tensor = axes
  with (
    mock.patch.object(jax, 'devices', return_value=devices),
    mock.patch.object(jax.sharding, 'Mesh', lambda found, names, **_: _Mesh(found, names)),
  ):
    found = mesh_lib.make_mesh(_config(data=data, fsdp=fsdp, tensor=tensor)).devices
  assert found.shape == axes and len(set(found.flat)) == 8
  host = np.vectorize(lambda device: device.slice_index)(found)
  assert [
    name for axis, name in enumerate(('data', 'fsdp', 'tensor')) if np.diff(host, axis=axis).any()
  ] == crossed


class _Mesh:
  def __init__(self, devices, names):
    self.devices = devices
    self.shape = dict(zip(names, devices.shape, strict=True))
