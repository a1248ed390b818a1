"""Reads files that people may have edited or damaged."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from gpt_jax import errors

_T = TypeVar('_T')
_MOST_BYTES = 1 << 28  # what comes from /dev/zero would fill the memory


def read_bytes(path: pathlib.Path) -> bytes:
  """Returns the contents of a file; raises `UserError` if it can't be read, or is too large."""
  try:
    with path.open('rb') as file:
      return read_all(file, str(path))
  except OSError as e:
    fix = 'check its path and its rights'
    raise errors.UserError(str(path), f'cannot be read ({e.strerror})', fix) from e


def read_all(file: BinaryIO, name: str) -> bytes:
  """Returns what an open file holds; raises `UserError` if it is too much or endless."""
  data = file.read(_MOST_BYTES + 1)
  if len(data) > _MOST_BYTES:
    raise errors.UserError(name, f'has more than {_MOST_BYTES >> 20} MB', 'split it')
  return data


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file; raises `UserError` unless it holds one, in UTF-8."""
  data = read_bytes(path)
  try:
    values = json.loads(data.decode())
    if b'\\ud' in data.lower():
      json.dumps(values, ensure_ascii=False).encode()  # raises for a half of a character
  except (ValueError, RecursionError) as e:
    raise errors.UserError(str(path), f'is damaged ({e})', 'restore it or get it again') from e
  if not isinstance(values, dict):
    raise errors.UserError(
      str(path), 'is damaged: must be a JSON object', 'restore it or get it again'
    )
  return values


def read_as(path: pathlib.Path, make: Callable[[dict[str, Any]], _T]) -> _T:
  """Returns what `make` does of the object in a JSON file; its user errors are raised at `path`."""
  values = read(path)
  try:
    return make(values)
  except errors.UserError as e:
    raise e.at(str(path)) from e
