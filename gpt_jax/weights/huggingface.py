"""Model directories of Hugging Face: `config.json`, safetensors, tokenizer files."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import bpe
from gpt_jax.weights import published, safetensors_files

CONFIG = 'config.json'
TOKENIZER = 'gpt_jax_tokenizer.json'  # any tokenizer of ours, beside the files of Hugging Face
_PREFIX = 'transformer.'
# Masks that older versions of transformers saved as if they were weights.
_BUFFER = re.compile(r'h\.\d+\.attn\.(bias|masked_bias)$')

# Options that change what is computed: ours has these values only. The two names are one function.
_GELU = ('gelu_new', 'gelu_pytorch_tanh')
_FIXED: dict[str, tuple[Any, ...]] = {
  'activation_function': _GELU,
  'layer_norm_epsilon': (1e-5,),
  'scale_attn_weights': (True,),
  'scale_attn_by_inverse_layer_idx': (False,),
  'reorder_and_upcast_attn': (False,),
  'add_cross_attention': (False,),
}


def is_model(directory: pathlib.Path) -> bool:
  """Whether `directory` has the config of a Hugging Face model, of any kind."""
  try:
    return 'model_type' in json.loads((directory / CONFIG).read_bytes())
  except (OSError, ValueError, TypeError):
    return False


def open_model(directory: pathlib.Path) -> published.Published:
  """The model in `directory`, its tensors not read yet.

  Raises:
    UserError: It isn't GPT-2, has an option that this model doesn't have, or is damaged.
  """
  values = json.loads((directory / CONFIG).read_bytes())
  tensors = {
    name.removeprefix(_PREFIX): tensor
    for name, tensor in safetensors_files.open_tensors(directory).items()
  }
  tensors = {name: tensor for name, tensor in tensors.items() if not _BUFFER.match(name)}
  config = _model_config(directory / CONFIG, values)
  if config.tie_embeddings:
    tensors.pop('lm_head.weight', None)  # some writers save it a second time
  model = published.Published(str(directory), config, tensors)
  model.check()
  return model


def _model_config(path: pathlib.Path, values: dict[str, Any]) -> config_lib.ModelConfig:
  if values['model_type'] != 'gpt2':
    raise errors.UserError(f'{path}: model_type is {values["model_type"]}, only gpt2 can be read.')
  found = [
    f'{key} is {values[key]!r}, only {allowed[0]!r} can be read'
    for key, allowed in _FIXED.items()
    if key in values and values[key] not in allowed
  ]
  try:
    sizes = {
      'n_layer': values['n_layer'],
      'n_head': values['n_head'],
      'n_embd': values['n_embd'],
      'block_size': values['n_positions'],
      'vocab_size': values['vocab_size'],
    }
  except KeyError as e:
    raise errors.UserError(f'{path} is damaged: it has no {e}.') from e
  found += [f'{k} is {v!r}, must be at least 1' for k, v in sizes.items() if not _positive(v)]
  if not found and sizes['n_embd'] % sizes['n_head']:
    found.append(f'n_embd ({sizes["n_embd"]}) is not divisible by n_head ({sizes["n_head"]})')
  inner = values.get('n_inner')
  if not found and inner not in (None, 4 * sizes['n_embd']):
    found.append(f'n_inner is {inner}, only {4 * sizes["n_embd"]} (4 · n_embd) can be read')
  if found:
    raise errors.UserError(f'{path}: ' + '; '.join(found) + '.')
  return config_lib.ModelConfig(
    **sizes, pad_vocab_to=1, tie_embeddings=values.get('tie_word_embeddings', True)
  )


def _positive(value: Any) -> bool:
  return type(value) is int and value >= 1


def write_model(
  directory: pathlib.Path,
  config: config_lib.ModelConfig,
  params: Any,
  tokenizer: tokenizers.Tokenizer | None,
) -> None:
  """Writes a directory that `transformers` loads as it is: `GPT2LMHeadModel` and its tokenizer.

  The padding of the vocabulary is left out. A model without biases gets biases of 0.

  Raises:
    OSError: The directory can't be written.
  """
  directory.mkdir(parents=True, exist_ok=True)
  shapes = dict(published.shapes(dataclasses.replace(config, bias=True)))
  tensors = _with_biases(published.tensors(config, params), shapes)
  safetensors_files.write(
    directory / safetensors_files.FILE,
    {_prefixed(name): shape for name, shape in shapes.items()},
    ((_prefixed(name), values) for name, values in tensors),
  )
  _write_json(directory / CONFIG, _config_values(config, tokenizer))
  if tokenizer is not None:
    _write_tokenizer(directory, config, tokenizer)


def _with_biases(
  tensors: Iterator[tuple[str, np.ndarray]], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
  """`tensors`, then zeros for those of `shapes` that weren't among them."""
  missing = dict(shapes)
  for name, values in tensors:
    del missing[name]
    yield name, values
  for name, shape in missing.items():
    yield name, np.zeros(shape, np.float32)


