"""Configs from files, overrides and JSON, and every problem with one, reported at once.

Limits of single values are in `config.py`; the rules between values are here.
"""

import dataclasses
import pathlib
import runpy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs

_DEFAULT = config_lib.Config()
# Key -> type of every knob.
TYPES: dict[str, Any] = {k.key: k.field.type for k in knobs.knobs(_DEFAULT)}
_Rule = Callable[[config_lib.Config], Iterator[errors.UserError]]


def load(path: pathlib.Path) -> config_lib.Config:
  """Executes a config file and returns its config, not validated yet; raises `UserError`."""
  try:
    config = runpy.run_path(str(path))['get_config']()
  except Exception as e:  # a config file is a program: any exception in it is the user's
    last = str(e).strip().splitlines()[-1:] or ['']
    raise errors.UserError('config', f'{path} fails: {type(e).__name__}: {last[0]}') from e
  if not isinstance(config, config_lib.Config):
    raise errors.UserError('config', f'get_config() in {path} must return a gpt_jax.config.Config')
  return config


def override(
  config: config_lib.Config, values: Mapping[str, str]
) -> tuple[config_lib.Config, list[errors.UserError]]:
  """Replaces values that are given as text by dotted key.

  Returns:
    The new config, and an error for each text of the wrong type.
  """
  parsed, found = {}, []
  for key, text in values.items():
    try:
      parsed[key] = knobs.parse(key, TYPES[key], text)
    except errors.UserError as e:
      found.append(e)
  return knobs.replace(config, parsed), found


