"""Prompts typed line by line, and a text for each: what `gpt_jax.sample --interactive` runs."""

import dataclasses
import importlib
import io
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import device_memory, errors, user_cache
from gpt_jax.generation import options, parsing, prompts, results, text

REMEDIES = 'lower --num_samples or --max_new_tokens, or give fewer prompts at a time'
_SEEDS = 2**32
_HISTORY_LENGTH = 1000
_HELP = """\
Each line is a prompt of its own; an empty one is the start of a text.
  /set            show the options
  /set NAME VALUE change one, as /set temperature 0.5
  //...           a prompt that begins with /
  /help           this help
  /quit           leave, as Ctrl-D does; Ctrl-C stops a text"""


def write(
  model: text.TextModel,
  prompt: prompts.Prompt,
  settings: config_lib.GenerationConfig,
  arguments: Mapping[str, Any],
  *,
  watch: Callable[[], None] = lambda: None,
) -> results.Sample:
  """Writes a text to standard output as it comes, without its prompt.

  Args:
    model: It has a tokenizer.
    prompt: As `TextModel.stream` takes it.
    settings: How to generate. Beams are compared at the end: their text comes at once.
    arguments: `stop`, `ban` and so on, as `TextModel.stream` takes them.
    watch: Is called after each part.
  """
  values = dataclasses.asdict(settings)
  if settings.num_beams > 1:
    (sample,) = model.generate([prompt], **values, **arguments)
    print(sample.text)
    watch()
    return sample
  parts = model.stream(prompt, **values, **arguments)
  while True:
    try:
      part = next(parts)
    except StopIteration as end:
      print(flush=True)
      return end.value
    print(part, end='', flush=True)
    watch()


def tell_slides(slides: int, block_size: int) -> None:
  """Says on standard error that the beginning of a text was forgotten, if it was."""
  if slides:
    print(
      f'the context of {block_size} tokens was full: the text goes on from the last half of it '
      f'({slides}×)',
      file=sys.stderr,
    )


class Terminal:
  """Where lines come from: with editing and a history where a person types, without elsewhere."""

  def __init__(self) -> None:
    self.is_one = sys.stdin.isatty() and sys.stdout.isatty()
    self._readline: Any = None
    self._history = user_cache.folder() / 'history'

  def __enter__(self) -> 'Terminal':
    if self.is_one:
      try:
        self._readline = importlib.import_module('readline')  # Python may be built without it
        self._readline.set_history_length(_HISTORY_LENGTH)
        self._readline.read_history_file(self._history)
      except (ImportError, OSError):  # of the first session there is no history yet
        pass
    return self

  def __exit__(self, *_: object) -> None:
    if self._readline is None:
      return
    try:
      self._history.parent.mkdir(parents=True, exist_ok=True)
      self._readline.write_history_file(self._history)
    except OSError:  # a history is not worth a message
      pass

  def line(self) -> str | None:
    """The next line; None at the end."""
    try:
      return input('> ' if self.is_one else '')
    except EOFError:
      return None


def run(
  model: text.TextModel, settings: config_lib.GenerationConfig, arguments: Mapping[str, Any]
) -> None:
  """Reads prompts from standard input until it ends, and writes a text for each.

  The seed grows by one with each text, so that the same prompt gives another one.

  Args:
    model: It has a tokenizer.
    settings: The options to begin with.
    arguments: `stop`, `ban` and so on, as `TextModel.stream` takes them.
  """
  if isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(encoding='utf-8', errors='surrogateescape')  # whatever the locale
  with Terminal() as terminal:
    if terminal.is_one:
      print(_HELP, file=sys.stderr)
    while True:
      try:
        line = terminal.line()
        if line is None or line.strip() == '/quit':
          break
        settings = _answer(model, line, settings, arguments)
      except errors.UserError as e:
        print(f'error: {e}', file=sys.stderr)
      except KeyboardInterrupt:
        if not terminal.is_one:
          raise
        print(flush=True)


def _answer(
  model: text.TextModel,
  line: str,
  settings: config_lib.GenerationConfig,
  arguments: Mapping[str, Any],
) -> config_lib.GenerationConfig:
  """Does what a line asks for; returns the options of the next."""
  if line.startswith('/') and not line.startswith('//'):
    return _command(line, settings)
  prompt = line.removeprefix('/') if line.startswith('//') else line
  if not parsing.is_utf8(prompt):
    raise errors.UserError('the line is not UTF-8')
  ids = model.encode(prompt)  # before it is printed: it may not be possible
  with device_memory.shortage_is_the_users(REMEDIES):
    print(prompt, end='', flush=True)
    sample = write(model, ids, settings, arguments)
  tell_slides(sample.slides, model.config.block_size)
  return dataclasses.replace(settings, seed=(settings.seed + 1) % _SEEDS)


def _command(line: str, settings: config_lib.GenerationConfig) -> config_lib.GenerationConfig:
  """The options after a line that begins with /."""
  match line.split():
    case ['/help']:
      print(_HELP, file=sys.stderr)
    case ['/set']:
      for knob in config_lib.knobs(settings):
        print(f'  {knob.key:<20}{knob.value:<12}{knob.field.metadata["doc"]}', file=sys.stderr)
    case ['/set', name, value]:
      return options.make({**dataclasses.asdict(settings), name: _typed(name, value)})
    case _:
      raise errors.UserError(f'{line}: no such command; see /help, or write /{line} as a prompt')
  return settings


def _typed(name: str, value: str) -> Any:
  """`value` as the option takes it; raises `UserError` where that can't be."""
  field: Any = config_lib.GenerationConfig.__dataclass_fields__.get(name)
  if field is None:
    return value  # `options.make` knows a better name
  try:
    return field.type(value)
  except ValueError:
    kind = 'a whole number' if field.type is int else 'a number'
    raise errors.UserError(f'{name}: {value!r} must be {kind}') from None
