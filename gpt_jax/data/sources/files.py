"""Files that a source names: found, opened, decompressed; the only module that imports zstandard.

`.gz` and `.zst` are decompressed while they are read.
"""

import contextlib
import glob
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import zstandard

from gpt_jax import errors

_BUFFER_BYTES = 1 << 18
_ZSTD_READ_BYTES = 1 << 16  # of compressed text at once: all it gives is held


def find(kind: str, pattern: str, *, ending: str) -> list[pathlib.Path]:
  """The regular files that `pattern` names, as absolute paths, sorted.

  Args:
    kind: The scheme of the source, for messages: `text`.
    pattern: A path or a glob; `**` and `~` work.
    ending: How such files usually end, for the hint to someone who names a directory.

  Raises:
    UserError: There is no such file.
  """
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    inside = os.path.join(pattern, '**', f'*{ending}')
    raise errors.UserError(
      f'{kind}:{pattern} is a directory; to read the files in it: {kind}:{inside}'
    )
  # A file whose own name has brackets or stars is meant as it stands.
  found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
  paths = sorted(pathlib.Path(os.path.abspath(path)) for path in found if os.path.isfile(path))
  if paths:
    return paths
  if found:
    raise errors.UserError(f'{kind}:{pattern} matches no regular file, only {found[0]}')
  mixture = ' (a source begins behind " + " only with its kind and a colon)' * (' + ' in pattern)
  if glob.has_magic(pattern):
    raise errors.UserError(
      f'{kind}:{pattern} matches no file in {os.getcwd()}{mixture}; ** stands for folders at any '
      'depth, and the whole spec needs quotes where the shell would expand the stars'
    )
  raise errors.UserError(f'{kind}:{pattern}: no such file (looked from {os.getcwd()}){mixture}')


def describe(paths: list[pathlib.Path]) -> list[list[Any]]:
  """[path, bytes, time of last change in ns] of each file, for JSON; raises `UserError`."""
  described: list[list[Any]] = []
  for path in paths:
    try:
      status = path.stat()
    except OSError as e:
      raise unreadable(path, e) from e
    described.append([str(path), status.st_size, status.st_mtime_ns])
  return described


def is_compressed(path: pathlib.Path) -> bool:
  """Whether `open_binary` decompresses the file: nothing in it is found by an offset."""
  return path.suffix in ('.gz', '.zst')


@contextlib.contextmanager
def open_binary(path: pathlib.Path) -> Iterator[BinaryIO]:
  """The file opened for reading, its contents decompressed.

  Raises:
    UserError: It can't be read or is damaged, here or in a read inside the `with`.
  """
  try:
    with path.open('rb', buffering=_BUFFER_BYTES) as file:
      if path.suffix == '.gz':
        yield cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), _BUFFER_BYTES))
      elif path.suffix == '.zst':
        yield io.BufferedReader(_Zstandard(file), _BUFFER_BYTES)
      else:
        yield file
  except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as e:
    raise damaged(path, e) from e
  except OSError as e:
    raise unreadable(path, e) from e


def unreadable(path: pathlib.Path, e: OSError) -> errors.UserError:
  """The error for a file that the system doesn't let us read."""
  return errors.UserError(
    f'{path} cannot be read ({e.strerror or e}): mend that or leave it out of --config.data.source.'
  )


def damaged(path: pathlib.Path, e: Exception) -> errors.UserError:
  """The error for a file whose contents aren't what its name says."""
  return errors.UserError(
    f'{path} is damaged ({" ".join(str(e).split())}): get it again or leave it out of '
    '--config.data.source.'
  )


class _Zstandard(io.RawIOBase):
  """The text of a Zstandard file, frame after frame.

  zstandard's own reader takes a file that was cut short for a whole one; this raises `EOFError`.
  """

  def __init__(self, file: BinaryIO):
    self._file = file
    self._decompressor = zstandard.ZstdDecompressor()
    self._frame: Any = None  # the one that was begun and hasn't ended
    self._rest = b''  # compressed bytes behind the frame that ended
    self._text = io.BytesIO()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not (length := self._text.readinto(buffer)):
      compressed = self._rest or self._file.read(_ZSTD_READ_BYTES)
      if not compressed:
        if self._frame is not None:
          raise EOFError('the file ends within a frame')
        break
      self._frame = self._frame or self._decompressor.decompressobj()
      self._text = io.BytesIO(self._frame.decompress(compressed))
      self._rest = self._frame.unused_data
      if self._frame.eof:
        self._frame = None
    return length
