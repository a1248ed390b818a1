"""Every knob of gpt_jax, once: its type, default, permitted values and a line of documentation.

A config file (see configs/) has a `get_config()` that returns a `Config`; flags like
`--config.model.n_layer=4` override it. This module imports nothing but the standard library, so
that `--help` and a wrong flag answer at once, and it sits below every other: all may read it.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpt_jax import errors


def _knob(
  default: Any,
  doc: str,
  *,
  at_least: float | None = None,
  at_most: float | None = None,
  above: float | None = None,
  below: float | None = None,
  choices: tuple[str, ...] | None = None,
) -> Any:
  """A dataclass field that carries its documentation and its permitted values."""
  limits = [
    (at_least, 'at least', lambda v, limit: v >= limit),
    (above, 'above', lambda v, limit: v > limit),
    (at_most, 'at most', lambda v, limit: v <= limit),
    (below, 'below', lambda v, limit: v < limit),
  ]
  limits = [(limit, words, holds) for limit, words, holds in limits if limit is not None]
  return dataclasses.field(
    default=default, metadata={'doc': doc, 'limits': limits, 'choices': choices}
  )


@dataclasses.dataclass(slots=True)
class ModelConfig:
  """The architecture: GPT-2 (Radford et al. 2019) and the options that keep it readable."""

  n_layer: int = _knob(12, 'Transformer blocks.', at_least=1)
  n_head: int = _knob(12, 'Attention heads in a block; must divide n_embd.', at_least=1)
  n_embd: int = _knob(768, 'Width of the residual stream.', at_least=1)
  block_size: int = _knob(1024, 'Context length, in tokens.', at_least=1)
  vocab_size: int = _knob(0, "Vocabulary entries; 0 takes the tokenizer's.", at_least=0)
  pad_vocab_to: int = _knob(
    128,
    'Embedding rows are rounded up to a multiple of this; padding is never predicted.',
    at_least=1,
  )
  dropout: float = _knob(0.0, 'Rate on embeddings, attention and residuals.', at_least=0, below=1)
  bias: bool = _knob(True, 'Biases in the linear layers and LayerNorms, as GPT-2 has them.')
  tie_embeddings: bool = _knob(True, 'Use the token embedding as the output layer too.')
  attention: str = _knob(
    'auto',
    'Attention kernel: auto is cudnn for bfloat16 without dropout on an NVIDIA GPU, else xla.',
    choices=('auto', 'xla', 'cudnn'),
  )
  dtype: str = _knob(
    'float32', 'Compute type; parameters stay float32.', choices=('float32', 'bfloat16')
  )
  remat: bool = _knob(False, 'Recompute each block in the backward pass: less memory, more time.')
  scan_layers: bool = _knob(
    False, 'Compile one block and scan it over the layers: faster to compile, slower to run.'
  )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the token embedding: `vocab_size` rounded up to a multiple of `pad_vocab_to`."""
    return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

  @property
  def head_width(self) -> int:
    return self.n_embd // self.n_head


@dataclasses.dataclass(slots=True)
class DataConfig:
  """Which text, cut into tokens how, and in what order it is seen."""

  source: str = _knob(
    'builtin:python-reference',
    'Text: builtin:python-reference, text:GLOB (UTF-8 files) or tfds:NAME.',
  )
  tokenizer: str = _knob('gpt2', 'Text to token ids.', choices=('char', 'byte', 'gpt2'))
  val_fraction: float = _knob(
    0.1, 'Share of the tokens, at the end of the corpus, kept for validation.', above=0, below=1
  )
  seed: int = _knob(0, 'Seed of the order in which text is seen.', at_least=0)
  cache_dir: str = _knob(
    '', 'Where token stores are kept; empty: gpt_jax in $XDG_CACHE_HOME or ~/.cache.'
  )