def from_dict(values: Mapping[str, Any]) -> config_lib.Config:
  """The inverse of `dataclasses.asdict`; raises `UserError` for unknown keys and invalid values."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    is_section = isinstance(value, dict) and dataclasses.is_dataclass(getattr(_DEFAULT, name, None))
    flat |= {f'{name}.{key}': v for key, v in value.items()} if is_section else {name: value}
  errors.raise_all([unknown_key(key) for key in flat if key not in TYPES])
  config: config_lib.Config = knobs.replace(_DEFAULT, flat)
  validate(config)
  return config


def unknown_key(key: str) -> errors.UserError:
  """The error for a key that no knob has, with the nearest one that exists."""
  hint = knobs.suggestion(key, TYPES) or 'see --help for all keys'
  return errors.UserError(key, 'no such key', hint)


def validate(config: config_lib.Config) -> None:
  """Raises `UserError` with every problem of `config`, if there are any."""
  errors.raise_all(problems(config))


def problems(config: config_lib.Config) -> list[errors.UserError]:
  """Returns everything that is wrong with `config`."""
  by_key = {knob.key: list(knobs.problems(knob)) for knob in knobs.knobs(config)}
  found = [error for each in by_key.values() for error in each]
  # A rule between keys assumes that each of them is valid by itself.
  for keys, rule in _RULES.items():
    if not any(by_key[key] for key in keys):
      found += rule(config)
  return found


def _heads(config: config_lib.Config) -> Iterator[errors.UserError]:
  model = config.model
  if model.n_embd % model.n_head:
    yield errors.UserError(
      'model.n_embd', f'{model.n_embd} must be divisible by `model.n_head` ({model.n_head})'
    )


def _accumulation(config: config_lib.Config) -> Iterator[errors.UserError]:
  size, parts = config.train.batch_size, config.train.gradient_accumulation
  if size % parts:
    yield errors.UserError(
      'train.batch_size', f'{size} must be divisible by `train.gradient_accumulation` ({parts})'
    )


def _learning_rates(config: config_lib.Config) -> Iterator[errors.UserError]:
  low, high = config.optimizer.min_learning_rate, config.optimizer.learning_rate
  if low > high and config.optimizer.schedule != 'constant':
    yield errors.UserError(
      'optimizer.min_learning_rate', f'{low} must be at most `optimizer.learning_rate` ({high})'
    )


def _wsd(config: config_lib.Config) -> Iterator[errors.UserError]:
  optimizer = config.optimizer
  room = config.train.steps - optimizer.warmup_steps
  if optimizer.schedule == 'wsd' and not 1 <= optimizer.decay_steps <= room:
    yield errors.UserError(
      'optimizer.decay_steps',
      f'{optimizer.decay_steps} must be from 1 to {room} for wsd '
      '(`train.steps` − `optimizer.warmup_steps`)',
    )


def _data_axis(config: config_lib.Config) -> Iterator[errors.UserError]:
  if config.mesh.data == 0:
    yield errors.UserError('mesh.data', '0 must be at least 1, or -1 for as many as fit')


def _cudnn(config: config_lib.Config) -> Iterator[errors.UserError]:
  model = config.model
  if model.attention != 'cudnn':
    return
  if model.dtype != 'bfloat16' or model.dropout > 0:
    yield errors.UserError(
      'model.attention', 'cudnn needs `model.dtype=bfloat16` and `model.dropout=0`'
    )
  if config.data.chunks == 'packed':
    yield errors.UserError(
      'model.attention',
      'cudnn cannot keep packed documents apart',
      'use xla, or other `data.chunks`',
    )


def _tokenizer(config: config_lib.Config) -> Iterator[errors.UserError]:
  value, plain = config.data.tokenizer, ('char', 'byte', 'word', 'gpt2')
  kind, _, path = value.partition(':')
  if value not in plain and not (kind in ('gpt2', 'hf') and path):
    yield errors.UserError(
      'data.tokenizer',
      f'{value!r} must be one of {", ".join(plain)}, gpt2:PATH, hf:PATH',
      knobs.suggestion(value, plain),
    )


def _special_tokens(config: config_lib.Config) -> Iterator[errors.UserError]:
  allowed = {
    'char': ('bos', 'eos', 'pad', 'unk'),
    'byte': ('bos', 'eos', 'pad'),
    'word': ('bos', 'eos', 'pad', 'unk'),
  }.get(config.data.tokenizer, ())
  for name in config.data.special_tokens.split():
    if name not in allowed and not any(_tokenizer(config)):
      choice = f'one of {", ".join(allowed)}' if allowed else 'empty'
      yield errors.UserError(
        'data.special_tokens',
        f'{name!r} must be {choice} for `data.tokenizer={config.data.tokenizer}`',
      )


def _sentences(config: config_lib.Config) -> Iterator[errors.UserError]:
  data, block_size = config.data, config.model.block_size
  if data.chunks != 'sentences':
    return
  if not data.min_length <= data.max_length <= block_size + 1:
    yield errors.UserError(
      'data.max_length',
      f'{data.max_length} must be from `data.min_length` ({data.min_length}) to {block_size + 1} '
      '(`model.block_size` + 1)',
    )
  if not data.sentence_end.split():
    yield errors.UserError('data.sentence_end', 'must name at least one token, such as .')


def _lora(config: config_lib.Config) -> Iterator[errors.UserError]:
  rank, width = config.model.lora_rank, config.model.n_embd
  if rank > width:
    yield errors.UserError('model.lora_rank', f'{rank} must be at most `model.n_embd` ({width})')
  if rank and not config.init_from:
    yield errors.UserError('model.lora_rank', f'{rank} needs `init_from`, the model to adapt')


_RULES: dict[tuple[str, ...], _Rule] = {
  ('model.n_embd', 'model.n_head'): _heads,
  ('train.batch_size', 'train.gradient_accumulation'): _accumulation,
  ('optimizer.learning_rate', 'optimizer.min_learning_rate', 'optimizer.schedule'): _learning_rates,
  ('train.steps', 'optimizer.schedule', 'optimizer.warmup_steps', 'optimizer.decay_steps'): _wsd,
  ('mesh.data',): _data_axis,
  ('model.attention', 'model.dtype', 'model.dropout', 'data.chunks'): _cudnn,
  ('data.tokenizer',): _tokenizer,
  ('data.tokenizer', 'data.special_tokens'): _special_tokens,
  ('data.chunks', 'data.min_length', 'data.max_length', 'model.block_size'): _sentences,
  ('model.lora_rank', 'model.n_embd', 'init_from'): _lora,
}
