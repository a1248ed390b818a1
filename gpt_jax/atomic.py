"""Writes files atomically and syncs them: how every file of gpt_jax is written."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a temporary file that replaces `path` when the `with` block ends without an error.

  The folder must exist. Raises `OSError` if it can't be written.
  """
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
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
