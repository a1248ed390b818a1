"""Writes files and folders atomically, and syncs files: how every file of gpt_jax is written."""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

_PART = '.part'  # how the name of a temporary file ends
_STALE_SECONDS = 3600  # without a change in a hidden folder


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Gives an `OSError` of the `with` block the name of the file: those of `write` have none."""
  try:
    yield
  except OSError as e:
    if e.filename is None or str(e.filename).endswith(_PART):
      e.filename = str(path)
    raise


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a temporary file that replaces `path` when the `with` block ends without an error.

  The folder must exist. Raises `OSError`, with a name, if it can't be written. What is no file, as
  /dev/stdout, is written itself.
  """
  if path.exists() and not path.is_file():
    with naming(path), path.open('wb') as file:
      yield file
    return
  part = path.with_name(f'.{path.name}.{os.getpid()}{_PART}')
  try:
    with naming(path), part.open('wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Writes `data` to `path` atomically."""
  with open_file(path) as file:
    file.write(data)


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes `values` to `path` atomically, as indented JSON in UTF-8."""
  write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False) + '\n').encode())


@contextlib.contextmanager
def new_folder(place: pathlib.Path) -> Iterator[pathlib.Path]:
  """Creates a hidden folder, to be renamed to `place` once it is complete.

  It is removed at the end of the `with` block unless it was renamed, and so are stale ones.
  """
  for other in place.parent.glob(f'.{place.name}.*'):
    with contextlib.suppress(OSError):  # it is gone
      newest = max(path.stat().st_mtime for path in (other, *other.iterdir()))
      if newest < time.time() - _STALE_SECONDS:
        shutil.rmtree(other)
  folder = place.with_name(f'.{place.name}.{secrets.token_hex(4)}')
  folder.mkdir(parents=True)
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)
