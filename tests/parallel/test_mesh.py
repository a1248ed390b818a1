"""A mesh fits its devices and what it cuts, and a batch doesn't depend on it."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.parallel import mesh as mesh_lib

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason='needs 8 devices')


def _config(*, data=-1, fsdp=1, tensor=1, batch_size=8, accumulation=1, **model):
  tiny = {'n_layer': 1, 'n_head': 8, 'n_embd': 16, 'vocab_size': 32, 'pad_vocab_to': 1}
  return config_lib.Config(
    model=config_lib.ModelConfig(**{**tiny, **model}),
    train=config_lib.TrainConfig(batch_size=batch_size, gradient_accumulation=accumulation),
    mesh=config_lib.MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
  )


@pytest.mark.parametrize('fsdp, tensor, left', [(1, 1, 8), (4, 1, 2), (2, 2, 2), (1, 8, 1)])
def test_data_takes_the_devices_that_are_left(fsdp, tensor, left):
  mesh = mesh_lib.make_mesh(_config(fsdp=fsdp, tensor=tensor))
  assert dict(mesh.shape) == {'data': left, 'fsdp': fsdp, 'tensor': tensor}
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  'axes',
  [{'data': 3}, {'data': 16}, {'data': 4}, {'data': 8, 'fsdp': 2}, {'fsdp': 3}, {'tensor': 16}],
  ids=str,
)
def test_axes_must_multiply_to_the_number_of_devices(axes):
  with pytest.raises(errors.UserError, match=r'mesh\.data.* must equal .*devices \(8\)') as e:
    mesh_lib.make_mesh(_config(**axes))
  for key, size in axes.items():
    assert f'mesh.{key}' in str(e.value) and str(size) in str(e.value)


@pytest.mark.parametrize(
  'changes, key, size, axes',
  [
    ({'batch_size': 12}, 'train.batch_size', 12, 'mesh.data × mesh.fsdp (8)'),
    ({'fsdp': 4, 'batch_size': 20}, 'train.batch_size', 20, 'mesh.data × mesh.fsdp (8)'),
    (
      {'batch_size': 16, 'accumulation': 4},
      'train.batch_size / train.gradient_accumulation',
      4,
      'mesh.data × mesh.fsdp (8)',
    ),
    ({'fsdp': 4, 'n_embd': 18, 'n_head': 3}, 'model.n_embd', 18, 'mesh.fsdp (4)'),
    ({'tensor': 4, 'n_head': 2}, 'model.n_head', 2, 'mesh.tensor (4)'),
    ({'tensor': 4, 'vocab_size': 30}, 'model.vocab_size', 30, 'mesh.tensor (4)'),
  ],
  ids=str,
)
def test_what_is_cut_must_be_divisible(changes, key, size, axes):
  with pytest.raises(errors.UserError) as e:
    mesh_lib.make_mesh(_config(**changes))
  (line,) = str(e.value).splitlines()
  assert line.strip().startswith(key) and f' {size} ' in line and line.endswith(axes)


def test_padding_makes_a_vocabulary_divisible():
  mesh_lib.make_mesh(_config(tensor=4, vocab_size=30, pad_vocab_to=16))


def test_all_that_does_not_fit_is_told_at_once():
  config = _config(fsdp=2, tensor=4, n_head=3, n_embd=9, vocab_size=31, batch_size=5)
  with pytest.raises(errors.UserError) as e:
    mesh_lib.make_mesh(config)
  for key in ('train.batch_size', 'model.n_embd', 'model.n_head', 'model.vocab_size'):
    assert key in str(e.value)


class Rows(NamedTuple):
  inputs: Any
  targets: Any
  nothing: Any


AXES = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)]


@pytest.mark.parametrize('axes', AXES, ids=str)
@pytest.mark.parametrize('parts', [1, 3])
def test_a_global_batch_is_the_same_on_every_mesh_and_rows_are_made_once_for_who_holds_them(
  axes, parts
):
  data, fsdp, tensor = axes
  sharding = mesh_lib.batch_sharding(
    mesh_lib.make_mesh(_config(data=data, fsdp=fsdp, tensor=tensor, batch_size=16))
  )
  table = np.random.default_rng(0).integers(0, 1000, (parts * 16, 6), dtype=np.int32)
  asked = []

  def make_rows(numbers):
    assert numbers.dtype == np.int64 and numbers.ndim == 1
    asked.append(tuple(numbers.tolist()))
    return Rows(table[numbers, :-1], table[numbers, 1:], None)

  batch = mesh_lib.global_batch(make_rows, (parts, 16, 5), sharding)
  assert isinstance(batch, Rows) and batch.nothing is None
  for array, values in ((batch.inputs, table[:, :-1]), (batch.targets, table[:, 1:])):
    assert array.sharding == sharding and array.dtype == np.int32
    np.testing.assert_array_equal(array, values.reshape(parts, 16, 5))
  # Every device holds a run of the sequences of each part, over its own `length` positions.
  run = 16 // (data * fsdp)
  pieces = [
    [part * 16 + first + i for part in range(parts) for i in range(run)]
    for first in range(0, 16, run)
  ]
  assert sorted(asked) == sorted(map(tuple, pieces)), 'once, for both arrays and all devices'
  held = {shard.device: shard.data.shape for shard in batch.targets.addressable_shards}
  assert held == dict.fromkeys(jax.devices(), (parts, run, 5))


def test_bytes_of_one_device_are_those_it_holds():
  mesh = mesh_lib.make_mesh(_config(data=2, fsdp=4))
  cut, copied = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ('fsdp', None))
  tree = {
    'cut': jax.device_put(np.zeros((8, 6), np.float32), cut),
    'copied': jax.device_put(np.zeros(10, np.int16), copied),
  }
  held = sum(leaf.addressable_shards[3].data.nbytes for leaf in tree.values())
  assert mesh_lib.per_device_bytes(tree) == held == 8 * 6 * 4 // 4 + 10 * 2
  abstract = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    for name, leaf in tree.items()
  }
  assert mesh_lib.per_device_bytes(abstract) == held
