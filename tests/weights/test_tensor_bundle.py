"""A checkpoint of TensorFlow gives the tensors that were saved, or says what is wrong with it."""

import math
import pathlib
import shutil
import struct

import google_crc32c
import ml_dtypes
import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.weights import tensor_bundle

_FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'openai_tiny'
_INDEX, _DATA = 'model.ckpt.index', 'model.ckpt.data-00000-of-00001'
_MAGIC = bytes.fromhex('57fb808b247547db')


@pytest.fixture(scope='module')
def saved():
  """What TensorFlow was given to save in the fixture."""
  with np.load(_FIXTURE / 'expected.npz') as file:
    return {name: file[name] for name in file.files if name.startswith('model/')}


@pytest.fixture
def directory(tmp_path):
  for name in (_INDEX, _DATA):
    shutil.copy(_FIXTURE / name, tmp_path)
  return tmp_path


def _read(directory, dtype=np.float32):
  arrays = {}
  for name, tensor in tensor_bundle.open_tensors(directory / 'model.ckpt').items():
    arrays[name] = np.full(tensor.shape, np.nan, dtype)
    tensor.read_into(arrays[name])
  return arrays


def _same(a, b):
  return a.keys() == b.keys() and all(
    a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a
  )


# An index of one's own, right or lying.


def _varint(number):
  groups = []
  while number >= 0x80:
    groups.append(number & 0x7F | 0x80)
    number >>= 7
  return bytes([*groups, number])


def _field(number, value):
  if isinstance(value, bytes):
    return _varint(number << 3 | 2) + _varint(len(value)) + value
  return _varint(number << 3) + _varint(value)


def _crc(data):
  crc = google_crc32c.value(data)
  return struct.pack('<I', ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _sealed(content, compression=0):
  return content + bytes([compression]) + _crc(content + bytes([compression]))


def _block(pairs, restarts=1):
  content, last = b'', b''
  for key, value in pairs:
    shared = next((i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), None)
    shared = min(len(key), len(last)) if shared is None else shared
    content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
    content += key[shared:] + value
    last = key
  return content + bytes(4) * (restarts if restarts < 100 else 1) + struct.pack('<I', restarts)


def _table(*blocks, compression=0):
  """A file of these blocks' contents, and the blocks that LevelDB puts behind them."""
  data, handles = b'', []
  for content in [*blocks, _block([])]:
    handles.append(_varint(len(data)) + _varint(len(content)))
    data += _sealed(content, compression)
  index = _block([(bytes([i]), handle) for i, handle in enumerate(handles[:-1])])
  footer = handles[-1] + _varint(len(data)) + _varint(len(index))
  return data + _sealed(index) + footer.ljust(40, b'\0') + _MAGIC


def _header(num_shards=1, endianness=0, min_consumer=0):
  version = _field(1, 1) + _field(2, min_consumer)
  return (b'', _field(1, num_shards) + _field(2, endianness) + _field(3, version))


def _entry(array, offset=0, **lies):
  values = {'dtype': 1, 'dims': array.shape, 'shard': 0, 'size': array.nbytes, 'more': b''} | lies
  shape = values.get('shape', b''.join(_field(2, _field(1, dim)) for dim in values['dims']))
  return (
    _field(1, values['dtype'])
    + _field(2, shape)
    + _field(3, values['shard'])
    + _field(4, offset)
    + _field(5, values['size'])
    + _varint(6 << 3 | 5)
    + _crc(array.tobytes())
    + values['more']
  )


_ARRAY = np.arange(6, dtype='<f4').reshape(2, 3)


def _write(directory, index, *data):
  (directory / _INDEX).write_bytes(index)
  for i, content in enumerate(data or [_ARRAY.tobytes()]):
    path = directory / f'model.ckpt.data-{i:05d}-of-{max(len(data), 1):05d}'
    path.write_bytes(content)


# What is right.


def test_gives_what_tensorflow_saved(saved):
  assert _same(_read(_FIXTURE), saved)


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
def test_reads_into_other_float_types(saved, dtype):
  assert _same(_read(_FIXTURE, dtype), {name: a.astype(dtype) for name, a in saved.items()})


def test_reads_into_a_part_of_an_array_and_nothing_beside_it(saved):
  tensor = tensor_bundle.open_tensors(_FIXTURE / 'model.ckpt')['model/wte']
  whole = np.full((3, 310, 8), -1, np.float32)
  tensor.read_into(whole[1, :300])
  assert np.array_equal(whole[1, :300], saved['model/wte'])
  assert np.all(whole[[0, 2]] == -1) and np.all(whole[1, 300:] == -1)


def test_reads_tensors_of_several_megabytes(tmp_path):
  array = np.random.default_rng(0).random(700_001, np.float32)
  _write(tmp_path, _table(_block([_header(), (b'x', _entry(array, 4))])), b'\1' * 4 + bytes(array))
  assert _same(_read(tmp_path), {'x': array})


def test_reads_several_blocks_and_data_files(tmp_path):
  a, b = _ARRAY, np.float32(7) + _ARRAY[:, :1]
  blocks = [
    _block([_header(num_shards=2), (b'model/aa', _entry(a))], restarts=3),
    _block([(b'model/ab', _entry(b, 8, shard=1)), (b'model/abc', _entry(a))]),
    _block([(b'scalar', _entry(a[0, 0])), ('ключ'.encode(), _entry(a[:0]))]),
  ]
  _write(tmp_path, _table(*blocks), a.tobytes(), bytes(8) + b.tobytes())
  wanted = {'model/aa': a, 'model/ab': b, 'model/abc': a, 'scalar': a[0, 0], 'ключ': a[:0]}
  assert _same(_read(tmp_path), wanted)


def test_skips_fields_it_does_not_know(tmp_path):
  more = _field(9, 1 << 63) + _field(100, b'text') + _varint(10 << 3 | 1) + b'\xff' * 8
  more += _varint(4 << 3 | 5) + b'\xff' * 4  # a known number of another wire type
  _write(tmp_path, _table(_block([_header(), (b'x', _entry(_ARRAY, more=more))])))
  assert _same(_read(tmp_path), {'x': _ARRAY})


def test_takes_the_last_of_several_values_as_protocol_buffers_do(tmp_path):
  value = _entry(_ARRAY, offset=1 << 40, more=_field(4, 0))
  _write(tmp_path, _table(_block([_header(), (b'x', value)])))
  assert _same(_read(tmp_path), {'x': _ARRAY})


# What is damaged.


def _flip(rng, data, other):
  at = rng.integers(len(data))
  return data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]


