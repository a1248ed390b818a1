"""Published GPT-2 tensors and our parameters: one name a tensor, the same layouts.

Names are those of Hugging Face without the prefix `transformer.`: `h.0.attn.c_attn.weight`. Their
linear layers are (inputs, outputs), as those of Flax are, so that no tensor is ever transposed.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, progress
from gpt_jax.models import gpt

_ALIGNMENT = 64  # bytes
_LEAVES = {'embedding': 'weight', 'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file, not read yet.

  Attributes:
    shape: As it is there.
    read_into: Fills a contiguous array of `shape` and any float type.
  """

  shape: tuple[int, ...]
  read_into: Callable[[np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Published:
  """A model in a published form.

  Attributes:
    path: Where it is.
    config: The architecture, with `vocab_size`; `pad_vocab_to` is 1.
    tensors: By name.
  """

  path: str
  config: config_lib.ModelConfig
  tensors: Mapping[str, Tensor]

  def check(self) -> None:
    """Raises `UserError` that names the tensors that are missing, unexpected or misshaped."""
    config = self.config
    layers = len({name.split('.')[1] for name in self.tensors if re.match(r'h\.\d+\.', name)})
    # Sizes may be lies, and far too large to make even the shapes of a model with: they go first.
    found = self._misfits(
      {
        'wte.weight': (config.vocab_size, config.n_embd),
        'wpe.weight': (config.block_size, config.n_embd),
      }
    )
    if layers != config.n_layer:
      found.append(f'it has {layers} layers, the config says {config.n_layer}')
    if not found:
      expected = dict(shapes(config))
      found = self._misfits(expected)
      found += [
        f'{name} {tensor.shape} is unexpected'
        for name, tensor in self.tensors.items()
        if name not in expected
      ]
    if found:
      more = f'\n  and {len(found) - 10} more' if len(found) > 10 else ''
      lines = '\n'.join(f'  {line}' for line in found[:10])
      raise errors.UserError(f'{self.path} does not hold the tensors of its config:\n{lines}{more}')

  def _misfits(self, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line on each tensor that is missing or has another shape than is expected."""
    found = []
    for name, shape in expected.items():
      if name not in self.tensors:
        found.append(f'{name} {shape} is missing')
      elif self.tensors[name].shape != shape:
        found.append(f'{name} has shape {self.tensors[name].shape}, the config asks for {shape}')
    return found

  def params(self, abstract: Any) -> Any:
    """The parameters, each read straight to where it is to be.

    Args:
      abstract: What `models.gpt.abstract_params` gives, with shardings: the tree of this
        architecture, perhaps with a shorter context (positions are cropped) and a padded vocabulary
        (padding is 0), and with layers scanned or not.

    Returns:
      The tree with arrays in place of shapes.
    """
    what, total = f'reading {self.path}', sum(math.prod(t.shape) for t in self.tensors.values())
    done = 0
    with progress.Bar() as bar:
      bar.show(what, done, total)

      def fill(array: np.ndarray, name: str) -> None:
        nonlocal done
        _fill(array, self.tensors[name])
        done += math.prod(self.tensors[name].shape)
        bar.show(what, done, total)

      def leaf_of(path: Any, leaf: Any) -> jax.Array:
        return _leaf(path, leaf, self.config.n_layer, fill)

      return jax.tree_util.tree_map_with_path(leaf_of, abstract)


def _leaf(path: Any, leaf: Any, n_layer: int, fill: Callable[[np.ndarray, str], None]) -> jax.Array:
  """A parameter, whose tensors `fill` reads into the array that it is given with their names."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  array = _aligned_zeros(leaf.shape, leaf.dtype)
  for part, tensor_name in zip(_by_layer(name, array), published_names(name, n_layer), strict=True):
    fill(part, tensor_name)
  if leaf.sharding.num_devices == 1:
    return jax.device_put(array, leaf.sharding, may_alias=True)
  # A tensor at a time, so that memory holds no more than one beside the parameters.
  make = jax.make_array_from_callback
  return make(leaf.shape, leaf.sharding, lambda index: array[index]).block_until_ready()


def _fill(array: np.ndarray, tensor: Tensor) -> None:
  if array.shape[0] >= tensor.shape[0]:
    tensor.read_into(array[: tensor.shape[0]])
    return
  whole = np.empty(tensor.shape, array.dtype)  # positions beyond a shortened context
  tensor.read_into(whole)
  array[:] = whole[: array.shape[0]]


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Zeros that JAX's CPU backend takes as they lie; of others it makes a copy."""
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  memory = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def published_names(path: str, n_layer: int) -> list[str]:
  """The tensors in the parameter at `path`, such as `h_0/ln_1/scale`; several if scanned."""
  if path == 'lm_head':
    return ['lm_head.weight']
  *modules, leaf = path.split('/')
  name = '.'.join([*modules, _LEAVES[leaf]])
  if _is_scanned(path):
    return [f'h.{layer}{name[1:]}' for layer in range(n_layer)]
  return [re.sub(r'^h_(\d+)', r'h.\1', name)]


def _is_scanned(path: str) -> bool:
  """Whether the parameter at `path` has a leading axis over the layers."""
  return path.startswith('h/')


def _by_layer(path: str, array: np.ndarray) -> Sequence[np.ndarray]:
  return list(array) if _is_scanned(path) else [array]


def shapes(config: config_lib.ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
  """Name and shape of each tensor of an architecture, without padding."""
  plain = dataclasses.replace(config, pad_vocab_to=1, scan_layers=False)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gpt.abstract_params(plain)):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    yield published_names(name, config.n_layer)[0], leaf.shape


def tensors(config: config_lib.ModelConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Name and values of each tensor of a model, one at a time, without the vocabulary's padding."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    names = published_names(name, config.n_layer)
    array = np.asarray(leaf)
    for part, tensor_name in zip(_by_layer(name, array), names, strict=True):
      vocabulary = tensor_name in ('wte.weight', 'lm_head.weight')
      yield tensor_name, part[: config.vocab_size] if vocabulary else part