@dataclasses.dataclass(slots=True)
class TrainConfig:
  """How long and in what portions to train, and how often to look, measure and save."""

  steps: int = _knob(1000, 'Optimizer steps in the whole run.', at_least=1)
  batch_size: int = _knob(64, 'Sequences a step, over all devices and accumulation.', at_least=1)
  gradient_accumulation: int = _knob(
    1, 'Parts that a batch is computed in, to save memory; must divide batch_size.', at_least=1
  )
  seed: int = _knob(
    0, 'Seed of the initial parameters and of dropout.', at_least=0, at_most=2**32 - 1
  )
  log_every: int = _knob(10, 'Steps between training lines in metrics.jsonl.', at_least=1)
  eval_every: int = _knob(250, 'Steps between evaluations.', at_least=1)
  eval_batches: int = _knob(
    20, 'Batches in an evaluation, spread evenly over the validation tokens.', at_least=1
  )
  checkpoint_every: int = _knob(1000, 'Steps between checkpoints.', at_least=1)
  keep_checkpoints: int = _knob(
    2, 'Newest checkpoints kept, beside the one with the best validation loss.', at_least=1
  )
  tensorboard: bool = _knob(False, 'Write TensorBoard files too.')


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
  """AdamW (Loshchilov & Hutter 2019) and its learning-rate schedule."""

  learning_rate: float = _knob(6e-4, 'Peak learning rate.', above=0)
  min_learning_rate: float = _knob(6e-5, 'Learning rate at the end of the schedule.', at_least=0)
  warmup_steps: int = _knob(100, 'Steps of linear warm-up.', at_least=0)
  schedule: str = _knob(
    'cosine',
    'After the warm-up: wsd stays at the peak, then falls linearly over decay_steps.',
    choices=('cosine', 'linear', 'constant', 'wsd'),
  )
  decay_steps: int = _knob(0, 'Steps of the final fall of wsd.', at_least=0)
  weight_decay: float = _knob(0.1, 'Decoupled decay, on matrices and embeddings only.', at_least=0)
  b1: float = _knob(0.9, "Adam's first-moment decay.", at_least=0, below=1)
  b2: float = _knob(0.95, "Adam's second-moment decay.", at_least=0, below=1)
  clip: float = _knob(1.0, 'Largest global norm of the gradient; 0 does not clip.', at_least=0)


@dataclasses.dataclass(slots=True)
class MeshConfig:
  """How devices are arranged; the product must be the number of devices."""

  data: int = _knob(-1, 'Copies that each see other sequences; -1: as many as fit.', at_least=-1)
  fsdp: int = _knob(1, 'Parts that parameters and optimizer state are cut into.', at_least=1)
  tensor: int = _knob(1, 'Parts that heads, MLP and vocabulary are cut into.', at_least=1)
  cpu_devices: int = _knob(
    1,
    'Devices to make of the CPU where there is no accelerator; one a core is fastest for small '
    'models, and each holds a copy of the parameters.',
    at_least=1,
  )


@dataclasses.dataclass(slots=True)
class Config:
  """One experiment."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


@dataclasses.dataclass(frozen=True)
class Knob:
  """A leaf of the config: its dotted key, declaration and value."""

  key: str
  field: dataclasses.Field[Any]
  value: Any


def knobs(config: Any, prefix: str = '') -> Iterator[Knob]:
  """Every leaf of `config`, in the order of declaration."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from knobs(value, f'{prefix}{field.name}.')
    else:
      yield Knob(prefix + field.name, field, value)


def unknown_key(key: str) -> str:
  """The message for a key that no knob has, with the nearest one that exists."""
  known = [knob.key for knob in knobs(Config())]
  leaf = key.rpartition('.')[2]
  near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
  near = near or [k for k in known if k.rpartition('.')[2] == leaf]
  near = near or difflib.get_close_matches(key, known, n=1)
  hint = f'did you mean {near[0]}?' if near else 'see --help for all keys'
  return f'{key}: no such key; {hint}'