def _prefixed(name: str) -> str:
  return name if name == 'lm_head.weight' else _PREFIX + name


def _config_values(
  config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer | None
) -> dict[str, Any]:
  end_of_text = tokenizer.end_of_text if tokenizer else None
  start_of_text = tokenizer.start_of_text if tokenizer else None
  return {
    'architectures': ['GPT2LMHeadModel'],
    'model_type': 'gpt2',
    'n_layer': config.n_layer,
    'n_head': config.n_head,
    'n_embd': config.n_embd,
    'n_positions': config.block_size,
    'n_ctx': config.block_size,
    'n_inner': None,
    'vocab_size': config.vocab_size,
    'bos_token_id': end_of_text if start_of_text is None else start_of_text,
    'eos_token_id': end_of_text,
    'tie_word_embeddings': config.tie_embeddings,
    'resid_pdrop': config.dropout,
    'embd_pdrop': config.dropout,
    'attn_pdrop': config.dropout,
    'initializer_range': 0.02,
    'torch_dtype': 'float32',
    **{key: allowed[0] for key, allowed in _FIXED.items()},
  }


def _write_tokenizer(
  directory: pathlib.Path, config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer
) -> None:
  """In the form of Hugging Face where there is one, and in ours, which `open_tokenizer` reads."""
  _write_json(directory / TOKENIZER, tokenizer.to_dict())
  if tokenizer.kind == 'gpt2':
    merges = bpe.find_merges()
    (directory / 'merges.txt').write_bytes(merges)
    _write_json(directory / 'vocab.json', bpe.spelled_vocabulary(merges))
    end = '<|endoftext|>'
    names = {'bos_token': end, 'eos_token': end, 'unk_token': end}
    values = {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': config.block_size, **names}
    _write_json(directory / 'tokenizer_config.json', values)
  elif tokenizer.kind == 'hf':
    description = tokenizer.to_dict()
    (directory / 'tokenizer.json').write_text(description['json'], encoding='utf-8')
    special_tokens = {f'{role}_token': t for role, t in description['special_tokens'].items()}
    values = {'tokenizer_class': 'PreTrainedTokenizerFast', **special_tokens}
    _write_json(directory / 'tokenizer_config.json', values)


def _write_json(path: pathlib.Path, values: Any) -> None:
  path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def open_tokenizer(directory: pathlib.Path) -> tokenizers.Tokenizer | None:
  """The tokenizer in `directory`, or None if it has none that can be read here.

  Raises:
    UserError: Its file is damaged, or needs the `tokenizers` package, which is missing.
  """
  if (directory / TOKENIZER).is_file():
    return tokenizers.from_dict(json.loads((directory / TOKENIZER).read_bytes()))
  merges = directory / 'merges.txt'
  if merges.is_file() and bpe.is_gpt2(merges.read_bytes()):
    return tokenizers.build(config_lib.DataConfig(tokenizer=f'gpt2:{merges}'), {})
  if (directory / 'tokenizer.json').is_file():
    return tokenizers.build(config_lib.DataConfig(tokenizer=f'hf:{directory}'), {})
  return None
