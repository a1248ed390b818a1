"""See text as tokens: python -m gpt_jax.show_tokens --text="How long is this?"

Prints the text with its tokens set apart, their ids and their number. Without --text and --file it
reads standard input. ↵ is a line break, → a tab, \\xf0 a byte that is only part of a character.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from gpt_jax import cli, config, errors, json_files, validation

ALIASES = {'data.tokenizer': 'tokenizer'}
_SPECIAL = {'\n': '↵\n', '\t': '→', '\r': '\\r'}
# Black on two pale backgrounds of the 256 colors, legible on dark and on light terminals.
_STYLES = ('\033[38;5;16;48;5;153m', '\033[38;5;16;48;5;223m')
_RESET = '\033[0m'


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  string('tokenizer', 'gpt2', 'char or word (of the text itself), byte, gpt2[:PATH] or hf:PATH.')
  string('model', None, 'A model, such as the workdir of a run, whose tokenizer to use.')
  string('text', None, 'The text.')
  string('file', None, 'A UTF-8 file with the text.')
  string('color', 'auto', 'always, never, or auto: on a terminal, unless NO_COLOR is set.')
  flags.DEFINE_boolean('ids', False, 'Print only the ids.', flag_values=values)
  cli.define_json(values)
  return values


def main(values: flags.FlagValues) -> None:
  if values.color not in ('auto', 'always', 'never'):
    raise errors.UserError('color', f'{values.color!r} must be one of auto, always, never')
  if values.model is not None and values['tokenizer'].present:
    raise errors.UserError('tokenizer', '`model` has its own', 'omit one of them')
  if values.text is not None and values.file is not None:
    raise errors.UserError('text', '`file` is given too', 'omit one of them')
  text = _read_text(values.text, values.file)
  tokenizer = _tokenizer(values.model, values.tokenizer, text)
  ids = tokenizer.encode(text).tolist()
  if values.json:
    texts = [tokenizer.token_bytes(i).decode('utf-8', 'backslashreplace') for i in ids]
    cli.show(values, [({} if values.ids else {'tokens': texts}) | {'ids': ids}], '')
    return
  spelled = {i: visible(tokenizer.token_bytes(i)) for i in set(ids)}
  pieces, numbers = [spelled[i] for i in ids], [str(i) for i in ids]
  ratio = f' ({len(text) / len(ids):.1f} per token)' if ids else ''
  vocabulary = f'vocabulary: {tokenizer.vocab_size:,} ({tokenizer.kind})'
  summary = f'tokens: {len(ids):,}, characters: {len(text):,}{ratio}, {vocabulary}'
  if values.ids:
    lines = [' '.join(numbers)]
  elif has_color(values.color):
    lines = [''.join(_colored(pieces)), ' '.join(_colored(numbers)), summary]
  else:
    lines = ['│'.join(pieces), ' '.join(numbers), summary]
  print('\n'.join(filter(None, lines)), end='\n' if ids or not values.ids else '')


def visible(token: bytes) -> str:
  """Returns a token, UTF-8 or parts of it, as text that moves the cursor only by line breaks."""
  characters = token.decode('utf-8', 'backslashreplace')
  escaped = (c if c.isprintable() else f'\\u{ord(c):04x}' for c in characters)
  return ''.join(_SPECIAL.get(c, e) for c, e in zip(characters, escaped, strict=True))


def has_color(choice: str) -> bool:
  """Returns whether `choice` means color here; auto follows https://no-color.org."""
  plain = os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb'
  return choice == 'always' or (choice == 'auto' and sys.stdout.isatty() and not plain)


def _colored(pieces: Iterable[str]) -> Iterator[str]:
  """Puts `pieces` on the backgrounds in turn; these end before each line break."""
  for i, piece in enumerate(pieces):
    style = _STYLES[i % 2]
    yield style + piece.replace('\n', f'{_RESET}\n{style}') + _RESET


def _read_text(text: str | None, file: str | None) -> str:
  """Returns the text, or that of the file, or that of standard input."""
  if text is not None:
    source, data = 'text', os.fsencode(text)
  elif file is not None:
    source, data = file, json_files.read_bytes(pathlib.Path(file).expanduser())
  else:
    if sys.stdin.isatty():
      print('Type some text, then Ctrl-D on a line of its own.', file=sys.stderr)
    source, data = 'standard input', json_files.read_all(sys.stdin.buffer, 'standard input')
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    raise errors.UserError(source, f'is not UTF-8: {e.reason} at byte {e.start:,}') from e


def _tokenizer(model: str | None, spec: str, text: str) -> Any:
  """Returns the tokenizer of `model`, or that of `spec` with every character or word of `text`."""
  if model is not None:
    from gpt_jax.weights import saved_model  # imports JAX

    found = saved_model.open_model(model).tokenizer
    if found is None:
      raise errors.UserError('model', f'{model} has no tokenizer', 'put its tokenizer.json there')
    return found
  from gpt_jax.data import tokenizers

  data = config.DataConfig(tokenizer=spec, min_frequency=1)
  validation.validate(config.Config(data=data))
  return tokenizers.build(data, tokenizers.counts(data, [text]))


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, aliases=ALIASES)
