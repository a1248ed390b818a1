"""Reads TensorFlow's checkpoints (tensor bundles) without TensorFlow.

A checkpoint PREFIX is `PREFIX.index`, a table of names -> entries, and data files
`PREFIX.data-NNNNN-of-NNNNN` with the bytes of the tensors. The table has LevelDB's format: blocks
of sorted keys, an index block of where the others are, and a footer (leveldb/doc/table_format.md).
Entries are protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto). All checksums and sizes
are checked. The only module that imports google_crc32c.
"""

import math
import pathlib
from collections.abc import Iterator

import google_crc32c
import numpy as np

from gpt_jax import errors
from gpt_jax.weights import tensors as tensors_lib

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, 'little')
_FOOTER_BYTES = 48  # two block handles, padding and the magic number
_TRAILER_BYTES = 5  # after a block: compression, masked CRC-32C
_FLOAT32 = 1  # in tensorflow/core/framework/types.proto
# Wire types of protocol buffers.
_VARINT, _LEN = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}

_Message = dict[int, list[int | bytes]]


def open_tensors(index: pathlib.Path) -> dict[str, tensors_lib.Tensor]:
  """Returns the tensors of a checkpoint by name, not read yet, from its `.index` file.

  Raises `UserError` if a file is missing or damaged, or a tensor isn't float32 or is in slices.
  """
  try:
    header, *entries = _table(index.read_bytes())
    num_files = _number(_message(header[1]), 1)
    return {key.decode(): _tensor(index, num_files, key.decode(), v) for key, v in entries}
  except OSError as e:
    raise errors.UserError(str(e.filename), f'cannot be read ({e.strerror})') from e
  except ValueError as e:
    raise errors.UserError(str(index), f'is damaged or cannot be read: {e}', 'get it again') from e


def _tensor(index: pathlib.Path, num_files: int, name: str, data: bytes) -> tensors_lib.Tensor:
  """The tensor of a BundleEntryProto."""
  entry = _message(data)
  dtype, file, offset, size, crc = (_number(entry, field) for field in (1, 3, 4, 5, 6))
  if _chunks(entry, 7) or dtype != _FLOAT32:
    raise ValueError(f'{name} is not float32, or saved in slices')
  dims = [dim for shape in _chunks(entry, 2) for dim in _chunks(_message(shape), 2)]
  shape = tuple(_number(_message(dim), 1) for dim in dims)
  if 4 * math.prod(shape) != size or file >= num_files:
    raise ValueError(f'{name} has another size, or is in no file')
  path = index.with_suffix(f'.data-{file:05d}-of-{num_files:05d}')
  if offset + size > path.stat().st_size:
    raise errors.UserError(str(path), f'is damaged: ends before {name}', 'get it again')

  def read() -> np.ndarray:
    try:
      values = np.fromfile(path, '<f4', size // 4, offset=offset)
    except OSError as e:
      raise errors.UserError(str(path), f'cannot be read ({e.strerror})') from e
    if _masked_crc(values.tobytes()) != crc:
      raise errors.UserError(str(path), f'is damaged: {name} has another checksum', 'get it again')
    return values.reshape(shape)

  return tensors_lib.Tensor(shape, read)


def _masked_crc(data: bytes) -> int:
  """CRC-32C as it is stored (leveldb/util/crc32c.h): rotated, and a constant added."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(data: bytes) -> list[tuple[bytes, bytes]]:
  """The keys and values of a table, the header (whose key is empty) first; raises `ValueError`."""
  body, footer = data[:-_FOOTER_BYTES], data[-_FOOTER_BYTES:]
  if len(footer) < _FOOTER_BYTES or not footer.endswith(_MAGIC):
    raise ValueError('it does not end like the index of a checkpoint')
  _, _, offset, size, _ = _varints(footer, 0, 4)  # the first block is empty
  pairs = [
    pair
    for _, handle in _pairs(_block(body, offset, size))
    for pair in _pairs(_block(body, *_varints(handle, 0, 2)[:2]))
  ]
  if not pairs or pairs[0][0]:
    raise ValueError('it has no header')
  return pairs


def _block(body: bytes, offset: int, size: int) -> bytes:
  """The content of a block whose checksum is right."""
  end = offset + size
  crc = int.from_bytes(body[end + 1 : end + _TRAILER_BYTES], 'little')
  if end + _TRAILER_BYTES > len(body) or _masked_crc(body[offset : end + 1]) != crc or body[end]:
    raise ValueError(f'the block at {offset} is cut off, changed or compressed')
  return body[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields keys and values of a block; a key says how many bytes it shares with the one before."""
  # Places to start a search at, and their number.
  end = len(block) - 4 * (int.from_bytes(block[-4:], 'little') + 1)
  key, at = b'', 0
  while at < end:
    shared, unshared, size, at = _varints(block, at, 3)
    key, at = key[:shared] + block[at : at + unshared], at + unshared
    yield key, block[at : at + size]
    at += size


def _message(data: bytes) -> _Message:
  """The values of a protocol buffer by the numbers of their fields; raises `ValueError`."""
  found: _Message = {}
  at = 0
  while at < len(data):
    tag, at = _varints(data, at, 1)
    wire = tag & 7
    value: int | bytes
    if wire == _VARINT:
      value, at = _varints(data, at, 1)
    else:
      size, at = _varints(data, at, 1) if wire == _LEN else (_FIXED_BYTES.get(wire, len(data)), at)
      if at + size > len(data):
        raise ValueError('a field is cut off or has an unknown type')
      chunk = data[at : at + size]
      value = chunk if wire == _LEN else int.from_bytes(chunk, 'little')
      at += size
    found.setdefault(tag >> 3, []).append(value)
  return found


def _number(message: _Message, field: int) -> int:
  """The last number in a field; 0 if there is none. Negative ones are their complement to 2⁶⁴."""
  return next((v for v in reversed(message.get(field, [])) if isinstance(v, int)), 0)


def _chunks(message: _Message, field: int) -> list[bytes]:
  return [value for value in message.get(field, []) if isinstance(value, bytes)]


def _varints(data: bytes, at: int, count: int) -> list[int]:
  """Numbers in groups of 7 bits, the lowest first, and where what follows them begins."""
  numbers: list[int] = []
  start = at
  while len(numbers) < count:
    if at >= len(data) or at - start >= 10:
      raise ValueError('a number does not end')
    at += 1
    if data[at - 1] < 0x80:
      numbers.append(sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data[start:at])))
      start = at
  return [*numbers, at]
