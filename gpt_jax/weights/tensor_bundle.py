"""TensorFlow's checkpoints (tensor bundles), read without TensorFlow; alone imports google_crc32c.

A checkpoint PREFIX is `PREFIX.index`, a table of names -> entries, and data files
`PREFIX.data-NNNNN-of-NNNNN` with the bytes of the tensors. The table has LevelDB's format: blocks
of sorted keys, an index block of where the others are, and a footer (leveldb/doc/table_format.md;
tensorflow/core/lib/io/format.cc, block.cc). Entries are protocol buffers
(tensorflow/core/protobuf/tensor_bundle.proto). Each block and each tensor has a checksum; all are
checked, and no number of the index is believed before it is compared with what is there.
"""

import dataclasses
import functools
import math
import pathlib
import struct
from collections.abc import Iterator

import google_crc32c
import numpy as np

from gpt_jax import errors
from gpt_jax.weights import protobuf, published

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48  # two block handles, padded to 40 bytes, and the magic number
_TRAILER = struct.Struct('<BI')  # behind a block: compression, masked CRC-32C
_SNAPPY = 1
_CRC_DELTA = 0xA282EAD8
_MAX_KEY_BYTES = 4096
_MAX_RANK = 254  # TensorFlow's own

_FORMAT_VERSION = 1
_FLOAT32 = 1
# Names of DataType in tensorflow/core/framework/types.proto, for messages.
_OTHER_TYPES = {2: 'float64', 3: 'int32', 7: 'string', 9: 'int64', 14: 'bfloat16', 19: 'float16'}
_READ_BYTES = 1 << 20  # at a time; a multiple of a float32


def open_tensors(prefix: pathlib.Path) -> dict[str, published.Tensor]:
  """The tensors of a checkpoint by name, none read yet.

  Args:
    prefix: The path of the checkpoint without `.index`.

  Returns:
    Tensors, whose `read_into` raises `UserError` if a data file is damaged.

  Raises:
    UserError: The checkpoint is not there, is damaged, or has tensors that aren't float32 or are
      saved in slices.
  """
  path = prefix.with_name(f'{prefix.name}.index')
  try:
    header, *entries = _table(path.read_bytes())
    num_shards = _num_shards(*header)
    tensors = {}
    for key, value in entries:
      name, entry = key.decode(), _entry(value)
      if entry.shard >= num_shards:
        raise ValueError(f'{name} is in data file {entry.shard} of {num_shards}')
      data = prefix.with_name(f'{prefix.name}.data-{entry.shard:05d}-of-{num_shards:05d}')
      tensors[name] = _open(path, data, name, entry)
  except OSError as e:
    raise errors.UserError(f'{path} cannot be read: {e.strerror}.') from e
  except ValueError as e:
    raise errors.UserError(
      f'{path} is not a checkpoint that can be read: {e}. If it is damaged, get it again.'
    ) from e
  return tensors


@dataclasses.dataclass(frozen=True)
class _Entry:
  """BundleEntryProto: where a tensor is; `size` in bytes."""

  dtype: int
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  crc: int
  sliced: bool


def _open(index: pathlib.Path, data: pathlib.Path, name: str, entry: _Entry) -> published.Tensor:
  if entry.sliced:
    raise errors.UserError(
      f'{index}: {name} is saved in slices, which cannot be read: save it whole, without a '
      'partitioner.'
    )
  if entry.dtype != _FLOAT32:
    kind = _OTHER_TYPES.get(entry.dtype, f'number {entry.dtype}')
    raise errors.UserError(f'{index}: {name} has type {kind}, only float32 can be read.')
  if len(entry.shape) > _MAX_RANK or 4 * math.prod(entry.shape) != entry.size:
    raise ValueError(f'the shape of {name} does not fit its size, {entry.size} bytes')
  try:
    size = data.stat().st_size
  except OSError as e:
    raise errors.UserError(f'{data} cannot be read: {e.strerror}. {index} names it.') from e
  if entry.offset + entry.size > size:
    raise errors.UserError(
      f'{data} has {size:,} bytes, and by {index} {name} ends at {entry.offset + entry.size:,}: '
      'get both again.'
    )
  return published.Tensor(entry.shape, functools.partial(_read_into, data, name, entry))


