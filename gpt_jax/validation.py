"""What is wrong with a config: every problem at once, each with its key and what is allowed.

The limits of each knob stand in `config.py`; here are the rules between knobs.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors


def unknown_key(key: str) -> str:
  """The message for a key that no knob has, with the nearest one that exists."""
  known = [knob.key for knob in config_lib.knobs(config_lib.Config())]
  leaf = key.rpartition('.')[2]
  near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
  near = near or [k for k in known if k.rpartition('.')[2] == leaf]
  near = near or difflib.get_close_matches(key, known, n=1)
  hint = f'did you mean {near[0]}?' if near else 'see --help for all keys'
  return f'{key}: no such key; {hint}'


def problems(config: config_lib.Config) -> list[str]:
  """All that is wrong with `config`, a line each: key, bad value, what is allowed."""
  by_key = {knob.key: list(knob_problems(knob)) for knob in config_lib.knobs(config)}
  found = [line for lines in by_key.values() for line in lines]
  # A rule between keys assumes that each is sound by itself.
  for keys, rule in _RULES:
    if not any(by_key[key] for key in keys):
      found += rule(config)
  return found


def knob_problems(knob: config_lib.Knob) -> Iterator[str]:
  """What is wrong with a value by itself: type, choices, limits."""
  value, wanted = knob.value, knob.field.type
  if wanted is float and type(value) is int:
    value = float(value)
  if type(value) is not wanted:
    name = getattr(wanted, '__name__', wanted)
    yield f'{knob.key}: {value!r} is {type(value).__name__}, must be {name}'
    return
  if isinstance(value, float) and not math.isfinite(value):
    yield f'{knob.key}: {value} must be a finite number'
    return
  choices = knob.field.metadata['choices']
  if choices and value not in choices:
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f' (did you mean {near[0]}?)' if near else ''
    yield f'{knob.key}: {value!r} must be one of {", ".join(choices)}{hint}'
  limits = knob.field.metadata['limits']
  if not all(holds(value, limit) for limit, _, holds in limits):
    allowed = ' and '.join(f'{words} {limit}' for limit, words, _ in limits)
    yield f'{knob.key}: {value} must be {allowed}'


def _heads(config: config_lib.Config) -> Iterator[str]:
  model = config.model
  if model.n_embd % model.n_head:
    yield f'model.n_embd: {model.n_embd} must be divisible by model.n_head ({model.n_head})'


def _accumulation(config: config_lib.Config) -> Iterator[str]:
  size, parts = config.train.batch_size, config.train.gradient_accumulation
  if size % parts:
    yield f'train.batch_size: {size} must be divisible by train.gradient_accumulation ({parts})'


def _learning_rates(config: config_lib.Config) -> Iterator[str]:
  low, high = config.optimizer.min_learning_rate, config.optimizer.learning_rate
  if low > high:
    yield (f'optimizer.min_learning_rate: {low} must be at most optimizer.learning_rate ({high})')


def _wsd(config: config_lib.Config) -> Iterator[str]:
  optimizer = config.optimizer
  room = config.train.steps - optimizer.warmup_steps
  if optimizer.schedule == 'wsd' and not 1 <= optimizer.decay_steps <= room:
    yield (
      f'optimizer.decay_steps: {optimizer.decay_steps} must be from 1 to {room} for wsd '
      '(train.steps − optimizer.warmup_steps)'
    )


def _data_axis(config: config_lib.Config) -> Iterator[str]:
  if config.mesh.data == 0:
    yield 'mesh.data: 0 must be at least 1, or -1 for as many as fit'


def _cudnn(config: config_lib.Config) -> Iterator[str]:
  model = config.model
  if model.attention == 'cudnn' and (model.dtype != 'bfloat16' or model.dropout > 0):
    yield 'model.attention: cudnn needs model.dtype=bfloat16 and model.dropout=0'


def _tokenizer(config: config_lib.Config) -> Iterator[str]:
  value = config.data.tokenizer
  kind, colon, path = value.partition(':')
  kinds = ('char', 'byte', 'word', 'gpt2', 'gpt2:PATH', 'hf:PATH')
  if value not in kinds[:4] and not (kind in ('gpt2', 'hf') and path):
    near = difflib.get_close_matches(value, kinds[:4], n=1)
    hint = f' (did you mean {near[0]}?)' if near else ''
    yield f'data.tokenizer: {value!r} must be one of {", ".join(kinds)}{hint}'


def _special_tokens(config: config_lib.Config) -> Iterator[str]:
  allowed = {
    'char': ('bos', 'eos', 'pad', 'unk'),
    'byte': ('bos', 'eos', 'pad'),
    'word': ('bos', 'eos', 'pad', 'unk'),
  }.get(config.data.tokenizer, ())
  if any(_tokenizer(config)):
    return
  for name in config.data.special_tokens.split():
    if name not in allowed:
      choice = f'one of {", ".join(allowed)}' if allowed else 'empty'
      yield (
        f'data.special_tokens: {name!r} must be {choice} for data.tokenizer={config.data.tokenizer}'
      )


def _sentences(config: config_lib.Config) -> Iterator[str]:
  data, block_size = config.data, config.model.block_size
  if data.chunks != 'sentences':
    return
  if not data.min_length <= data.max_length <= block_size + 1:
    yield (
      f'data.max_length: {data.max_length} must be from data.min_length ({data.min_length}) to '
      f'{block_size + 1} (model.block_size + 1)'
    )
  if not data.sentence_end.split():
    yield 'data.sentence_end: must name a token at least, such as .'


def _packed_cudnn(config: config_lib.Config) -> Iterator[str]:
  if config.model.attention == 'cudnn' and config.data.chunks == 'packed':
    yield 'model.attention: cudnn cannot keep the documents of data.chunks=packed apart, xla can'


def _lora(config: config_lib.Config) -> Iterator[str]:
  rank, width = config.model.lora_rank, config.model.n_embd
  if rank > width:
    yield f'model.lora_rank: {rank} must be at most model.n_embd ({width})'
  if rank and not config.init_from:
    yield f'model.lora_rank: {rank} needs init_from, the weights that adapters are to adapt'


_RULES: tuple[tuple[tuple[str, ...], Callable[[config_lib.Config], Iterator[str]]], ...] = (
  (('model.n_embd', 'model.n_head'), _heads),
  (('train.batch_size', 'train.gradient_accumulation'), _accumulation),
  (('optimizer.learning_rate', 'optimizer.min_learning_rate'), _learning_rates),
  (
    ('train.steps', 'optimizer.schedule', 'optimizer.warmup_steps', 'optimizer.decay_steps'),
    _wsd,
  ),
  (('mesh.data',), _data_axis),
  (('model.attention', 'model.dtype', 'model.dropout'), _cudnn),
  (('data.tokenizer',), _tokenizer),
  (('data.tokenizer', 'data.special_tokens'), _special_tokens),
  (('data.chunks', 'data.min_length', 'data.max_length', 'model.block_size'), _sentences),
  (('model.attention', 'data.chunks'), _packed_cudnn),
  (('model.lora_rank', 'model.n_embd', 'init_from'), _lora),
)


def validate(config: config_lib.Config) -> None:
  """Raises `UserError` that lists every problem of `config`, if there is any."""
  fail(problems(config))


def fail(found: list[str]) -> None:
  """Raises `UserError` with all the lines of `found`, if there is any."""
  if len(found) == 1:
    raise errors.UserError(found[0])
  if found:
    head = f'{len(found)} things must be mended:'
    raise errors.UserError('\n'.join([head, *(f'  {line}' for line in found)]))


def from_dict(values: Mapping[str, Any]) -> config_lib.Config:
  """The inverse of `to_dict`; raises `UserError` for unknown keys and unsound values."""
  config = config_lib.Config()
  found: list[str] = []
  for room, leaves in values.items():
    section = getattr(config, room) if room in config.__dataclass_fields__ else None
    if section is not None and not dataclasses.is_dataclass(section):
      setattr(config, room, leaves)
      continue
    if section is None or not isinstance(leaves, Mapping):
      found.append(unknown_key(room))
      continue
    for name, value in leaves.items():
      if name in section.__dataclass_fields__:
        setattr(section, name, value)
      else:
        found.append(unknown_key(f'{room}.{name}'))
  fail(found)
  validate(config)
  return config
