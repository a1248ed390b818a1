"""What was saved comes back bit for bit, on any mesh; the newest few and the best are kept."""

import logging
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax import errors
from gpt_jax.training import checkpoints as checkpoints_lib
from gpt_jax.training import step as step_lib

_OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))


def _state(step=0, *, width=32, names='ab'):
  """A state whose every array is random, as after `step` steps."""
  keys = jax.random.split(jax.random.key(step), len(names))
  params: Any = {
    name: {'kernel': jax.random.normal(key, (16, width)), 'bias': jnp.full((width,), 1e-40)}
    for name, key in zip(names, keys, strict=True)
  }
  opt_state = _OPTIMIZER.init(params)
  for _ in range(min(step, 2)):
    updates, opt_state = _OPTIMIZER.update(params, opt_state, params)
    params = optax.apply_updates(params, updates)
  return step_lib.TrainState(jnp.asarray(step, jnp.int32), params, opt_state)


def _abstract(state, sharding=None):
  """The shapes of `state`; `sharding` is a function of an array."""
  sharding = sharding or (lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), state)


def _sharded_over(count):
  """Shardings that cut matrices along their first axis over `count` devices."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('x',))

  def sharding(x):
    return jax.NamedSharding(mesh, jax.P('x') if x.ndim == 2 else jax.P())

  return sharding


def _bits(tree):
  return {
    jax.tree_util.keystr(path): (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _save(directory, states, *, keep=2):
  """Saves (step, validation loss) pairs."""
  with checkpoints_lib.Checkpoints(directory, keep=keep) as checkpoints:
    for step, val_loss in states:
      checkpoints.save(_state(step), step=step, val_loss=val_loss)


def _look(directory):
  """The steps that a reader finds, and the best of them."""
  with checkpoints_lib.Checkpoints(directory, keep=1, read_only=True) as checkpoints:
    return checkpoints.steps(), checkpoints.best_step()


def test_a_reader_hears_no_warnings_of_its_reading(tmp_path, caplog):
  _save(tmp_path, [(3, 1.0)])
  caplog.clear()
  with caplog.at_level(logging.WARNING, 'absl'):
    assert _look(tmp_path) == ([3], 3)
    assert not caplog.records
    logging.getLogger('absl').warning('of something else')
  assert len(caplog.records) == 1


def test_a_state_comes_back_bit_for_bit(tmp_path):
  _save(tmp_path, [(3, 1.0), (7, None)])
  with checkpoints_lib.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (3, 7):
      restored = checkpoints.restore(step, _abstract(_state()))
      assert _bits(restored) == _bits(_state(step))
      assert str(jax.tree.structure(restored)) == str(jax.tree.structure(_state()))
      assert int(restored.step) == step


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
  state = _state(1)
  expected = _bits(state)
  change = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  with checkpoints_lib.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(state, step=1, val_loss=None)
    change(state)  # the next step takes the buffers while the save is under way
  with checkpoints_lib.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert _bits(checkpoints.restore(1, _abstract(_state()))) == expected


@pytest.mark.parametrize(('saved_on', 'restored_on'), [(1, 4), (4, 1), (4, 2)])
def test_another_sharding_gives_the_same_values(tmp_path, saved_on, restored_on):
  if jax.device_count() < 4:
    pytest.skip('needs four devices')
  state = _state(5)
  before, after = _sharded_over(saved_on), _sharded_over(restored_on)
  state = jax.tree.map(lambda x: jax.device_put(x, before(x)), state)
  with checkpoints_lib.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(state, step=5, val_loss=None)
  with checkpoints_lib.Checkpoints(tmp_path, keep=1) as checkpoints:
    abstract = _abstract(state, after)
    restored = checkpoints.restore(5, abstract)
  assert _bits(restored) == _bits(state)
  for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


@pytest.mark.parametrize(
  ('keep', 'states', 'kept', 'best'),
  [
    (2, [(1, 3.0), (2, 2.0), (3, 1.0)], [2, 3], 3),
    (2, [(1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, 5.0)], [2, 4, 5], 2),
    (1, [(1, 1.0), (2, None), (3, None)], [1, 3], 1),
    (1, [(1, None), (2, None)], [2], None),
    (3, [(1, None), (2, 1.0), (3, None), (10, 2.0), (200, None)], [2, 3, 10, 200], 2),
  ],
)
def test_the_newest_few_and_the_best_are_kept(tmp_path, keep, states, kept, best):
  _save(tmp_path, states, keep=keep)
  assert _look(tmp_path) == (kept, best)
  assert sorted(int(path.name) for path in tmp_path.iterdir()) == kept


def test_the_best_is_kept_through_a_resume(tmp_path):
  _save(tmp_path, [(1, 3.0), (2, 1.0)], keep=1)
  _save(tmp_path, [(3, 2.0), (4, None), (5, 1.5)], keep=1)
  assert _look(tmp_path) == ([2, 5], 2)
  _save(tmp_path, [(6, 0.5)], keep=1)
  assert _look(tmp_path) == ([6], 6)


def test_the_best_is_known_while_training(tmp_path):
  with checkpoints_lib.Checkpoints(tmp_path, keep=1) as checkpoints:
    assert (checkpoints.steps(), checkpoints.best_step()) == ([], None)
    checkpoints.save(_state(1), step=1, val_loss=1.0)
    checkpoints.save(_state(2), step=2, val_loss=2.0)
    checkpoints.save(_state(3), step=3, val_loss=None)  # waits for the saves before it
    assert checkpoints.best_step() == 1


def test_reading_makes_and_changes_nothing(tmp_path):
  _save(tmp_path, [(1, 1.0), (2, 2.0)])
  unfinished = tmp_path / '3.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / '2', unfinished)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
  assert _look(tmp_path) == ([1, 2], 1)
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
    checkpoints.restore_params(1, _abstract(_state()).params)
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_a_save_that_was_cut_off_is_not_listed(tmp_path, monkeypatch):
  _save(tmp_path, [(1, 1.0)])

  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    for owner, name in [(pathlib.Path, 'rename'), (pathlib.Path, 'replace')]:
      patch.setattr(owner, name, fail)
    patch.setattr('os.rename', fail)
    patch.setattr('os.replace', fail)
    # The failure of a save must not pass unseen.
    with pytest.raises(OSError, match='No space left'):
      _save(tmp_path, [(2, 0.5)])
  assert [path.name for path in tmp_path.iterdir()] != ['1']  # half of it is there
  assert _look(tmp_path) == ([1], 1)
  _save(tmp_path, [(2, 0.5)])
  assert _look(tmp_path) == ([1, 2], 2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


@pytest.mark.parametrize('other', [{'width': 16}, {'width': 64}, {'names': 'ac'}, {'names': 'a'}])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_the_state_of_another_model_is_refused(tmp_path, other):
  _save(tmp_path, [(3, None)])
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
    abstract = _abstract(_state(**other))
    with pytest.raises(errors.UserError, match='config.json'):
      checkpoints.restore(3, abstract)
    with pytest.raises(errors.UserError, match=f'{tmp_path / "3"} is not a checkpoint'):
      checkpoints.restore_params(3, abstract.params)


def test_parameters_are_read_without_the_optimizer(tmp_path):
  _save(tmp_path, [(2, 1.0)])
  shutil.rmtree(tmp_path / '2' / 'optimizer')
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
    params = checkpoints.restore_params(2, _abstract(_state()).params)
    with pytest.raises(errors.UserError, match='damaged'):
      checkpoints.restore(2, _abstract(_state()))
  assert _bits(params) == _bits(_state(2).params)


@pytest.mark.parametrize('pattern', ['manifest.ocdbt', '_METADATA', 'ocdbt.process_0/d/*', 'd/*'])
@pytest.mark.parametrize('how', ['truncated', 'missing'])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint_is_refused(tmp_path, pattern, how):
  _save(tmp_path, [(2, 1.0)])
  paths = list((tmp_path / '2' / 'params').glob(pattern))
  assert paths
  for path in paths:
    path.unlink()
    if how == 'truncated':
      path.write_bytes(b'')
  with checkpoints_lib.Checkpoints(tmp_path, keep=1, read_only=True) as checkpoints:
    try:
      params = checkpoints.restore_params(2, _abstract(_state()).params)
    except errors.UserError as e:
      assert str(tmp_path / '2') in str(e) and 'damaged' in str(e)
    else:
      assert _bits(params) == _bits(_state(2).params)  # it can do without that file