def _cut(rng, data, other):
  return data[: rng.integers(len(data))]


def _cut_out(rng, data, other):
  start, end = sorted(rng.integers(len(data) + 1, size=2))
  return data[:start] + data[end:]


def _grow(rng, data, other):
  at = rng.integers(len(data) + 1)
  return data[:at] + rng.bytes(rng.integers(1, 100)) + data[at:]


def _zero(rng, data, other):
  start, end = sorted(rng.integers(len(data) + 1, size=2))
  return data[:start] + bytes(end - start) + data[end:]


def _exchange(rng, data, other):
  a, b, c = sorted(rng.integers(len(data) + 1, size=3))
  return data[:a] + data[b:c] + data[a:b] + data[c:]


def _mix(rng, data, other):
  at = rng.integers(len(data))
  return data[:at] + other[at:]


@pytest.mark.parametrize('name', [_INDEX, _DATA])
@pytest.mark.parametrize('damage', [_flip, _cut, _cut_out, _grow, _zero, _exchange, _mix])
def test_damage_is_told_or_changes_nothing(directory, saved, name, damage):
  files = {file: (directory / file).read_bytes() for file in (_INDEX, _DATA)}
  other = files[_DATA if name == _INDEX else _INDEX]
  for seed in range(40):
    (directory / name).write_bytes(damage(np.random.default_rng(seed), files[name], other))
    try:
      found = _read(directory)
    except errors.UserError as e:
      assert str(directory / name) in str(e)
    else:
      assert _same(found, saved), seed


def test_every_flipped_bit_of_the_index_is_told(directory):
  data = (directory / _INDEX).read_bytes()
  for at in range(len(data)):
    (directory / _INDEX).write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
    with pytest.raises(errors.UserError, match=_INDEX):
      tensor_bundle.open_tensors(directory / 'model.ckpt')


def test_lies_with_right_checksums_are_told_or_harmless(directory, saved):
  """Whatever the index tells, what is read is read from the data files, or an error is told."""
  value = _entry(_ARRAY)
  pairs = [_header(), (b'a', value), (b'ab', value), (b'b', value)]
  for seed in range(400):
    rng = np.random.default_rng(seed)
    damage = [_flip, _cut, _cut_out, _grow, _zero, _exchange][seed % 6]
    changed = list(pairs)
    if seed % 2:
      i = rng.integers(len(pairs))
      changed[i] = (pairs[i][0], damage(rng, pairs[i][1], b''))
      content = _block(changed)
    else:
      content = damage(rng, _block(pairs), b'')
    _write(directory, _table(content))
    try:
      found = _read(directory)
    except errors.UserError as e:
      assert str(directory) in str(e)
    else:
      # The bytes of a tensor are _ARRAY's whatever its name and shape became, or there are none.
      assert all(a.tobytes() in (_ARRAY.tobytes(), b'') for a in found.values()), seed


