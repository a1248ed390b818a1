"""Model directories of OpenAI: `hparams.json` and a TensorFlow checkpoint (openai/gpt-2)."""

import functools
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.weights import published, tensor_bundle

HPARAMS = 'hparams.json'
# TensorFlow's note of which checkpoint is the newest, and its name where there is no such note.
_NOTE = 'checkpoint'
_CHECKPOINT = 'model.ckpt'
# hparams.json -> ModelConfig.
_SIZES = {
  'n_layer': 'n_layer',
  'n_head': 'n_head',
  'n_embd': 'n_embd',
  'n_ctx': 'block_size',
  'n_vocab': 'vocab_size',
}


def is_model(directory: pathlib.Path) -> bool:
  """Whether `directory` has the sizes of an OpenAI model."""
  return os.path.isfile(directory / HPARAMS)  # a name may be too long to be asked for


def open_model(directory: pathlib.Path) -> published.Published:
  """The model in `directory`, its tensors not read yet.

  Raises:
    UserError: It has sizes or tensors that GPT-2 doesn't have, lacks some, or is damaged.
  """
  config = _model_config(directory / HPARAMS)
  prefix = _checkpoint(directory)
  found = tensor_bundle.open_tensors(prefix)
  _check_sizes(directory, prefix, config, found)
  names = {_name_in_file(name): name for name, _ in published.shapes(config)}
  # A tensor that is none of these keeps its name, in quotes so that it can't be taken for one.
  tensors = {names.get(name, repr(name)): _without_1(tensor) for name, tensor in found.items()}
  model = published.Published(str(directory), config, tensors)
  try:
    model.check()
  except errors.UserError as e:
    raise errors.UserError(
      f'{e}\nIn {prefix.name}, h.0.mlp.c_fc.weight is model/h0/mlp/c_fc/w, h.0.ln_1.weight is '
      'model/h0/ln_1/g, and so on; what is in quotes has its name there.'
    ) from e
  return model


def _model_config(path: pathlib.Path) -> config_lib.ModelConfig:
  try:
    values = json.loads(path.read_bytes())
  except OSError as e:
    raise errors.UserError(f'{path} cannot be read: {e.strerror}.') from e
  except (ValueError, RecursionError) as e:
    raise errors.UserError(f'{path} is damaged ({e}): get it again.') from e
  if not isinstance(values, dict):
    raise errors.UserError(f'{path} is damaged: it does not hold names and numbers. Get it again.')
  found = [f'{key} is missing' for key in _SIZES if key not in values]
  found += [f'{key} is unknown' for key in values if key not in _SIZES]
  found += [
    f'{key} is {values[key]!r}, must be a whole number, at least 1'
    for key in _SIZES
    if key in values and not (type(values[key]) is int and values[key] >= 1)
  ]
  if not found and values['n_embd'] % values['n_head']:
    found.append(f'n_embd ({values["n_embd"]}) is not divisible by n_head ({values["n_head"]})')
  if found:
    raise errors.UserError(f'{path} does not describe a GPT-2: ' + '; '.join(found) + '.')
  sizes: dict[str, Any] = {ours: values[theirs] for theirs, ours in _SIZES.items()}
  return config_lib.ModelConfig(**sizes, pad_vocab_to=1)


def _checkpoint(directory: pathlib.Path) -> pathlib.Path:
  """The prefix of the checkpoint that TensorFlow's note names, else of `model.ckpt`."""
  note = directory / _NOTE
  try:
    match = re.search(r'^model_checkpoint_path: *"(.*)"', note.read_text('utf-8'), re.MULTILINE)
  except FileNotFoundError:
    return directory / _CHECKPOINT
  except OSError as e:
    raise errors.UserError(f'{note} cannot be read: {e.strerror}.') from e
  except UnicodeDecodeError as e:
    raise errors.UserError(f'{note} is damaged ({e}): get it again.') from e
  if not match:
    raise errors.UserError(f'{note} is damaged: it has no model_checkpoint_path. Get it again.')
  name = match[1]
  if not re.fullmatch(r'\w[\w.-]*', name):
    raise errors.UserError(
      f'{note} names {name!r}, which is not the name of a checkpoint beside it: write the name '
      f'there, such as "{_CHECKPOINT}", without a folder.'
    )
  return directory / name


def _check_sizes(
  directory: pathlib.Path,
  prefix: pathlib.Path,
  config: config_lib.ModelConfig,
  found: dict[str, published.Tensor],
) -> None:
  """Raises `UserError` where the sizes aren't those of the tensors.

  Such sizes may be lies, and far too large to make even the shapes of a model with.
  """
  D = config.n_embd
  layers = len({name.split('/')[1] for name in found if re.match(r'model/h\d+/', name)})
  wanted = {'model/wte': (config.vocab_size, D), 'model/wpe': (config.block_size, D)}
  wrong = []
  for name, shape in wanted.items():
    if name not in found:
      wrong.append(f'{name} is missing')
    elif found[name].shape != shape:
      wrong.append(f'{name} has shape {found[name].shape}, not {shape}')
  if layers != config.n_layer:
    wrong.append(f'it has {layers} layers, not {config.n_layer}')
  if wrong:
    raise errors.UserError(f'{prefix} is not what {directory / HPARAMS} tells: {"; ".join(wrong)}.')


def _name_in_file(name: str) -> str:
  """`h.0.ln_1.weight` -> `model/h0/ln_1/g`: embeddings have no leaf, scales are g, kernels w."""
  *modules, leaf = re.sub(r'^h\.', 'h', name).split('.')
  if modules[-1] in ('wte', 'wpe'):
    return f'model/{modules[-1]}'
  weight = 'g' if modules[-1].startswith('ln_') else 'w'
  return '/'.join(['model', *modules, weight if leaf == 'weight' else 'b'])


def _without_1(tensor: published.Tensor) -> published.Tensor:
  """Kernels are [1, inputs, outputs], those of a convolution one token wide; ours have no 1."""
  if len(tensor.shape) != 3 or tensor.shape[0] != 1:
    return tensor
  return published.Tensor(tensor.shape[1:], functools.partial(_read_into, tensor))


def _read_into(tensor: published.Tensor, out: np.ndarray) -> None:
  tensor.read_into(out[np.newaxis])
