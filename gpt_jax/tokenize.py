"""See text as tokens: python -m gpt_jax.tokenize --text="How long is this?"

Prints the text with its tokens set apart, their ids, and how many they are. Without --text and
--file it reads standard input. ↵ stands for a line break, → for a tab, \\xf0 for a byte that is
only a part of a character. Exit code 2: something to mend.
"""

import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from absl import flags

from gpt_jax import cli, errors

if TYPE_CHECKING:
  from gpt_jax.data import tokenizers

_DEFAULT = 'gpt2'
_COLOR_CHOICES = ('auto', 'always', 'never')
# Black on pale backgrounds, of the 256 colours: that reads on dark and on light terminals.
_COLORS = [f'\033[38;5;16;48;5;{background}m' for background in (153, 223, 157, 225)]
_RESET = '\033[0m'
_BAR = '│'


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'tokenizer',
    None,
    'char, byte, word, gpt2, gpt2:PATH (a vocab.bpe) or hf:PATH (a tokenizer.json); char and word '
    f'take their vocabulary from the text itself (default: {_DEFAULT}).',
    flag_values=values,
  )
  flags.DEFINE_string('model', None, "A run's workdir: take its tokenizer.", flag_values=values)
  flags.DEFINE_string('text', None, 'The text.', flag_values=values)
  flags.DEFINE_string('file', None, 'A UTF-8 file that holds the text.', flag_values=values)
  flags.DEFINE_boolean('ids', False, 'Print nothing but the ids.', flag_values=values)
  flags.DEFINE_string(
    'color',
    'auto',
    'always, never, or auto: on a terminal, unless NO_COLOR is set.',
    flag_values=values,
  )
  return values


def main(values: flags.FlagValues) -> None:
  """Encodes the text and prints its tokens."""
  if values.color not in _COLOR_CHOICES:
    raise errors.UserError(f'--color: {values.color!r} must be {", ".join(_COLOR_CHOICES)}')
  if values.model is not None and values.tokenizer is not None:
    raise errors.UserError('--model has a tokenizer of its own: leave --tokenizer out, or --model')
  text = _read_text(values.text, values.file)
  if values.model is None:
    tokenizer = _build(_DEFAULT if values.tokenizer is None else values.tokenizer, text)
  else:
    from gpt_jax.training import workdir

    tokenizer = workdir.Workdir(values.model).read_tokenizer()
  ids = tokenizer.encode(text).tolist()
  if values.ids:
    _print([' '.join(map(str, ids))])
    return
  shown = {i: visible(tokenizer.token_bytes(i)) for i in set(ids)}
  pieces = map(shown.__getitem__, ids)
  numbers, color = map(str, ids), has_color(values.color)
  _print(
    [
      ''.join(_colored(pieces)) if color else _BAR.join(pieces),
      ' '.join(_colored(numbers) if color else numbers),
      _summary(len(ids), len(text), tokenizer),
    ]
  )


def visible(token: bytes) -> str:
  """A token to look at: nothing in it moves the cursor, but that a line break is kept behind ↵.

  Args:
    token: UTF-8, perhaps with parts of characters, which become `\\xf0`.
  """
  shown = {'\n': '↵\n', '\t': '→', '\r': '\\r'}
  characters = token.decode('utf-8', 'backslashreplace')
  return ''.join(
    shown[c] if c in shown else c if c.isprintable() else f'\\u{ord(c):04x}' for c in characters
  )


def has_color(choice: str) -> bool:
  """Whether --color=`choice` means colour here; auto follows https://no-color.org."""
  if choice == 'auto':
    plain = os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb'
    return sys.stdout.isatty() and not plain
  return choice == 'always'


def _colored(pieces: Iterable[str]) -> Iterator[str]:
  """`pieces` on the backgrounds in turn, which end before each line break."""
  for i, piece in enumerate(pieces):
    color = _COLORS[i % len(_COLORS)]
    yield color + piece.replace('\n', f'{_RESET}\n{color}') + _RESET


def _summary(num_tokens: int, num_characters: int, tokenizer: 'tokenizers.Tokenizer') -> str:
  parts = [_counted(num_tokens, 'token'), _counted(num_characters, 'character')]
  if num_tokens:
    parts.append(f'{num_characters / num_tokens:.1f} characters a token')
  return ', '.join([*parts, f'{tokenizer.kind} of {tokenizer.vocab_size:,}'])


def _counted(number: int, noun: str) -> str:
  return f'{number:,} {noun}{"" if number == 1 else "s"}'


def _build(spec: str, text: str) -> 'tokenizers.Tokenizer':
  """The tokenizer that `spec` names, with every character or word of `text`."""
  from gpt_jax import config, validation
  from gpt_jax.data import tokenizers

  whole = config.Config(data=config.DataConfig(tokenizer=spec, min_frequency=1))
  validation.validate(whole)
  return tokenizers.build(whole.data, tokenizers.counts(whole.data, [text]))


def _read_text(text: str | None, file: str | None) -> str:
  """The text, from whichever place is named."""
  if text is not None and file is not None:
    raise errors.UserError('--text and --file are both given: leave one out')
  if text is not None:
    data, name = os.fsencode(text), '--text'
  elif file is not None:
    data, name = _read_file(file), file
  else:
    if sys.stdin.isatty():
      print('Write text; Ctrl-D on a line of its own ends it.', file=sys.stderr)
    data, name = sys.stdin.buffer.read(), 'standard input'
  try:
    return data.decode()
  except UnicodeDecodeError as e:
    raise errors.UserError(
      f'{name} is not UTF-8: {e.reason} at byte {e.start:,}; convert it first, for example with '
      'iconv'
    ) from e


def _read_file(file: str) -> bytes:
  try:
    return pathlib.Path(file).expanduser().read_bytes()
  except OSError as e:
    raise errors.UserError(f'--file={file} cannot be read: {e.strerror}') from e


def _print(lines: Iterable[str]) -> None:
  """Prints to whoever still reads."""
  with cli.output():
    for line in filter(None, lines):
      print(line)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=False)