@pytest.mark.parametrize(
  'lies, told',
  [
    ({'offset': 1}, 'ends at 25'),
    ({'offset': 1 << 62}, 'has 24 bytes'),
    ({'size': 20}, 'the shape of x does not fit its size, 20 bytes'),
    ({'size': 1 << 62, 'dims': (1 << 60,)}, 'has 24 bytes'),
    ({'dims': (3, 3)}, 'does not fit its size, 24 bytes'),
    ({'dims': (2**64 - 2, 3)}, 'does not fit its size'),  # -2
    ({'dims': (6, *[1] * 300)}, 'does not fit its size'),
    ({'shape': _field(3, 1)}, 'no rank'),
    ({'shard': 1}, 'x is in data file 1 of 1'),
    ({'shard': 2**64 - 1}, 'x is in data file'),
    ({'dtype': 9}, 'x has type int64, only float32'),
    ({'dtype': 99}, 'x has type number 99, only float32'),
    ({'more': _field(7, _field(1, b''))}, 'x is saved in slices'),
    ({'more': _varint(8 << 3 | 3)}, 'wire type 3'),
    ({'more': _varint(8 << 3 | 5) + b'abc'}, 'is cut off'),
    ({'more': _varint(8 << 3 | 2) + _varint(1 << 60)}, 'is cut off'),
    ({'more': _varint(8 << 3) + b'\xff' * 3}, 'does not end'),
    ({'more': _varint(8 << 3) + b'\xff' * 11 + b'\1'}, 'does not end'),
  ],
)
def test_tells_a_lying_entry(tmp_path, lies, told):
  _write(tmp_path, _table(_block([_header(), (b'x', _entry(_ARRAY, **lies))])))
  with pytest.raises(errors.UserError, match=told) as e:
    _read(tmp_path)
  assert _INDEX in str(e.value)


_PAIR = (b'x', _entry(_ARRAY))
_HANDLE = _varint(0) + _varint(1 << 62)


@pytest.mark.parametrize(
  'index, told',
  [
    (b'', 'does not end as the index'),
    (bytes(48), 'does not end as the index'),
    (bytes(40) + _MAGIC, 'no block of 0 bytes at 0'),
    (_HANDLE.ljust(40, b'\0') + _MAGIC, 'no block of 4611686018427387904 bytes at 0'),
    (b'\xff' * 40 + _MAGIC, 'a number in it does not end'),
    (_table(), 'it is empty'),
    (_table(_block([])), 'it is empty'),
    (_table(_block([_PAIR])), "begins with b'x', not with its header"),
    (_table(_block([_header(), _PAIR]), compression=1), r'compressed \(Snappy\)'),
    (_table(_block([_header(), _PAIR]), compression=7), r'compressed \(method 7\)'),
    (_table(_block([_header(endianness=1), _PAIR])), 'big-endian'),
    (_table(_block([_header(min_consumer=2), _PAIR])), 'format 2, only 1'),
    (_table(_block([_header(), _PAIR, _PAIR])), "not in order at b'x'"),
    (_table(_block([_header(), _PAIR]), _block([_PAIR])), "not in order at b'x'"),
    (_table(_block([_header(), _PAIR, (b'a', _PAIR[1])])), "not in order at b'a'"),
    (_table(_block([_header(), _PAIR], restarts=1 << 30)), 'list of restarts'),
    (_table(b''), 'list of restarts'),
    (_table(b'\5\0\0' + _block([_header()])), 'an entry is longer than its block'),
    (
      _table(_block([_header()])[:-8] + b'\0\1\x7fx' + _block([])),
      'an entry is longer than its block',
    ),
    (_table(_block([_header(), (b'x' * 5000, _PAIR[1])])), 'an entry is longer than its block'),
    (_table(_block([_header(), (b'\xff', _PAIR[1])])), 'utf-8'),
  ],
)
def test_tells_a_lying_table(tmp_path, index, told):
  _write(tmp_path, index)
  with pytest.raises(errors.UserError, match=told) as e:
    _read(tmp_path)
  assert str(tmp_path / _INDEX) in str(e.value)


def test_block_of_more_than_its_file_is_told_without_reading_it(tmp_path):
  index = _block([(b'\0', _HANDLE)])
  meta = _sealed(_block([]))
  footer = _varint(0) + _varint(len(meta) - 5) + _varint(len(meta)) + _varint(len(index))
  _write(tmp_path, meta + _sealed(index) + footer.ljust(40, b'\0') + _MAGIC)
  with pytest.raises(errors.UserError, match='no block of 4611686018427387904 bytes'):
    _read(tmp_path)


def test_tells_what_is_missing(directory):
  (directory / _DATA).unlink()
  with pytest.raises(errors.UserError, match=f'{_DATA} cannot be read: No such file'):
    _read(directory)
  (directory / _INDEX).unlink()
  with pytest.raises(errors.UserError, match=f'{_INDEX} cannot be read: No such file'):
    _read(directory)


def test_tells_a_file_that_changed_after_it_was_opened(directory):
  tensors = tensor_bundle.open_tensors(directory / 'model.ckpt')
  content = (directory / _DATA).read_bytes()
  for changed, told in [
    (content[:-1], 'ends within'),
    (content[: -4 * math.prod(tensors['model/wte'].shape)], 'ends within'),
    (content[:-1] + b'~', 'damaged: model/wte does not have its checksum'),
  ]:
    (directory / _DATA).write_bytes(changed)
    with pytest.raises(errors.UserError, match=told):
      tensors['model/wte'].read_into(np.empty(tensors['model/wte'].shape, np.float32))
  (directory / _DATA).unlink()
  with pytest.raises(errors.UserError, match='No such file'):
    tensors['model/wte'].read_into(np.empty(tensors['model/wte'].shape, np.float32))
