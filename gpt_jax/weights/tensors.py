"""GPT-2's tensors in the files of others, and our parameters: the same layouts, other names.

Names are those of Hugging Face without the prefix `transformer.`: `h.0.attn.c_attn.weight`. Linear
layers are (inputs, outputs) there as in Flax, so that no tensor is ever transposed.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, models, progress

SIZES = ('n_layer', 'n_head', 'n_embd', 'block_size', 'vocab_size')  # of `ModelConfig`


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file: its shape, and the function that reads its values (any float type)."""

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def model_config(
  path: pathlib.Path, values: Mapping[str, Any], sizes: Sequence[str], **options: Any
) -> config_lib.ModelConfig:
  """Returns the architecture with the `sizes` that a file of others has, and other `options`.

  `sizes` are its keys of `SIZES`, in that order. Raises `UserError` if one is missing or invalid.
  """
  found = [
    f'{name} is {values.get(name)!r}, must be a whole number, at least 1'
    for name in sizes
    if type(values.get(name)) is not int or values[name] < 1
  ]
  if not found and values['n_embd'] % values['n_head']:
    found.append(f'n_embd ({values["n_embd"]}) is not divisible by n_head ({values["n_head"]})')
  errors.raise_all([errors.UserError(str(path), problem) for problem in found])
  ours: dict[str, Any] = {key: values[name] for key, name in zip(SIZES, sizes, strict=True)}
  return config_lib.ModelConfig(**ours, pad_vocab_to=1, **options)


def check(path: str, config: config_lib.ModelConfig, tensors: Mapping[str, Tensor]) -> None:
  """Raises `UserError` at `path` with tensors that are missing, unexpected or misshaped."""

  def misfits(expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    actual = {name: tensor.shape for name, tensor in tensors.items()}
    wrong = [name for name in expected if actual.get(name) != expected[name]]
    return [f'{name} is {actual.get(name)}, must be {expected[name]}' for name in wrong]

  D, layers = config.n_embd, {name.split('.')[1] for name in tensors if name.startswith('h.')}
  # Wrong sizes may be too large to compute even the shapes of a model with, so these go first.
  found = misfits({'wte.weight': (config.vocab_size, D), 'wpe.weight': (config.block_size, D)})
  if len(layers) != config.n_layer:
    found.append(f'there are {len(layers)} layers, must be {config.n_layer}')
  if not found:
    expected = shapes(config)
    found = misfits(expected) + [f'{n} is unexpected' for n in tensors if n not in expected]
  if found:
    raise errors.UserError(path, f'has not the tensors of its config: {"; ".join(found[:10])}')


def load(tensors: Mapping[str, Tensor], abstract: Any, *, n_layer: int, path: pathlib.Path) -> Any:
  """Reads the parameters into `abstract`, one tensor at a time, with a progress bar.

  `abstract` is what `models.gpt.abstract_params` returns for this architecture, with shardings. The
  context may be shorter (positions are cropped), the vocabulary padded (with 0), layers scanned.
  Raises `UserError` at `path`, where they are from, if one holds NaN or an infinity.
  """
  total, done = sum(math.prod(tensor.shape) for tensor in tensors.values()), 0
  phase = f'reading {path}'

  def read(place: Any, leaf: Any) -> jax.Array:
    nonlocal done
    array = np.zeros(leaf.shape, leaf.dtype)
    for part, name in _layers(place, array, n_layer):
      values = tensors[name].read()
      rows = min(len(part), len(values))
      part[:rows] = values[:rows]
      check_finite(path, name, part)
      done += values.size
      bar.show(phase, done, total)
    # Waiting for each leaf limits the memory to one leaf beside the parameters.
    made = jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
    return made.block_until_ready()

  with progress.Bar() as bar:
    bar.show(phase, done, total)
    return jax.tree_util.tree_map_with_path(read, abstract)


def check_finite(path: pathlib.Path, name: str, values: np.ndarray) -> None:
  """Raises `UserError` at `path` if the values of tensor `name` aren't all finite."""
  with np.errstate(invalid='ignore'):
    limits = [values.min(), values.max()]  # both are NaN if one value is
  if not np.isfinite(limits).all():
    problem = f'{name} holds NaN or an infinity, so nothing can be computed with it'
    fix = 'get or make it again; if it was trained so, take an earlier checkpoint'
    raise errors.UserError(str(path), problem, fix)


def export(config: config_lib.ModelConfig, params: Any) -> dict[str, np.ndarray]:
  """Returns the tensors of a model by name, float32, without the padding of the vocabulary."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    for part, name in _layers(path, np.asarray(leaf, np.float32), config.n_layer):
      is_padded = name in ('wte.weight', 'lm_head.weight')
      found[name] = np.ascontiguousarray(part[: config.vocab_size] if is_padded else part)
  return found


def shapes(config: config_lib.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each tensor of an architecture by name, without padding."""
  plain = dataclasses.replace(config, pad_vocab_to=1, scan_layers=False)
  leaves = jax.tree_util.tree_leaves_with_path(models.abstract_params(plain))
  return {name: leaf.shape for path, leaf in leaves for _, name in _layers(path, leaf, 0)}


def _layers(path: Any, array: Any, n_layer: int) -> Iterator[tuple[Any, str]]:
  """Yields the tensors in the parameter at a tree path with their names: several if scanned."""
  *modules, leaf = (key.key for key in path)
  name = '.'.join([*(modules or [leaf]), 'bias' if leaf == 'bias' else 'weight'])
  if modules[:1] == ['h']:
    yield from ((array[layer], f'h.{layer}{name[1:]}') for layer in range(n_layer))
  else:
    yield array, name.replace('h_', 'h.', 1) if name.startswith('h_') else name
