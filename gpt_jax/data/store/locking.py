"""One process at a time, among those that would write the same store."""

import contextlib
import fcntl
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

_LOCK_SECONDS = 0.2


@contextlib.contextmanager
def locked(folder: pathlib.Path, check: Callable[[], None] | None) -> Iterator[None]:
  """A context that one process at a time is in, and that a process that dies leaves.

  Two at once would only do the work twice: what they write is the same, and appears whole.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    told = False
    with contextlib.suppress(OSError):  # some network file systems can't
      while not _try_lock(descriptor):
        if not told:
          print('another process is encoding this text; waiting for it', file=sys.stderr)
        told = True
        if check:
          check()
        time.sleep(_LOCK_SECONDS)
    yield
  finally:
    os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True
