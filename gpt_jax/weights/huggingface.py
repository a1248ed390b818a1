"""Model directories of Hugging Face: `config.json`, safetensors, tokenizer files.

The only module that imports safetensors.
"""

import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from gpt_jax import atomic, errors, json_files
from gpt_jax import config as config_lib
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import bpe
from gpt_jax.weights import tensors as tensors_lib

CONFIG = 'config.json'
TOKENIZER = 'gpt_jax_tokenizer.json'  # any tokenizer of ours, beside the files of Hugging Face
_WEIGHTS = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_PREFIX = 'transformer.'
_DTYPES = ('F32', 'F16', 'BF16')
# Masks that older versions of transformers saved as if they were weights.
_BUFFER = re.compile(r'h\.\d+\.attn\.(bias|masked_bias)$')

_SIZES = ('n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size')
# Options that change what is computed: ours has these values only. The two GELUs are one function.
_FIXED: dict[str, tuple[Any, ...]] = {
  'activation_function': ('gelu_new', 'gelu_pytorch_tanh'),
  'layer_norm_epsilon': (1e-5,),
  'scale_attn_weights': (True,),
  'scale_attn_by_inverse_layer_idx': (False,),
  'reorder_and_upcast_attn': (False,),
  'add_cross_attention': (False,),
}


def open_model(
  directory: pathlib.Path, values: dict[str, Any]
) -> tuple[config_lib.ModelConfig, dict[str, tensors_lib.Tensor]]:
  """Returns the architecture in `directory` and its tensors, not read yet.

  `values` are the contents of its config.json. Raises `UserError` if the model isn't GPT-2, has an
  option that ours doesn't have, or is damaged.
  """
  config = _model_config(directory / CONFIG, values)
  is_sharded = not (directory / _WEIGHTS).is_file()
  tensors: dict[str, tensors_lib.Tensor] = {}
  for file in sorted(_read_index(directory / _INDEX)) if is_sharded else [_WEIGHTS]:
    tensors |= _tensors(directory / file)
  if config.tie_embeddings:
    tensors.pop('lm_head.weight', None)  # some writers save it a second time
  tensors_lib.check(str(directory), config, tensors)
  return config, tensors


def _model_config(path: pathlib.Path, values: dict[str, Any]) -> config_lib.ModelConfig:
  if values['model_type'] != 'gpt2':
    raise errors.UserError(str(path), f'model_type is {values["model_type"]!r}, must be gpt2')
  tied = values.get('tie_word_embeddings', True)
  config = tensors_lib.model_config(path, values, _SIZES, tie_embeddings=tied)
  allowed = {**_FIXED, 'n_inner': (None, 4 * config.n_embd), 'tie_word_embeddings': (True, False)}
  wrong = [key for key in allowed if key in values and values[key] not in allowed[key]]
  problems = [f'{key} is {values[key]!r}, must be one of {allowed[key]}' for key in wrong]
  errors.raise_all([errors.UserError(str(path), problem) for problem in problems])
  return config


def _read_index(path: pathlib.Path) -> set[str]:
  """The names of the files in an index, which must lie beside it."""
  if not path.is_file():
    problem, fix = f'has no weights: neither {_WEIGHTS} nor {_INDEX}', 'get them'
    if pickles := sorted(file.name for file in path.parent.glob('pytorch_model*.bin')):
      problem += f'; {pickles[0]} is a pickle, which can run code'
      fix = 'save it by save_pretrained of transformers, or get it with model.safetensors'
    raise errors.UserError(str(path.parent), problem, fix)
  weight_map = json_files.read(path).get('weight_map')
  files: list[Any] = [*weight_map.values()] if isinstance(weight_map, dict) else [None]
  if not all(isinstance(file, str) and file and pathlib.Path(file).name == file for file in files):
    raise errors.UserError(str(path), 'weight_map must name a file in this folder for each tensor')
  return set(files)


def _open_file(path: pathlib.Path) -> Any:
  if not path.is_file():
    raise errors.UserError(str(path), 'is missing', 'get it again')
  try:
    # Raises if the tensors don't have the sizes that the header says or don't fill the file.
    return safetensors.safe_open(path, framework='numpy')
  except (OSError, safetensors.SafetensorError) as e:
    raise errors.UserError(str(path), f'is damaged or cannot be read ({e})', 'get it again') from e


