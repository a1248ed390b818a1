"""A checkpoint of TensorFlow gives the tensors that were saved, or an error that names the file."""

import os
import shutil
import struct

import google_crc32c
import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.weights.openai import tensor_bundle
from tests import damage, raised
from tests.weights import saved

_FIXTURE = saved.FIXTURES / 'openai_tiny'
_INDEX, _DATA = 'model.ckpt.index', 'model.ckpt.data-00000-of-00001'
_MAGIC = bytes.fromhex('57fb808b247547db')
_ARRAY = np.arange(6, dtype='<f4').reshape(2, 3)


@pytest.fixture(scope='module')
def written():
  """What TensorFlow was given to save in the fixture."""
  with np.load(_FIXTURE / 'expected.npz') as file:
    return {name: file[name] for name in file.files if name.startswith('model/')}


@pytest.fixture
def directory(tmp_path):
  for name in (_INDEX, _DATA):
    shutil.copy(_FIXTURE / name, tmp_path)
  return tmp_path


def _read(directory):
  tensors = tensor_bundle.open_tensors(directory / _INDEX)
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  assert all(arrays[name].shape == tensor.shape for name, tensor in tensors.items())
  return arrays


def _refused(directory, name=_INDEX):
  """Asserts that reading is a user error at the file `name`."""
  assert raised.user_error(_read, directory).key == str(directory / name)


def _same(*trees):
  a, b = ({k: (v.dtype.str, v.shape, v.tobytes()) for k, v in tree.items()} for tree in trees)
  return a == b


# An index of our own, valid or not.


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
    shared = len(os.path.commonprefix([key, last]))
    content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value))
    content += key[shared:] + value
    last = key
  return content + bytes(4) * min(restarts, 9) + struct.pack('<I', restarts)


def _table(*blocks, compression=0):
  """A file of blocks with these contents, and the blocks that LevelDB puts behind them."""
  data, handles = b'', []
  for content in [*blocks, _block([])]:
    handles.append(_varint(len(data)) + _varint(len(content)))
    data += _sealed(content, compression)
  index = _block([(bytes([i]), handle) for i, handle in enumerate(handles[:-1])])
  footer = handles[-1] + _varint(len(data)) + _varint(len(index))
  return data + _sealed(index) + footer.ljust(40, b'\0') + _MAGIC


def _header(num_files=1):
  return (b'', _field(1, num_files) + _field(3, _field(1, 1)))


def _entry(array, offset=0, **lies):
  values = {'dtype': 1, 'dims': array.shape, 'file': 0, 'size': array.nbytes, 'more': b''} | lies
  shape = b''.join(_field(2, _field(1, dim)) for dim in values['dims'])
  numbers = {1: values['dtype'], 3: values['file'], 4: offset, 5: values['size']}
  fields = b''.join(_field(number, value) for number, value in numbers.items())
  crc = _varint(6 << 3 | 5) + _crc(array.tobytes())
  return fields + _field(2, shape) + crc + values['more']


def _write(directory, index, *data):
  (directory / _INDEX).write_bytes(index)
  for i, content in enumerate(data or [_ARRAY.tobytes()]):
    path = directory / f'model.ckpt.data-{i:05d}-of-{max(len(data), 1):05d}'
    path.write_bytes(content)


# What is valid.


def test_reads_what_tensorflow_saved(written):
  assert _same(_read(_FIXTURE), written)


def test_reads_several_blocks_and_data_files(tmp_path):
  a, b = _ARRAY, np.float32(7) + _ARRAY[:, :1]
  blocks = [
    _block([_header(num_files=2), (b'model/aa', _entry(a))], restarts=3),
    _block([(b'model/ab', _entry(b, 8, file=1)), (b'model/abc', _entry(a))]),
    _block([(b'scalar', _entry(a[0, 0])), ('ключ'.encode(), _entry(a[:0]))]),
  ]
  _write(tmp_path, _table(*blocks), a.tobytes(), bytes(8) + b.tobytes())
  wanted = {'model/aa': a, 'model/ab': b, 'model/abc': a, 'scalar': a[0, 0], 'ключ': a[:0]}
  assert _same(_read(tmp_path), wanted)


def test_skips_unknown_fields_and_takes_the_last_of_several_values(tmp_path):
  more = _field(9, 1 << 63) + _field(100, b'text') + _varint(10 << 3 | 1) + b'\xff' * 8
  value = _entry(_ARRAY, offset=1 << 40, more=more + _field(4, 0))
  _write(tmp_path, _table(_block([_header(), (b'x', value)])))
  assert _same(_read(tmp_path), {'x': _ARRAY})


