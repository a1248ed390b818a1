"""Keeps two trainings out of one folder."""

import contextlib
import datetime
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import IO

from gpt_jax import errors
from gpt_jax.parallel import processes

_NAME = '.lock'


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other trainings out of `folder` until the `with` block or this process ends.

  Makes the folder if it is missing, and removes it if nothing has come into it. Of several
  processes, only the first does it. Raises `UserError` if the folder can't be written, or is in
  use.
  """
  if not processes.is_primary():
    yield
    return
  new: list[pathlib.Path] = []
  try:
    new = [path for path in (folder, *folder.parents) if not _exists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    file = _lock(folder)
  except OSError as e:
    problem = f'{folder} cannot be written ({e.strerror})'
    raise errors.UserError('workdir', problem, 'choose another') from e
  with file:
    try:
      yield
    finally:
      # Something has come into it, or it is read-only by now, which the run says itself.
      with contextlib.suppress(OSError):
        (folder / _NAME).unlink(missing_ok=True)
        for path in new:
          path.rmdir()


def _lock(folder: pathlib.Path) -> IO[str]:
  """Returns a locked file that says who has it; the kernel frees it, however the process ends.

  Windows has no such lock: there it keeps nobody out.
  """
  path = folder / _NAME
  while True:
    file = path.open('a+', encoding='utf-8')
    try:
      if sys.platform != 'win32':
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      problem = f'{folder} is in use by {file.read() or "another training"}'
      raise errors.UserError('workdir', problem, 'wait, stop that one, or choose another') from e
    if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
      break
    file.close()  # the one before has just removed it
  now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
  file.truncate(0)
  file.write(f'process {os.getpid()} on {socket.gethostname()}, since {now}')
  file.flush()
  return file


def _exists(path: pathlib.Path) -> bool:
  try:
    path.lstat()
  except FileNotFoundError:
    return False
  return True  # any other OSError is raised: a name is too long, or a file is in the way
