"""How to measure: options and what may be wrong with them, known before JAX is imported."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs
from gpt_jax.knobs import knob as _knob

MODES = ('train', 'decode', 'data', 'startup', 'matmul')
_PEERS = {'nanogpt': ('train', 'startup'), 'transformers': ('decode',)}  # and their modes


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of `gpt_jax.bench`."""

  repeats: int = _knob(5, 'Repetitions after the warm-up; with a peer, rounds.', at_least=1)
  steps: int = _knob(10, 'Steps, batches or products in a repetition.', at_least=1)
  rows: str = _knob('1,8', 'decode: how many texts at once, separated by commas.')
  prompt_tokens: int = _knob(16, 'decode: tokens of each prompt.', at_least=1)
  new_tokens: int = _knob(128, 'decode: tokens generated for each prompt.', at_least=2)
  model: str = _knob('', 'decode: workdir or directory of a model; empty: random parameters.')
  dtype: str = _knob(
    'auto', 'decode: type of the weights.', choices=('auto', 'float32', 'bfloat16', 'int8')
  )
  trace: str = _knob('', 'train: folder for a profile of some steps, of which a table is printed.')
  peer: str = _knob(
    '',
    'What to measure in turn with gpt_jax: nanogpt:FOLDER, a checkout of nanoGPT (train, startup), '
    'or transformers (decode).',
  )
  peer_python: str = _knob('python3', 'The Python of the peer, which has PyTorch.')
  peer_compile: bool = _knob(
    False, 'Let PyTorch compile the peer; transformers then has a static cache.'
  )

  @property
  def row_counts(self) -> list[int]:
    return [int(text) for text in self.rows.split(',')]


def problems(mode: str, config: config_lib.Config, options: Options) -> Iterator[errors.UserError]:
  """Yields what is wrong with the options, for this mode and config."""
  for knob in knobs.knobs(options):
    yield from knobs.problems(knob)
  if mode not in MODES:
    problem = f'{mode!r} must be one of {", ".join(MODES)}'
    yield errors.UserError('mode', problem, knobs.suggestion(mode, MODES))
    return
  if not all(text.isdecimal() and int(text) for text in options.rows.split(',')):
    yield errors.UserError('rows', f'{options.rows!r} must be numbers of texts, such as 1,8')
  for name, only in (('trace', 'train'), ('model', 'decode')):
    if getattr(options, name) and (mode != only or options.peer):
      yield errors.UserError(name, f'is only for {only}, without `peer`')
  if options.dtype != 'auto' and mode != 'decode':
    yield errors.UserError('dtype', 'is only for decode')
  is_gpt = config.model.kind == 'gpt' and config.task == 'next_token'
  if mode in ('decode', 'matmul') and not is_gpt:
    yield errors.UserError('model.kind', f'{mode} needs a gpt that predicts the next token')
  peer, _, folder = options.peer.partition(':')
  if not peer:
    return
  if mode not in _PEERS.get(peer, ()):
    known = ', '.join(f'{name} for {" and ".join(modes)}' for name, modes in _PEERS.items())
    yield errors.UserError('peer', f'{options.peer!r} cannot be compared in {mode}', f'use {known}')
  elif peer == 'nanogpt' and not (pathlib.Path(folder) / 'model.py').is_file():
    yield errors.UserError('peer', f'{folder or "its folder"} has no model.py', 'nanogpt:FOLDER')
  elif config.has_segments or not is_gpt or config.model.lora_rank or config.model.clusters:
    yield errors.UserError('peer', 'has neither packed rows, adapters, clusters nor classes')
  if not shutil.which(options.peer_python):
    yield errors.UserError('peer_python', f'{options.peer_python} is no program that can be run')