# What is damaged.


@pytest.mark.parametrize('name', [_INDEX, _DATA])
def test_damage_is_reported_or_changes_nothing(directory, written, name):
  data = (directory / name).read_bytes()
  reported = 0
  for seed in range(200):
    (directory / name).write_bytes(damage.damaged(data, seed))
    try:
      found = _read(directory)
    except errors.UserError as e:
      assert e.key == str(directory / name)
      reported += 1
    else:
      assert _same(found, written), seed
  assert reported > 100


def test_lies_with_right_checksums_are_reported_or_harmless(directory):
  """Whatever the index says, tensors have the bytes of the data files, or an error is raised."""
  value = _entry(_ARRAY)
  pairs = [_header(), (b'a', value), (b'ab', value), (b'b', value)]
  for seed in range(400):
    changed, i = list(pairs), seed // 5 % len(pairs)
    changed[i] = (pairs[i][0], damage.damaged(pairs[i][1], seed))
    _write(directory, _table(_block(changed) if seed % 2 else damage.damaged(_block(pairs), seed)))
    try:
      found = _read(directory)
    except errors.UserError as e:
      assert str(directory) in e.key
    else:
      # The bytes of a tensor are _ARRAY's whatever its name and shape became, or there are none.
      assert all(a.tobytes() in (_ARRAY.tobytes(), b'') for a in found.values()), seed


@pytest.mark.parametrize(
  'lies',
  [
    {'offset': 1},
    {'offset': 1 << 62},
    {'size': 20},
    {'size': 1 << 62, 'dims': (1 << 60,)},
    {'dims': (3, 3)},
    {'dims': (2**64 - 2, 3)},  # -2
    {'dims': ()},
    {'file': 1},
    {'file': 2**64 - 1},
    {'dtype': 9},
    {'more': _field(7, _field(1, b''))},  # slices
    {'more': _varint(8 << 3 | 3)},  # an unknown wire type
    {'more': _varint(8 << 3 | 5) + b'abc'},
    {'more': _varint(8 << 3 | 2) + _varint(1 << 60)},
    {'more': _varint(8 << 3) + b'\xff' * 11 + b'\1'},
  ],
  ids=str,
)
def test_an_entry_that_lies_is_reported(tmp_path, lies):
  _write(tmp_path, _table(_block([_header(), (b'x', _entry(_ARRAY, **lies))])))
  lies_beyond_the_data = 'offset' in lies or lies.get('size') == 1 << 62
  _refused(tmp_path, _DATA if lies_beyond_the_data else _INDEX)


_PAIR = (b'x', _entry(_ARRAY))
_BEYOND = _varint(0) + _varint(1 << 62)


@pytest.mark.parametrize(
  'index',
  [
    b'',
    bytes(48),
    bytes(40) + _MAGIC,
    (_BEYOND + _BEYOND).ljust(40, b'\0') + _MAGIC,
    b'\xff' * 40 + _MAGIC,
    _table(),
    _table(_block([_PAIR])),  # no header
    _table(_block([_header(), _PAIR]))[:-1] + b'~',
    _table(_block([_header(), _PAIR]), compression=1),
    _table(_block([_header(), _PAIR], restarts=1 << 30)),
    _table(b'\5\0\0' + _block([_header()])),  # shares five bytes with nothing
    _table(_block([_header()])[:-8] + b'\0\1\x7fx' + _block([])),  # 127 bytes of value
    _table(_block([_header(), (b'\xff', _PAIR[1])])),  # no UTF-8
  ],
)
def test_a_table_that_lies_is_reported(tmp_path, index):
  _write(tmp_path, index)
  _refused(tmp_path)


def test_a_missing_or_changed_file_is_named(directory):
  tensors = tensor_bundle.open_tensors(directory / _INDEX)
  content = (directory / _DATA).read_bytes()
  for changed in (content[:-1], b'', content[:-1] + b'~', None):
    (directory / _DATA).unlink() if changed is None else (directory / _DATA).write_bytes(changed)
    assert raised.user_error(tensors['model/wte'].read).key == str(directory / _DATA)
  _refused(directory, _DATA)
  (directory / _INDEX).unlink()
  _refused(directory)
