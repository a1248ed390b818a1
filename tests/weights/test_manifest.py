"""Any change to a checkpoint is noticed, or changes nothing that is read."""

import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.weights import checkpoints, manifest
from tests import damage, raised

_IDENTITY = {'model': 'a', 'tokenizer': 'b'}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with the checkpoints of steps 5 and 7; the first has the better score."""
  folder = tmp_path_factory.mktemp('run') / 'checkpoints'
  with checkpoints.Checkpoints(folder, keep=9) as opened:
    for step, score in ((5, 0.5), (7, 0.75)):
      items = {name: {'w': jnp.arange(step * 99.0)} for name in ('params', 'optimizer')}
      opened.save(step, items, score=score, identity=_IDENTITY)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'checkpoints')


def _files(folder):
  # Orbax writes this one after the manifest.
  return sorted(p for p in folder.rglob('*') if p.is_file() and p != folder / 'commit_success.txt')


@pytest.mark.parametrize('seed', range(150))
def test_damage_to_any_file_is_noticed(copy, seed):
  files = [path for path in _files(copy / '7') if path.stat().st_size]
  path = files[seed % len(files)]
  before = path.read_bytes()
  path.write_bytes(after := damage.damaged(before, seed // len(files) * 5 + seed))
  if after == before:
    manifest.verify(copy / '7')
  else:
    with pytest.raises(manifest.Damaged) as caught:
      manifest.verify(copy / '7')
    assert caught.value.key == str(copy / '7')


def test_another_value_in_the_manifest_is_noticed(copy):
  path = copy / '7' / 'manifest.json'
  path.write_text(path.read_text().replace('0.75', '0.25'))
  with pytest.raises(manifest.Damaged):
    manifest.read(copy / '7')


def test_all_files_are_on_the_disk_before_the_manifest_is_written(copy, monkeypatch):
  synced: set[int] = set()
  write = manifest.atomic.write_json
  monkeypatch.setattr(os, 'fsync', lambda number: synced.add(os.fstat(number).st_ino))

  def written(path: pathlib.Path, values: object) -> None:
    before = {file.stat().st_ino for file in _files(copy / '7') if file != path}
    assert before <= synced
    write(path, values)

  monkeypatch.setattr(manifest.atomic, 'write_json', written)
  manifest.write(copy / '7', manifest.read(copy / '7'))
  assert manifest.verify(copy / '7').step == 7


def test_a_missing_or_empty_file_is_noticed(copy, saved):
  for path in _files(copy / '7'):
    for change in (path.unlink, lambda path=path: path.write_bytes(b'')):
      content = path.read_bytes()
      change()
      if content or not path.exists():
        with pytest.raises(manifest.Damaged):
          manifest.verify(copy / '7')
      path.write_bytes(content)
  assert manifest.verify(copy / '7') == manifest.verify(saved / '7')


def test_another_file_and_the_only_one_not_in_the_manifest_do_no_harm(copy):
  (copy / '7' / 'params' / 'note').write_text('mine')
  (copy / '7' / 'commit_success.txt').unlink()
  manifest.verify(copy / '7')
  abstract = {'params': {'w': jax.ShapeDtypeStruct((693,), jnp.float32)}}
  restored = checkpoints.restore(copy / '7', abstract)
  np.testing.assert_array_equal(restored['params']['w'], np.arange(693))


def test_the_optimizer_of_a_model_that_is_read_may_be_damaged(copy):
  for path in _files(copy / '7' / 'optimizer'):
    path.write_bytes(b'')
  assert manifest.verify(copy / '7', ['params']).step == 7
  raised.user_error(manifest.verify, copy / '7', ['optimizer'])


def test_a_checkpoint_of_another_step_is_noticed(copy):
  (copy / '7').rename(copy / '9')
  with pytest.raises(manifest.Damaged):
    manifest.verify(copy / '9')


def test_a_newer_format_is_no_damage(copy, monkeypatch):
  monkeypatch.setattr(manifest, '_FORMAT', 2)
  found = manifest.Manifest(7, 0.5, _IDENTITY, {}, {})
  manifest.write(copy / '7', found)
  monkeypatch.undo()
  error = raised.user_error(manifest.read, copy / '7')
  assert not isinstance(error, manifest.Damaged)
  assert 'newer' in error.fix


def test_the_first_intact_one_is_found(copy):
  (copy / '7' / 'params' / '_METADATA').unlink()
  intact, damaged = manifest.first_intact(copy, [7, 5])
  assert intact is not None
  assert intact.step == 5
  assert [error.key for error in damaged] == [str(copy / '7')]
  (copy / '5' / 'manifest.json').unlink()
  assert manifest.first_intact(copy, [7, 5])[0] is None
  assert manifest.scores(copy) == {5: None, 7: 0.75}


def test_a_score_changes_nothing_else(copy):
  before = manifest.read(copy / '7')
  manifest.set_score(copy / '7', 0.25)
  after = manifest.verify(copy / '7')
  assert after.score == 0.25
  assert (after.files, after.identity) == (before.files, before.identity)


@pytest.mark.parametrize(
  ('scores', 'best'),
  [({}, None), ({1: None}, None), ({1: 2.0, 2: 1.0, 3: 1.0, 4: None}, 2), ({9: 1.0, 8: 1.0}, 8)],
)
def test_the_best_has_the_lowest_score_and_is_the_first_of_equals(scores, best):
  assert manifest.best(scores) == best
