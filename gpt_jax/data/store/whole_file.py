"""A file that appears when it is whole, or not at all, with the hashes of what is in it."""

import hashlib
import os
import pathlib
import zlib

from gpt_jax.data import store


class WholeFile:
  """A file that has its name only when it is whole.

  Attributes:
    path: Its name.
    checksums: CRC-32 of each `store.CHECKSUM_BYTES` that were written.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.checksums: list[int] = []
    self._part = path.with_name(f'.{path.name}.{os.getpid()}')
    self._digest = hashlib.sha256()
    self._checksum = self._unsealed = 0

  @property
  def sha256(self) -> str:
    """Of what was written, in hexadecimal."""
    return self._digest.hexdigest()

  def append(self, data: bytes) -> None:
    """Writes `data` behind what is there; raises `OSError`."""
    self._file.write(data)
    self._digest.update(data)
    rest = memoryview(data)
    while rest:
      part = rest[: store.CHECKSUM_BYTES - self._unsealed]
      self._checksum = zlib.crc32(part, self._checksum)
      self._unsealed += len(part)
      if self._unsealed == store.CHECKSUM_BYTES:
        self._seal()
      rest = rest[len(part) :]

  def _seal(self) -> None:
    """Ends a stretch that has a checksum of its own."""
    if self._unsealed:
      self.checksums.append(self._checksum)
    self._checksum = self._unsealed = 0

  def __enter__(self) -> 'WholeFile':
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self._part.open('wb')
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      with self._file:
        if kind is None:
          self._seal()
          self._file.flush()
          os.fsync(self._file.fileno())
      if kind is None:
        self._part.replace(self.path)
    finally:
      self._part.unlink(missing_ok=True)