def _tensors(path: pathlib.Path) -> dict[str, tensors_lib.Tensor]:
  file, found = _open_file(path), {}
  for full_name in file.keys():  # noqa: SIM118 (no mapping)
    name, about = full_name.removeprefix(_PREFIX), file.get_slice(full_name)
    if _BUFFER.match(name):
      continue
    if about.get_dtype() not in _DTYPES:
      problem = f'{name} has type {about.get_dtype()}, must be one of {", ".join(_DTYPES)}'
      raise errors.UserError(str(path), problem)
    # Opened for each tensor: the parts of a mapped file that were read count as memory.
    read = functools.partial(lambda name: _open_file(path).get_tensor(name), full_name)
    found[name] = tensors_lib.Tensor(tuple(about.get_shape()), read)
  return found


def open_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer | None:
  """Returns the tokenizer in `directory`, None if it has none; raises `UserError`."""
  if (directory / TOKENIZER).is_file():
    return json_files.read_as(directory / TOKENIZER, tokenizers.from_dict)
  merges = directory / 'merges.txt'
  if merges.is_file() and bpe.is_gpt2(json_files.read_bytes(merges)):
    return tokenizers.build(config_lib.DataConfig(tokenizer=f'gpt2:{merges}'), {})
  if (directory / 'tokenizer.json').is_file():
    return tokenizers.build(config_lib.DataConfig(tokenizer=f'hf:{directory}'), {})
  return None


def write_model(
  directory: pathlib.Path,
  config: config_lib.ModelConfig,
  params: Any,
  tokenizer: tokenizers.Tokenizer | None,
) -> None:
  """Writes a directory that `transformers` loads as it is; raises `OSError`.

  The padding of the vocabulary is left out. A model without biases gets biases of 0.
  """
  directory.mkdir(parents=True, exist_ok=True)
  tensors = tensors_lib.export(config, params)
  for name, shape in tensors_lib.shapes(dataclasses.replace(config, bias=True)).items():
    tensors.setdefault(name, np.zeros(shape, np.float32))
  prefixed = {k if k == 'lm_head.weight' else _PREFIX + k: array for k, array in tensors.items()}
  # Hugging Face's own files have this mark. Not `save_file`: it writes private files.
  data = safetensors_numpy.save(prefixed, metadata={'format': 'pt'})
  atomic.write_bytes(directory / _WEIGHTS, data)
  if tokenizer is not None:
    _write_tokenizer(directory, config, tokenizer)
  bos_id, eos_id = (tokenizer.bos_id, tokenizer.eos_id) if tokenizer else (None, None)
  values = {
    'architectures': ['GPT2LMHeadModel'],
    'model_type': 'gpt2',
    **{name: getattr(config, key) for name, key in zip(_SIZES, tensors_lib.SIZES, strict=True)},
    'n_ctx': config.block_size,
    'n_inner': None,
    'bos_token_id': eos_id if bos_id is None else bos_id,
    'eos_token_id': eos_id,
    'tie_word_embeddings': config.tie_embeddings,
    **dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), config.dropout),
    'initializer_range': 0.02,
    'torch_dtype': 'float32',
    **{key: allowed[0] for key, allowed in _FIXED.items()},
  }
  atomic.write_json(directory / CONFIG, values)


def _write_tokenizer(
  directory: pathlib.Path, config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer
) -> None:
  """Writes our form, which `open_tokenizer` reads, and that of Hugging Face if there is one."""
  description = tokenizer.to_dict()
  atomic.write_json(directory / TOKENIZER, description)
  if tokenizer.kind == 'gpt2':
    merges = bpe.find_merges()
    atomic.write_bytes(directory / 'merges.txt', merges)
    atomic.write_json(directory / 'vocab.json', bpe.spelled_vocabulary(merges))
    values = {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': config.block_size}
    values |= dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')
    atomic.write_json(directory / 'tokenizer_config.json', values)
  elif tokenizer.kind == 'hf':
    atomic.write_bytes(directory / 'tokenizer.json', description['json'].encode())
    values = {'tokenizer_class': 'PreTrainedTokenizerFast'}
    values |= {f'{role}_token': token for role, token in description['special_tokens'].items()}
    atomic.write_json(directory / 'tokenizer_config.json', values)
