"""TensorBoard's event files, with scalars only, written without TensorFlow or PyTorch.

A record is a length and an `Event` (tensorflow/core/util/event.proto, a protocol buffer), each with
its checksum (tensorflow/core/lib/io/record_writer.h).
"""

import pathlib
import socket
import struct
import time
from collections.abc import Mapping

from gpt_jax import atomic


class EventFile:
  """A new event file."""

  def __init__(self, folder: pathlib.Path, *, purge_step: int) -> None:
    """Creates a file in `folder`; earlier files count up to the step before `purge_step` only."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}'
    self._path = folder / name
    self._write(0, _field(3, b'brain.Event:2'))
    self._write(purge_step, _field(7, b'\x08\x01'))  # a SessionLog of status START

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends scalars by name."""
    summary = b''
    for name, value in values.items():
      summary += _field(1, _field(1, name.encode()) + b'\x15' + struct.pack('<f', value))
    self._write(step, _field(5, summary))

  def _write(self, step: int, content: bytes) -> None:
    event = b'\x09' + struct.pack('<d', time.time()) + b'\x10' + _varint(step) + content
    parts = [struct.pack('<Q', len(event)), event]
    with atomic.naming(self._path), self._path.open('ab') as file:
      file.write(b''.join(part + struct.pack('<I', _masked_crc32c(part)) for part in parts))


def _field(number: int, content: bytes) -> bytes:
  return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
  """Seven bits per byte, the lowest first; the highest bit of a byte says that more follow."""
  low, rest = number & 0x7F, number >> 7
  return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _masked_crc32c(data: bytes) -> int:
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
