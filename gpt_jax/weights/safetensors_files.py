"""Tensors in safetensors files, one or several with an index; no other module imports safetensors.

A tensor is read from the file straight into the array it is for: a mapped file would count towards
the memory of the process a second time.
"""

import functools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from gpt_jax import errors, progress
from gpt_jax.weights import published

FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_FLOAT32 = np.dtype('<f4')
_DTYPES: dict[str, np.dtype[Any]] = {
  'F32': _FLOAT32,
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_LENGTH_BYTES = 8  # of the header, before the header
_ALIGNMENT = 8  # bytes, of the first tensor


def open_tensors(directory: pathlib.Path) -> dict[str, published.Tensor]:
  """The tensors in a directory's `model.safetensors`, or in the shards of its index.

  Raises:
    UserError: There are none, or a file is damaged or isn't what the index says.
  """
  if (directory / FILE).is_file():
    return _open_file(directory / FILE)
  weight_map = _read_index(directory / INDEX)
  found: dict[str, published.Tensor] = {}
  for name in sorted(set(weight_map.values())):
    shard = _open_file(directory / name)
    wanted = {tensor for tensor, file in weight_map.items() if file == name}
    if wanted != shard.keys():
      odd = ', '.join(sorted(wanted ^ shard.keys())[:5])
      raise errors.UserError(
        f'{directory / name} does not hold the tensors that {INDEX} says (see {odd}): get both '
        'again.'
      )
    found |= shard
  return found


def _read_index(path: pathlib.Path) -> dict[str, str]:
  """Tensor -> file, every file one beside the index."""
  try:
    weight_map = json.loads(path.read_bytes())['weight_map']
    names = set(weight_map.values())
    sound = all(isinstance(n, str) and n and pathlib.PurePath(n).name == n for n in names)
  except FileNotFoundError as e:
    raise errors.UserError(f'{path.parent} has no weights: neither {FILE} nor {INDEX}.') from e
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise errors.UserError(f'{path} is damaged ({e!r}): get it again.') from e
  if not sound:
    raise errors.UserError(f'{path} names files outside of its folder, which are not opened.')
  return weight_map


def _open_file(path: pathlib.Path) -> dict[str, published.Tensor]:
  try:
    # The library checks that the tensors have the sizes that the header tells and fill the file.
    with safetensors.safe_open(path, framework='numpy'), path.open('rb') as file:
      length = int.from_bytes(file.read(_LENGTH_BYTES), 'little')
      header = json.loads(file.read(length))
  except (OSError, safetensors.SafetensorError) as e:
    raise errors.UserError(f'{path} is damaged or cannot be read ({e}): get it again.') from e
  header.pop('__metadata__', None)
  found = {}
  for name, values in header.items():
    shape, offset = tuple(values['shape']), _LENGTH_BYTES + length + values['data_offsets'][0]
    read = functools.partial(_read_into, path, name, offset, shape, values['dtype'])
    found[name] = published.Tensor(shape, read)
  return found


def _read_into(
  path: pathlib.Path, name: str, offset: int, shape: tuple[int, ...], kind: str, out: np.ndarray
) -> None:
  if kind not in _DTYPES:
    raise errors.UserError(f'{path}: {name} has type {kind}, must be one of {", ".join(_DTYPES)}.')
  whole = out if out.dtype == _DTYPES[kind] else np.empty(shape, _DTYPES[kind])
  with path.open('rb') as file:
    file.seek(offset)
    if file.readinto(whole.reshape(-1).view(np.uint8).data) != whole.nbytes:
      raise errors.UserError(f'{path} ends within {name}: get it again.')
  if whole is not out:
    out[:] = whole


def write(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes a file as the library would, byte for byte, but a tensor at a time, with a bar.

  Args:
    path: The file.
    shapes: Of all tensors, by name.
    tensors: Name and float32 values of each, in any order.

  Raises:
    OSError: The file can't be written.
  """
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # as Hugging Face's own are marked
  starts, end = {}, 0
  for name, shape in sorted(shapes.items()):
    starts[name], end = end, end + math.prod(shape) * _FLOAT32.itemsize
    header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [starts[name], end]}
  text = json.dumps(header, separators=(',', ':')).encode()
  text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
  with path.open('wb') as file, progress.Bar() as bar:
    file.write(len(text).to_bytes(_LENGTH_BYTES, 'little') + text)
    done = 0
    bar.show(f'writing {path}', done, end)
    for name, values in tensors:
      file.seek(_LENGTH_BYTES + len(text) + starts.pop(name))
      file.write(np.ascontiguousarray(values, _FLOAT32).data)
      done += values.size * _FLOAT32.itemsize
      bar.show(f'writing {path}', done, end)
  assert not starts, 'a tensor was not written'
