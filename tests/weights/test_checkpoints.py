"""What was saved comes back bit for bit, on any mesh; the newest few and the best are kept."""

import contextlib
import logging
import os
import pathlib
import shutil
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from gpt_jax import errors
from gpt_jax.weights import checkpoints as checkpoints_lib
from gpt_jax.weights import manifest
from tests import raised
from tests.weights import saved

_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))
_IDENTITY = {'model': 'a', 'tokenizer': 'b'}


def _items(step=0, *, width=32, names='ab'):
  """Parameters and optimizer state whose every array is random, as after `step` steps."""
  keys = jax.random.split(jax.random.key(step), len(names))
  params: Any = {
    name: {'kernel': jax.random.normal(key, (16, width)), 'bias': jnp.full((width,), 1e-40)}
    for name, key in zip(names, keys, strict=True)
  }
  opt_state = _OPTIMIZER.init(params)
  for _ in range(min(step, 2)):
    updates, opt_state = _OPTIMIZER.update(params, opt_state, params)
    params = optax.apply_updates(params, updates)
  return {'params': params, 'optimizer': opt_state}


def _abstract(items, sharding=None):
  """The shapes of `items`; `sharding` is a function of an array."""
  sharding = sharding or (lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), items)


def _sharded_over(count):
  """Returns a function that shards matrices along their first axis over `count` devices."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('x',))
  return lambda x: jax.NamedSharding(mesh, jax.P('x') if x.ndim == 2 else jax.P())


def _bits(tree):
  return {
    jax.tree_util.keystr(path): (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _save(directory, losses, *, keep=2):
  """Saves (step, validation loss) pairs."""
  with checkpoints_lib.Checkpoints(directory, keep=keep) as checkpoints:
    for step, val_loss in losses:
      checkpoints.save(step, _items(step), score=val_loss, identity=_IDENTITY)


def _steps(directory):
  """The steps that a reader finds, and the best of them."""
  scores = manifest.scores(directory)
  return list(scores), manifest.best(scores)


def _restored(directory, step):
  return checkpoints_lib.restore(directory / str(step), _abstract(_items()))


def test_orbax_does_not_warn_of_what_is_meant(tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    _save(tmp_path, [(2, None), (3, 1.0)])
    assert _steps(tmp_path) == ([2, 3], 3)
    assert not caplog.records
    logging.getLogger('absl').warning('of something else')
  assert len(caplog.records) == 1
  logging.getLogger('asyncio').error('Task exception: Error writing "a" in OCDBT database')
  logging.getLogger('asyncio').error('of something else')
  assert len(caplog.records) == 2


def test_items_come_back_bit_for_bit_with_their_types(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = pathlib.Path('run')
  _save(folder, [(3, 1.0), (7, None)])
  for step, score in ((3, 1.0), (7, None)):
    restored = _restored(folder, step)
    assert _bits(restored) == _bits(_items(step))
    # Optax's named tuples among them.
    assert str(jax.tree.structure(restored)) == str(jax.tree.structure(_items()))
    found = manifest.verify(folder / str(step))
    assert (found.step, found.score, found.identity) == (step, score, _IDENTITY)


def test_what_is_saved_are_the_values_at_the_call(tmp_path):
  items = _items(1)
  expected = _bits(items)
  change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  with checkpoints_lib.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, items, score=None, identity={})
    change(items)  # the next step takes the buffers during the save
  assert _bits(_restored(tmp_path, 1)) == expected


def test_the_name_of_a_checkpoint_is_on_the_disk_before_an_older_one_is_removed(
  tmp_path, monkeypatch
):
  removed, synced = list[str](), list[str]()
  remove, fsync = checkpoints_lib.remove, os.fsync

  def spy(folder: pathlib.Path) -> None:
    assert synced[-1:] == [str(tmp_path)]
    removed.append(folder.name)
    remove(folder)

  def sync(number: int) -> None:
    synced.append(os.readlink(f'/proc/self/fd/{number}'))
    fsync(number)

  monkeypatch.setattr(checkpoints_lib, 'remove', spy)
  monkeypatch.setattr(os, 'fsync', sync)
  _save(tmp_path, [(1, None), (2, None), (3, None)], keep=1)
  assert removed == ['1', '2']


@pytest.mark.parametrize(('saved_on', 'restored_on'), [(1, 2), (2, 1), (2, 2)])
def test_another_sharding_gives_the_same_values(tmp_path, saved_on, restored_on):
  before = _sharded_over(saved_on)
  items = jax.tree.map(lambda x: jax.device_put(x, before(x)), _items(5))
  with checkpoints_lib.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(5, items, score=None, identity=_IDENTITY)
  abstract = _abstract(items, _sharded_over(restored_on))
  restored = checkpoints_lib.restore(tmp_path / '5', abstract)
  assert _bits(restored) == _bits(items)
  saved.assert_placed(restored, abstract)


@pytest.mark.parametrize(
  ('keep', 'losses', 'kept', 'best'),
  [
    (2, [(1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0)], [2, 4, 5], 2),
    (1, [(1, 1.0), (2, None), (3, None)], [1, 3], 1),
    (1, [(1, None), (2, None)], [2], None),
  ],
)
def test_the_newest_few_and_the_best_are_kept(tmp_path, keep, losses, kept, best):
  _save(tmp_path, losses, keep=keep)
  assert _steps(tmp_path) == (kept, best)
  assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept


def test_the_best_is_kept_through_a_resume(tmp_path):
  _save(tmp_path, [(1, 3.0), (2, 1.0)], keep=1)
  _save(tmp_path, [(3, 2.0), (4, None), (5, 1.5)], keep=1)
  assert _steps(tmp_path) == ([2, 5], 2)
  _save(tmp_path, [(6, 0.5), (7, None)], keep=1)  # the second save waits for the first
  assert _steps(tmp_path) == ([6, 7], 6)


def test_a_step_saved_before_its_evaluation_gets_its_loss_later(tmp_path):
  _save(tmp_path, [(1, 2.0), (2, None)])
  _save(tmp_path, [(2, None), (2, 3.0), (2, 1.0), (2, None), (3, None), (4, None)], keep=1)
  assert _steps(tmp_path) == ([2, 4], 2)
  assert _bits(_restored(tmp_path, 2)) == _bits(_items(2))
  assert manifest.verify(tmp_path / '2').identity == _IDENTITY


def test_a_reader_changes_nothing(tmp_path):
  _save(tmp_path, [(1, 1.0), (2, 2.0)])
  shutil.copytree(tmp_path / '2', tmp_path / '3.orbax-checkpoint-tmp')  # an unfinished one
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  assert _steps(tmp_path) == ([1, 2], 1)
  _restored(tmp_path, 1)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


_FULL = OSError(28, 'No space left on device')


@contextlib.contextmanager
def _no_room(monkeypatch, error=_FULL):
  """Makes no file get its name: a full disk."""
  fail = mock.Mock(side_effect=error)
  with monkeypatch.context() as patch:
    for name in ('pathlib.Path.rename', 'pathlib.Path.replace', 'os.rename', 'os.replace'):
      patch.setattr(name, fail)
    yield


@pytest.mark.parametrize(
  'error', [_FULL, ValueError("UNKNOWN: Error writing [spec='{}'] [os_error_code='28']")], ids=repr
)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_failed_save_is_told_and_removed_and_the_next_one_goes_on(tmp_path, monkeypatch, error):
  told: list[str] = []
  _save(tmp_path, [(1, 1.0)])
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, warn=told.append) as checkpoints:
    with _no_room(monkeypatch, error):
      checkpoints.save(2, _items(2), score=0.5, identity=_IDENTITY)
      checkpoints.wait()
    assert len(told) == 1
    assert 'No space left' in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ['1']
    checkpoints.save(3, _items(3), score=0.7, identity=_IDENTITY)
  assert _steps(tmp_path) == ([3], 3)
  manifest.verify(tmp_path / '3')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_failed_last_save_ends_the_run_even_if_it_was_stopped(tmp_path, monkeypatch):
  for error in (None, errors.Stopped('stopped, saved')):

    def save(error=error):
      with checkpoints_lib.Checkpoints(tmp_path, keep=1) as checkpoints, _no_room(monkeypatch):
        checkpoints.save(2, _items(2), score=0.5, identity=_IDENTITY)
        checkpoints.wait()
        if error:
          raise error

    assert raised.user_error(save).key == str(tmp_path / '2')


def test_who_ends_it_at_once_need_not_wait_for_a_save(tmp_path):
  with pytest.raises(KeyboardInterrupt), checkpoints_lib.Checkpoints(tmp_path, keep=1) as opened:
    opened.save(1, _items(), score=None, identity={})
    waits = mock.patch.object(opened, 'wait', side_effect=AssertionError)
    waits.start()
    raise KeyboardInterrupt
  waits.stop()
  opened.wait()


def test_without_room_nothing_is_written(tmp_path, monkeypatch):
  told: list[str] = []
  _save(tmp_path, [(1, 1.0)])
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: types.SimpleNamespace(free=1000))
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, warn=told.append) as checkpoints:
    checkpoints.save(2, _items(2), score=0.5, identity=_IDENTITY)
    assert len(told) == 1
    monkeypatch.undo()
    checkpoints.save(3, _items(3), score=0.5, identity=_IDENTITY)
  assert _steps(tmp_path) == ([3], 3)


def test_a_folder_gets_its_name_with_its_manifest(tmp_path, monkeypatch):
  seen = []
  rename = os.rename

  def spy(source, target, **kwargs):
    if pathlib.Path(target).name == '1':
      seen.append((pathlib.Path(source) / 'manifest.json').read_bytes())
    rename(source, target, **kwargs)

  for name in ('os.rename', 'os.replace'):
    monkeypatch.setattr(name, spy)
  _save(tmp_path, [(1, 1.0)])
  assert seen == [(tmp_path / '1' / 'manifest.json').read_bytes()]


def test_what_is_being_removed_is_no_checkpoint(tmp_path, monkeypatch):
  _save(tmp_path, [(1, 1.0), (2, 2.0)])
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', mock.Mock(side_effect=OSError('crash')))
    with pytest.raises(OSError, match='crash'):
      checkpoints_lib.remove(tmp_path / '1')
  assert _steps(tmp_path) == ([2], 2)
  _save(tmp_path, [(3, 1.0)])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '3']


@pytest.mark.parametrize('other', [{'width': 16}, {'width': 64}, {'names': 'ac'}, {'names': 'a'}])
@pytest.mark.parametrize('names', [('params', 'optimizer'), ('params',)], ids=len)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.filterwarnings("ignore:coroutine '_read:RuntimeWarning")
def test_the_state_of_another_model_is_refused(tmp_path, other, names):
  _save(tmp_path, [(3, None)])
  abstract = {name: tree for name, tree in _abstract(_items(**other)).items() if name in names}
  folder = tmp_path / '3'
  assert raised.user_error(checkpoints_lib.restore, folder, abstract).key == str(folder)


def test_a_lack_of_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
  full = mock.Mock(side_effect=jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED'))
  monkeypatch.setattr(ocp.Checkpointer, 'restore', full)
  with pytest.raises(jax.errors.JaxRuntimeError):
    checkpoints_lib.restore(tmp_path, {})


def test_parameters_are_read_without_the_optimizer(tmp_path):
  _save(tmp_path, [(2, 1.0)])
  shutil.rmtree(tmp_path / '2' / 'optimizer')
  manifest.verify(tmp_path / '2', ['params'])
  restored = checkpoints_lib.restore(tmp_path / '2', {'params': _abstract(_items())['params']})
  raised.user_error(checkpoints_lib.restore, tmp_path / '2', _abstract(_items()))
  raised.user_error(manifest.verify, tmp_path / '2')
  assert _bits(restored) == _bits({'params': _items(2)['params']})
