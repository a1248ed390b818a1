"""Configs from files, overrides and JSON, and every problem with one, reported at once.

Limits of single values are in `config.py`; the rules between values are here.
"""

import dataclasses
import pathlib
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs

_DEFAULT = config_lib.Config()
# Key -> type of every knob.
TYPES: dict[str, Any] = {k.key: k.field.type for k in knobs.knobs(_DEFAULT)}


def load(path: pathlib.Path) -> config_lib.Config:
  """Executes a config file and returns its config, not validated yet; raises `UserError`."""
  fix = 'configs/quickstart.py is one that works'
  try:
    values = runpy.run_path(str(path))
    config = values['get_config']() if 'get_config' in values else None
  except (Exception, SystemExit) as e:  # a config file is a program: any in it is the user's
    frames = traceback.extract_tb(e.__traceback__)
    line = [f', line {frame.lineno},' for frame in frames if frame.filename == str(path)][-1:]
    last = str(e).strip().splitlines()[-1:]
    problem = f'{path}{"".join(line)} fails: {": ".join([type(e).__name__, *last])}'
    raise errors.UserError('config', problem, fix) from e
  if not isinstance(config, config_lib.Config):
    problem = f'{path} must have a get_config() that returns a gpt_jax.config.Config'
    raise errors.UserError('config', problem, fix)
  if not _has_sections(config):
    validate(config)
  return config


def _has_sections(config: config_lib.Config) -> bool:
  """Returns whether each section has its type: else neither rules nor overrides find the keys."""
  return {knob.key for knob in knobs.knobs(config)} == set(TYPES)


