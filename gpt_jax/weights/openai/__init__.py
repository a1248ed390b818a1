"""Model directories of OpenAI: `hparams.json` and a TensorFlow checkpoint (openai/gpt-2)."""

import pathlib
import re

from gpt_jax import config as config_lib
from gpt_jax import errors, json_files
from gpt_jax.data import tokenizers
from gpt_jax.weights import tensors as tensors_lib

_SIZES = ('n_layer', 'n_head', 'n_embd', 'n_ctx', 'n_vocab')


def open_model(
  directory: pathlib.Path,
) -> tuple[config_lib.ModelConfig, dict[str, tensors_lib.Tensor]]:
  """Returns the architecture in `directory` and its tensors, not read yet; raises `UserError`."""
  try:
    from gpt_jax.weights.openai import tensor_bundle
  except ModuleNotFoundError as e:
    fix = "pip install 'gpt_jax[openai]'"
    raise errors.UserError(str(directory), 'reading it needs google-crc32c', fix) from e
  hparams = directory / 'hparams.json'
  values = json_files.read(hparams)
  if unknown := values.keys() - _SIZES:
    raise errors.UserError(str(hparams), f'unknown: {", ".join(sorted(unknown))}')
  config = tensors_lib.model_config(hparams, values, _SIZES)
  indices = list(directory.glob('*.index'))
  if len(indices) != 1:
    problem = f'has {len(indices)} checkpoints (*.index), must be one'
    raise errors.UserError(str(directory), problem, 'get it again')
  tensors = {
    _name(theirs): _without_leading_1(tensor)
    for theirs, tensor in tensor_bundle.open_tensors(indices[0]).items()
  }
  tensors_lib.check(str(directory), config, tensors)
  return config, tensors


def open_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer | None:
  """Returns GPT-2's tokenizer if its vocabulary lies in `directory`; raises `UserError`."""
  if not (directory / 'vocab.bpe').is_file():
    return None
  return tokenizers.build(config_lib.DataConfig(tokenizer=f'gpt2:{directory}'), {})


def _name(theirs: str) -> str:
  """`model/h0/ln_1/g` -> `h.0.ln_1.weight`; other tensors get names that GPT-2 doesn't have."""
  *modules, leaf = theirs.removeprefix('model/').split('/')
  # Embeddings have no leaf, scales are g, kernels w.
  known = {'wte': 'wte.weight', 'wpe': 'wpe.weight', 'g': 'weight', 'w': 'weight', 'b': 'bias'}
  return re.sub(r'^h(\d)', r'h.\1', '.'.join([*modules, known.get(leaf, leaf)]))


def _without_leading_1(tensor: tensors_lib.Tensor) -> tensors_lib.Tensor:
  """A kernel without the 1 of its shape [1, inputs, outputs]: a convolution one token wide."""
  is_kernel = len(tensor.shape) == 3 and tensor.shape[0] == 1
  return tensors_lib.Tensor(tensor.shape[1:], lambda: tensor.read()[0]) if is_kernel else tensor
