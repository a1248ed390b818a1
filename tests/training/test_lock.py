"""Two trainings never share a folder, and a lock ends with its holder."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import pytest

from gpt_jax import errors
from gpt_jax.parallel import processes
from gpt_jax.training import lock
from tests import raised

_HOLDER = """
import pathlib, sys, time
from gpt_jax.training import lock
with lock.locked(pathlib.Path(sys.argv[1])):
  print('locked', flush=True)
  time.sleep(600)
"""


def _enter(folder):
  with lock.locked(folder):
    pass


@pytest.fixture
def holder(tmp_path):
  """Another process that has the lock of the folder `run`."""
  command = [sys.executable, '-c', _HOLDER, tmp_path / 'run']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout and process.stdout.readline() == 'locked\n'
    yield process
    process.kill()


def test_the_second_is_refused_and_told_who_is_there_until_that_is_killed(tmp_path, holder):
  for _ in range(2):
    error = raised.user_error(_enter, tmp_path / 'run')
    assert error.key == 'workdir'
    for part in (
      str(tmp_path / 'run'),
      f'process {holder.pid} on {os.uname().nodename}',
      'since 20',
    ):
      assert part in error.problem
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  _enter(tmp_path / 'run')


def test_a_folder_that_stays_empty_is_removed_with_those_above_it(tmp_path):
  (tmp_path / 'kept').mkdir()
  with lock.locked(tmp_path / 'kept' / 'a' / 'b'):
    assert (tmp_path / 'kept' / 'a' / 'b').is_dir()
  assert list(tmp_path.rglob('*')) == [tmp_path / 'kept']
  with pytest.raises(errors.UserError, match='x'), lock.locked(tmp_path / 'new'):
    raise errors.UserError('x', 'y')
  assert list(tmp_path.rglob('*')) == [tmp_path / 'kept']


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
  read_only = mock.Mock(side_effect=OSError(errno.EROFS, 'Read-only file system'))
  monkeypatch.setattr(pathlib.Path, 'unlink', read_only)
  with pytest.raises(errors.UserError, match='x'), lock.locked(tmp_path):
    raise errors.UserError('x', 'y')


def test_a_folder_with_something_in_it_stays(tmp_path):
  with lock.locked(tmp_path / 'run'):
    (tmp_path / 'run' / 'file').write_text('mine')
  assert (tmp_path / 'run' / 'file').read_text() == 'mine'
  _enter(tmp_path / 'run')


@pytest.mark.parametrize('name', ['file', 'file/run', 'file/a/run', 'x' * 300])
def test_a_path_that_cannot_be_a_folder_is_an_error(tmp_path, name):
  (tmp_path / 'file').write_text('mine')
  error = raised.user_error(_enter, tmp_path / name)
  assert error.key == 'workdir' and name in str(error)
  assert (tmp_path / 'file').read_text() == 'mine'


def test_what_a_killed_holder_left_is_not_taken_for_the_next_one(tmp_path):
  (tmp_path / '.lock').write_text('process 1 on a machine with a long name' * 9)
  with lock.locked(tmp_path):
    assert 'long name' not in raised.user_error(_enter, tmp_path).problem


def test_a_file_that_was_removed_before_it_was_locked_locks_nothing(tmp_path, monkeypatch):
  flock, removed = fcntl.flock, list[bool]()

  def late(file, operation):
    if not removed:  # the holder before has just ended
      removed.append(True)
      (tmp_path / '.lock').unlink()
    flock(file, operation)

  monkeypatch.setattr(fcntl, 'flock', late)
  with lock.locked(tmp_path):
    assert raised.user_error(_enter, tmp_path).key == 'workdir'


def test_the_other_processes_of_a_training_are_let_in(tmp_path, monkeypatch):
  with lock.locked(tmp_path):
    monkeypatch.setattr(processes, 'is_primary', lambda: False)
    _enter(tmp_path)
    assert (tmp_path / '.lock').exists()
