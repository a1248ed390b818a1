"""Files that a source names: found, opened, decompressed; the only module that reads Zstandard.

`.gz` and `.zst` are decompressed while they are read.
"""

import contextlib
import glob
import gzip
import importlib
import io
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from gpt_jax import errors

COMPRESSED = ('.gz', '.zst')
MOST_HELD = 1 << 26  # bytes of one text of a compressed file, which can be small and hold very much
_BUFFER_BYTES = 1 << 18


def find(kind: str, pattern: str) -> list[pathlib.Path]:
  """Returns the regular files that `pattern` names, as absolute paths, sorted.

  `pattern` is a path or a glob; `**` and `~` work. Raises `UserError` if there is no such file;
  `kind`, the scheme of the source, is for the message.
  """
  pattern = os.path.expanduser(pattern)
  # A file whose own name has brackets or stars is meant as it stands.
  found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
  paths = sorted(pathlib.Path(os.path.abspath(path)) for path in found if os.path.isfile(path))
  if not paths:
    fix = f'for all files in it: {kind}:{pattern}/**/*.*' if os.path.isdir(pattern) else ''
    if f'{kind}:' in pattern:
      fix = 'several sources are joined by " + ", with spaces'
    elif '://' in pattern:
      fix = 'download it, and name the file'
    problem = f'{kind}:{pattern} names no file, looked for from {os.getcwd()}'
    raise errors.UserError('data.source', problem, fix)
  return paths


def describe(paths: list[pathlib.Path]) -> list[list[Any]]:
  """Returns [path, bytes, time of last change in ns] of each file, for JSON; raises `UserError`."""
  try:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
  except OSError as e:
    raise unreadable(e.filename, e) from e


@contextlib.contextmanager
def open_binary(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens the file for reading, its contents decompressed.

  Raises `UserError` if it can't be read or is damaged, here or in a read inside the `with`.
  """
  damage: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
  opened: Any
  try:
    if path.suffix == '.gz':
      opened = io.BufferedReader(cast(Any, gzip.GzipFile(path)), _BUFFER_BYTES)
    elif path.suffix == '.zst':
      zstd = _zstandard(path)
      damage += (zstd.ZstdError,)
      opened = io.BufferedReader(zstd.ZstdFile(path), _BUFFER_BYTES)
    else:
      opened = path.open('rb', buffering=_BUFFER_BYTES)
    with opened as file:
      yield file
  except damage as e:
    raise damaged(path, e) from e
  except OSError as e:
    raise unreadable(path, e) from e


def _zstandard(path: pathlib.Path) -> Any:
  """Python's own module (3.14), or the package that has the same for older versions."""
  for name in ('compression.zstd', 'backports.zstd'):
    with contextlib.suppress(ImportError):
      return importlib.import_module(name)
  raise errors.UserError(str(path), 'needs backports.zstd', "pip install 'gpt_jax[zstd]'")


def unreadable(path: pathlib.Path, e: OSError) -> errors.UserError:
  """Returns the error for a file that the system can't read."""
  fix = 'check its path and its rights'
  return errors.UserError(str(path), f'cannot be read ({e.strerror or e})', fix)


def damaged(path: pathlib.Path, e: Exception) -> errors.UserError:
  """Returns the error for a file whose contents aren't what its name says."""
  return errors.UserError(str(path), f'is damaged ({one_line(e)})', 'get it again')


def one_line(e: Exception) -> str:
  """Returns the message of `e`, which may be many lines long, in one."""
  return ' '.join(str(e).split())