def _read_into(path: pathlib.Path, name: str, entry: _Entry, out: np.ndarray) -> None:
  """Reads a tensor into a contiguous array of its shape and any float type."""
  flat, crc, at = out.reshape(-1), 0, 0
  try:
    with path.open('rb') as file:
      file.seek(entry.offset)
      while at < flat.size:
        part = file.read(min(_READ_BYTES, entry.size - 4 * at))
        if not part or len(part) % 4:
          raise errors.UserError(f'{path} ends within {name}: get it again.')
        crc = google_crc32c.extend(crc, part)
        flat[at : at + len(part) // 4] = np.frombuffer(part, '<f4')
        at += len(part) // 4
  except OSError as e:
    raise errors.UserError(f'{path} cannot be read: {e.strerror}.') from e
  if _masked(crc) != entry.crc:
    raise errors.UserError(f'{path} is damaged: {name} does not have its checksum. Get it again.')


def _masked(crc: int) -> int:
  """A CRC-32C as it is stored (leveldb/util/crc32c.h): rotated, and a constant added."""
  return ((crc >> 15 | crc << 17) + _CRC_DELTA) & 0xFFFFFFFF


# The table.


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values of a table, in order; raises `ValueError`."""
  if len(data) < _FOOTER_BYTES or int.from_bytes(data[-8:], 'little') != _MAGIC:
    raise ValueError('it does not end as the index of a TensorFlow checkpoint does')
  body, footer = data[:-_FOOTER_BYTES], data[-_FOOTER_BYTES:-8]
  meta, at = _handle(footer, 0)
  index, at = _handle(footer, at)
  if any(footer[at:]):
    raise ValueError('its footer is not padded with zeros')
  _block(body, *meta)  # TensorFlow leaves it empty; only its checksum is of interest
  last = None
  for _, value in _pairs(_block(body, *index)):
    handle, _ = _handle(value, 0)
    for key, content in _pairs(_block(body, *handle)):
      if last is not None and key <= last:
        raise ValueError(f'its keys are not in order at {key!r}')
      last = key
      yield key, content
  if last is None:
    raise ValueError('it is empty')


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
  """Offset and size of a block, and where what follows them begins."""
  offset, at = protobuf.varint(data, at)
  size, at = protobuf.varint(data, at)
  return (offset, size), at


def _block(body: bytes, offset: int, size: int) -> bytes:
  """The content of a block whose checksum is right."""
  end = offset + size
  if end + _TRAILER.size > len(body):
    raise ValueError(f'it has no block of {size} bytes at {offset}')
  compression, crc = _TRAILER.unpack_from(body, end)
  if _masked(google_crc32c.value(body[offset : end + 1])) != crc:
    raise ValueError(f'the block at {offset} does not have its checksum')
  if compression:
    kind = 'Snappy' if compression == _SNAPPY else f'method {compression}'
    raise ValueError(f'the block at {offset} is compressed ({kind}), which cannot be read')
  return body[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Keys and values of a block; a key tells how much of the key before it begins with."""
  restarts = int.from_bytes(
    block[-4:], 'little'
  )  # places to start a search at, before their number
  end = len(block) - 4 * (restarts + 1)
  if end < 0:
    raise ValueError('a block is shorter than its list of restarts')
  key, at = b'', 0
  while at < end:
    shared, at = protobuf.varint(block, at)
    unshared, at = protobuf.varint(block, at)
    value_size, at = protobuf.varint(block, at)
    value_at = at + unshared
    if shared > len(key) or shared + unshared > _MAX_KEY_BYTES or value_at + value_size > end:
      raise ValueError('an entry is longer than its block')
    key = key[:shared] + block[at:value_at]
    at = value_at + value_size
    yield key, block[value_at:at]


# The entries.


def _num_shards(key: bytes, value: bytes) -> int:
  """Number of data files, from BundleHeaderProto."""
  if key:
    raise ValueError(f'it begins with {key!r}, not with its header')
  header = protobuf.Message(value)
  if header.number(2):
    raise ValueError('its tensors are big-endian, which cannot be read')
  min_consumer = header.message(3).number(2)
  if min_consumer > _FORMAT_VERSION:
    raise ValueError(f'it has format {min_consumer}, only {_FORMAT_VERSION} can be read')
  return header.number(1)


def _entry(value: bytes) -> _Entry:
  entry = protobuf.Message(value)
  shape = entry.message(2)
  if shape.number(3):
    raise ValueError('a tensor has no rank')
  return _Entry(
    dtype=entry.number(1),
    shape=tuple(dim.number(1) for dim in shape.messages(2)),
    shard=entry.number(3),
    offset=entry.number(4),
    size=entry.number(5),
    crc=entry.fixed32(6),
    sliced=bool(entry.messages(7)),
  )