def problems(config: Config) -> list[str]:
  """All that is wrong with `config`, a line each: key, bad value, what is allowed."""
  by_key = {knob.key: list(_knob_problems(knob)) for knob in knobs(config)}
  found = [line for lines in by_key.values() for line in lines]
  # A rule between keys assumes that each is sound by itself.
  for keys, rule in _RULES:
    if not any(by_key[key] for key in keys):
      found += rule(config)
  return found


def _knob_problems(knob: Knob) -> Iterator[str]:
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
  for limit, words, holds in knob.field.metadata['limits']:
    if not holds(value, limit):
      yield f'{knob.key}: {value} must be {words} {limit}'


def _heads(config: Config) -> Iterator[str]:
  model = config.model
  if model.n_embd % model.n_head:
    yield f'model.n_embd: {model.n_embd} must be divisible by model.n_head ({model.n_head})'


def _accumulation(config: Config) -> Iterator[str]:
  size, parts = config.train.batch_size, config.train.gradient_accumulation
  if size % parts:
    yield f'train.batch_size: {size} must be divisible by train.gradient_accumulation ({parts})'


def _learning_rates(config: Config) -> Iterator[str]:
  low, high = config.optimizer.min_learning_rate, config.optimizer.learning_rate
  if low > high:
    yield (f'optimizer.min_learning_rate: {low} must be at most optimizer.learning_rate ({high})')


def _wsd(config: Config) -> Iterator[str]:
  optimizer = config.optimizer
  room = config.train.steps - optimizer.warmup_steps
  if optimizer.schedule == 'wsd' and not 1 <= optimizer.decay_steps <= room:
    yield (
      f'optimizer.decay_steps: {optimizer.decay_steps} must be from 1 to {room} for wsd '
      '(train.steps − optimizer.warmup_steps)'
    )


def _data_axis(config: Config) -> Iterator[str]:
  if config.mesh.data == 0:
    yield 'mesh.data: 0 must be at least 1, or -1 for as many as fit'


def _cudnn(config: Config) -> Iterator[str]:
  model = config.model
  if model.attention == 'cudnn' and (model.dtype != 'bfloat16' or model.dropout > 0):
    yield 'model.attention: cudnn needs model.dtype=bfloat16 and model.dropout=0'


_RULES: tuple[tuple[tuple[str, ...], Callable[[Config], Iterator[str]]], ...] = (
  (('model.n_embd', 'model.n_head'), _heads),
  (('train.batch_size', 'train.gradient_accumulation'), _accumulation),
  (('optimizer.learning_rate', 'optimizer.min_learning_rate'), _learning_rates),
  (
    ('train.steps', 'optimizer.schedule', 'optimizer.warmup_steps', 'optimizer.decay_steps'),
    _wsd,
  ),
  (('mesh.data',), _data_axis),
  (('model.attention', 'model.dtype', 'model.dropout'), _cudnn),
)


def validate(config: Config) -> None:
  """Raises `UserError` that lists every problem of `config`, if there is any."""
  fail(problems(config))


def fail(found: list[str]) -> None:
  """Raises `UserError` with all the lines of `found`, if there is any."""
  if found:
    head = 'this cannot be run:' if len(found) == 1 else f'{len(found)} things must be mended:'
    raise errors.UserError('\n'.join([head, *(f'  {line}' for line in found)]))


def to_dict(config: Config) -> dict[str, Any]:
  """`config` as nested plain values, for JSON."""
  return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> Config:
  """The inverse of `to_dict`; raises `UserError` for unknown keys and unsound values."""
  config = Config()
  found: list[str] = []
  for room, leaves in values.items():
    if room not in config.__dataclass_fields__ or not isinstance(leaves, Mapping):
      found.append(unknown_key(room))
      continue
    section = getattr(config, room)
    for name, value in leaves.items():
      if name in section.__dataclass_fields__:
        setattr(section, name, value)
      else:
        found.append(unknown_key(f'{room}.{name}'))
  fail(found)
  validate(config)
  return config
