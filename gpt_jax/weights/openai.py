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
# Layer, norm, linear: of all but the embeddings. Scales are g, kernels w.
_NAME = re.compile(r'model/(?:h(\d+)/)?(?:(ln_\w+)/[gb]|((?:attn|mlp)/\w+)/[wb])', re.ASCII)


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
  # A tensor of another name keeps it, in quotes so that it can't be taken for one of ours.
  tensors = {_name(name) or repr(name): _without_1(tensor) for name, tensor in found.items()}
  model = published.Published(str(directory), config, tensors)
  try:
    model.check()
  except errors.UserError as e:
    raise errors.UserError(
      f'{e}\nThe config is {directory / HPARAMS}. In {prefix.name}, h.0.mlp.c_fc.weight is '
      'model/h0/mlp/c_fc/w, h.0.ln_1.weight is model/h0/ln_1/g, and so on; what is in quotes has '
      'its name there.'
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


def _name(name_in_file: str) -> str | None:
  """`model/h0/ln_1/g` -> `h.0.ln_1.weight`; None if it isn't of this form. No two give the same."""
  if name_in_file in ('model/wte', 'model/wpe'):
    return f'{name_in_file.removeprefix("model/")}.weight'
  match = _NAME.fullmatch(name_in_file)
  if not match:
    return None
  layer, norm, linear = match.groups()
  module = norm or linear.replace('/', '.')
  leaf = 'bias' if name_in_file.endswith('/b') else 'weight'
  return f'{module}.{leaf}' if layer is None else f'h.{layer}.{module}.{leaf}'


def _without_1(tensor: published.Tensor) -> published.Tensor:
  """Kernels are [1, inputs, outputs], those of a convolution one token wide; ours have no 1."""
  if len(tensor.shape) != 3 or tensor.shape[0] != 1:
    return tensor
  return published.Tensor(tensor.shape[1:], functools.partial(_read_into, tensor))


def _read_into(tensor: published.Tensor, out: np.ndarray) -> None:
  tensor.read_into(out[np.newaxis])
