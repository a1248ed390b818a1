"""A file appears whole or not at all."""

import errno
import json
import os

import pytest

from gpt_jax import atomic


def test_a_file_is_replaced_when_it_is_whole_and_synced(tmp_path, monkeypatch):
  path, synced = tmp_path / 'a.json', []
  monkeypatch.setattr(os, 'fsync', lambda number: synced.append(os.fstat(number).st_size))
  atomic.write_json(path, {'old': 1})
  with atomic.open_file(path) as file:
    file.write(b'{"new": ')
    assert json.loads(path.read_text()) == {'old': 1}
    file.write('"é"}'.encode())
  assert json.loads(path.read_text()) == {'new': 'é'}
  assert list(tmp_path.iterdir()) == [path] and synced[-1] == path.stat().st_size


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.bin'
  atomic.write_bytes(path, b'old')
  with pytest.raises(ZeroDivisionError), atomic.open_file(path) as file:
    file.write(b'half of the n')
    raise ZeroDivisionError
  assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_written_and_stays_what_it_is(tmp_path):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), 'rb') as reader:
    atomic.write_bytes(pipe, b'new')
    assert reader.read() == b'new' and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_an_error_names_the_file(tmp_path):
  with pytest.raises(OSError, match='No space') as e, atomic.open_file(tmp_path / 'a.bin'):
    raise OSError(errno.ENOSPC, 'No space left on device')
  assert e.value.filename == str(tmp_path / 'a.bin')
  with pytest.raises(FileNotFoundError) as e:
    atomic.write_bytes(tmp_path / 'none' / 'a.bin', b'')
  assert e.value.filename == str(tmp_path / 'none' / 'a.bin')