def override(
  config: config_lib.Config, values: Mapping[str, str]
) -> tuple[config_lib.Config, list[errors.UserError]]:
  """Replaces values that are given as text by dotted key.

  Returns the new config, and an error for each text of the wrong type.
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
  near = {key: knobs.suggestion(key, TYPES) for key in flat if key not in TYPES}
  fix = 'see --help for all keys'
  errors.raise_all([errors.UserError(key, 'no such key', near[key] or fix) for key in near])
  config: config_lib.Config = knobs.replace(_DEFAULT, flat)
  validate(config)
  return config


def validate(config: config_lib.Config) -> None:
  """Raises `UserError` with every problem of `config`, if there are any."""
  errors.raise_all(problems(config))


def problems(config: config_lib.Config) -> list[errors.UserError]:
  """Returns everything that is wrong with `config`."""
  if not isinstance(config, config_lib.Config):
    return [errors.UserError('config', f'{config!r:.80} must be a gpt_jax.config.Config')]
  by_key = {knob.key: list(knobs.problems(knob)) for knob in knobs.knobs(config)}

  def valid(*keys: str) -> bool:
    return not any(by_key[key] for key in keys)

  found = [error for each in by_key.values() for error in each]
  every = (_model_rules, _data_rules, _span_rules, _training_rules)
  for rules in every if _has_sections(config) else ():
    found += rules(config, valid)
  return found


# The kinds of models that can learn a task.
_KINDS = {
  'next_token': ('gpt', 'lstm'),
  'classify': ('gpt', 'lstm', 'encoder'),
  'masked': ('encoder',),
  'instruct': ('gpt', 'lstm'),
  'translate': ('encoder_decoder',),
  'spans': ('encoder_decoder',),
}

_TRACKERS = ('wandb', 'trackio', 'mlflow')

# Rules between keys. Each assumes that its keys are valid by themselves.
_Errors = Iterator[errors.UserError]
_Valid = Callable[..., bool]


def _model_rules(config: config_lib.Config, valid: _Valid) -> _Errors:
  model, rank = config.model, config.model.lora_rank
  if valid('task', 'model.kind') and model.kind not in _KINDS[config.task]:
    problem = f'{model.kind} must be {" or ".join(_KINDS[config.task])} for `task={config.task}`'
    yield errors.UserError('model.kind', problem)
  if model.kind == 'lstm':
    for key, wanted in (('tie_embeddings', False), ('lora_rank', 0), ('scan_layers', False)):
      if valid(f'model.{key}') and (value := getattr(model, key)) != wanted:
        problem = f'{value!r} must be {wanted!r} for `model.kind=lstm`'
        yield errors.UserError(f'model.{key}', problem)
  elif valid('model.n_embd', 'model.n_head') and model.n_embd % model.n_head:
    problem = f'{model.n_embd} must be divisible by `model.n_head` ({model.n_head})'
    yield errors.UserError('model.n_embd', problem)
  keys = ('model.attention', 'model.dtype', 'model.dropout', 'data.chunks')
  if valid(*keys) and model.attention == 'cudnn':
    if model.dtype != 'bfloat16' or model.dropout > 0:
      problem = 'cudnn needs `model.dtype=bfloat16` and `model.dropout=0`'
      yield errors.UserError('model.attention', problem)
    if config.has_segments:
      problem, fix = 'cudnn cannot keep parts of a row apart', 'use xla, or other `data.chunks`'
      yield errors.UserError('model.attention', problem, fix)
  is_plain = model.kind != 'encoder_decoder' or model.attention in ('auto', 'xla')
  if valid('model.attention', 'model.kind') and not is_plain:
    problem = f'{model.attention} must be auto or xla for `model.kind=encoder_decoder`'
    yield errors.UserError('model.attention', problem)
  is_splash = valid(*keys, 'model.block_size', 'data.row_length') and model.attention == 'splash'
  if is_splash and (model.dropout > 0 or config.row_length % 128):
    problem = 'splash needs `model.dropout=0` and rows of a multiple of 128 tokens'
    yield errors.UserError('model.attention', problem)
  if valid('model.lora_rank', 'model.n_embd', 'init_from'):
    if rank > model.n_embd:
      problem = f'{rank} must be at most `model.n_embd` ({model.n_embd})'
      yield errors.UserError('model.lora_rank', problem)
    if model.freeze_body and not (config.init_from and config.task == 'classify'):
      problem = 'needs `task=classify` and `init_from`, the model to classify with'
      yield errors.UserError('model.freeze_body', problem)
    if model.classes and config.task != 'classify':
      yield errors.UserError('model.classes', f'{model.classes!r} needs `task=classify`')
    if rank and not config.init_from:
      yield errors.UserError('model.lora_rank', f'{rank} needs `init_from`, the model to adapt')


def _data_rules(config: config_lib.Config, valid: _Valid) -> _Errors:
  data, most = config.data, config.model.block_size
  if valid('data.label_field', 'task') and config.task == 'classify' and not data.label_field:
    problem = 'must name the field that holds the class, such as label, for `task=classify`'
    yield errors.UserError('data.label_field', problem)
  if valid('data.template', 'data.label_field', 'task'):
    if config.task == 'translate' and data.template != '{prompt}':
      problem = f'{data.template!r} must be {{prompt}} for `task=translate`'
      yield errors.UserError('data.template', problem)
    elif config.task == 'instruct' and '{prompt}' not in data.template:
      problem = f'{data.template!r} must hold {{prompt}} for `task={config.task}`'
      yield errors.UserError('data.template', problem, "such as 'Q: {prompt} A: '")
    if data.template and config.task not in ('instruct', 'translate'):
      yield errors.UserError('data.template', f'{data.template!r} needs `task=instruct`')
    if data.template and data.label_field:
      yield errors.UserError('data.label_field', 'cannot be combined with `data.template`')
  for key, value in (('data.lowercase', data.lowercase), ('model.clusters', config.model.clusters)):
    if valid(key, 'data.tokenizer') and value and data.tokenizer != 'word':
      yield errors.UserError(key, f'{value} needs `data.tokenizer=word`')
  clusters = config.model.clusters if valid('model.clusters') else ''
  ids = clusters.split(',') if clusters else []
  if not all(map(str.isdecimal, ids)) or (numbers := [*map(int, ids)]) != sorted({*numbers} - {0}):
    problem = f'{clusters!r} must be ascending numbers, such as 4096,16384'
    yield errors.UserError('model.clusters', problem)
  if valid('data.row_length', 'model.block_size') and 0 < data.row_length < most:
    problem = f'{data.row_length} must be 0 or at least `model.block_size` ({most})'
    yield errors.UserError('data.row_length', problem)
  if valid('data.tokenizer'):
    plain = ('char', 'byte', 'word', 'gpt2')
    kind, _, path = data.tokenizer.partition(':')
    if data.tokenizer not in plain and not (kind in ('gpt2', 'hf') and path):
      problem = f'{data.tokenizer!r} must be one of {", ".join(plain)}, gpt2:PATH, hf:PATH'
      yield errors.UserError('data.tokenizer', problem, knobs.suggestion(data.tokenizer, plain))
    elif valid('data.special_tokens'):
      every = ('bos', 'eos', 'pad', 'unk', 'mask')
      allowed = {'char': every, 'byte': (*every[:3], 'mask'), 'word': every}.get(kind, ())
      choice = f'one of {", ".join(allowed)} (separate several by spaces)' if allowed else 'empty'
      for name in data.special_tokens.split():
        if name not in allowed:
          problem = f'{name!r} must be {choice} for `data.tokenizer={data.tokenizer}`'
          yield errors.UserError('data.special_tokens', problem)
      if valid('task') and config.task in ('masked', 'spans') and kind != 'hf':
        if kind == 'gpt2':
          fix = 'use word, byte or char, with `data.special_tokens=mask`'
          yield errors.UserError('data.tokenizer', 'gpt2 has no token to mask others with', fix)
        elif 'mask' not in data.special_tokens.split():
          problem = f'{data.special_tokens!r} must name mask for `task={config.task}`'
          yield errors.UserError('data.special_tokens', problem)
  keys = ('data.chunks', 'data.min_length', 'data.max_length', 'model.block_size')
  if valid(*keys, 'data.sentence_end') and data.chunks == 'sentences':
    if not data.min_length <= data.max_length <= most + 1:
      problem = f'{data.max_length} must be from `data.min_length` ({data.min_length}) to '
      problem += f'{most + 1} (`model.block_size` + 1)'
      yield errors.UserError('data.max_length', problem)
    if not data.sentence_end.split():
      yield errors.UserError('data.sentence_end', 'must name at least one token, such as .')


def _span_rules(config: config_lib.Config, valid: _Valid) -> _Errors:
  if valid('task', 'data.chunks', 'model.block_size') and config.task == 'spans':
    if config.has_segments:
      problem = f'{config.data.chunks} must be windows or partition for `task=spans`'
      yield errors.UserError('data.chunks', problem)
    if (most := config.model.block_size) < 3:
      yield errors.UserError('model.block_size', f'{most} must be at least 3 for `task=spans`')


def _training_rules(config: config_lib.Config, valid: _Valid) -> _Errors:
  train, optimizer = config.train, config.optimizer
  size, parts = train.batch_size, train.gradient_accumulation
  if valid('train.batch_size', 'train.gradient_accumulation') and size % parts:
    problem = f'{size} must be divisible by `train.gradient_accumulation` ({parts})'
    yield errors.UserError('train.batch_size', problem)
  if valid('optimizer.learning_rate', 'optimizer.min_learning_rate', 'optimizer.schedule'):
    low, high = optimizer.min_learning_rate, optimizer.learning_rate
    if low > high and optimizer.schedule != 'constant':
      problem = f'{low} must be at most `optimizer.learning_rate` ({high})'
      yield errors.UserError('optimizer.min_learning_rate', problem)
  keys = ('optimizer.schedule', 'optimizer.warmup_steps', 'optimizer.decay_steps')
  if valid('train.steps', *keys) and optimizer.schedule == 'wsd':
    room = train.steps - optimizer.warmup_steps
    if room < 1:
      problem = f'{optimizer.warmup_steps} must be below `train.steps` ({train.steps}) for wsd'
      yield errors.UserError('optimizer.warmup_steps', problem)
    elif not 1 <= optimizer.decay_steps <= room:
      problem = f'{optimizer.decay_steps} must be from 1 to {room} for wsd '
      problem += '(`train.steps` − `optimizer.warmup_steps`)'
      yield errors.UserError('optimizer.decay_steps', problem)
  for name in train.trackers.split() if valid('train.trackers') else ():
    if name not in _TRACKERS:
      problem = f'{name!r} must be one of {", ".join(_TRACKERS)} (separate several by spaces)'
      yield errors.UserError('train.trackers', problem)
  if valid('mesh.data') and config.mesh.data == 0:
    yield errors.UserError('mesh.data', '0 must be at least 1, or -1 for as many as fit')
