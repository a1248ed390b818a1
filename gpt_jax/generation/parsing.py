"""What is typed on a command line or stands in a file: strings with escapes, tokens, prompts."""

import pathlib
import re
import sys

from gpt_jax import errors, validation

_ESCAPES = {'n': '\n', 't': '\t', '\\': '\\'}
_ID = re.compile(r'id:(\d+)$')


def unescaped(option: str, given: str) -> str:
  r"""`given` with a line break for \n, a tab for \t and a backslash for two.

  Raises:
    UserError: Names `option`; the text is empty or has other escapes.
  """

  def character(match: re.Match[str]) -> str:
    if match[1] not in _ESCAPES:
      raise errors.UserError(
        rf'--{option}={given}: {match[0]} is unknown; \n is a line break, \t a tab, \\ a backslash'
      )
    return _ESCAPES[match[1]]

  if not given:
    raise errors.UserError(f'--{option}= is empty: leave it out, or write --{option}=TEXT')
  return re.sub(r'\\(.?)', character, given)


def token(option: str, given: str) -> str | int:
  """A token as `TextModel.generate` takes it: text, with escapes, or the number of `id:N`."""
  match = _ID.match(given)
  return int(match[1]) if match else unescaped(option, given)


def bias(given: str) -> tuple[str | int, float]:
  """TOKEN:VALUE as a token and its value; raises `UserError`."""
  name, _, value = given.rpartition(':')
  try:
    number = float(value)
  except ValueError:
    name = ''
  if not name:
    raise errors.UserError(
      f'--logit_bias={given}: write TOKEN:VALUE, as --logit_bias=the:-1.5 or id:42:-inf'
    )
  return token('logit_bias', name), number


def is_utf8(text: str) -> bool:
  """Whether what Python took from the terminal was UTF-8: it keeps other bytes as surrogates."""
  return not any('\ud800' <= character <= '\udfff' for character in text)


def read_prompts(name: str) -> list[tuple[str, str]]:
  """The lines of a file or of standard input, with the place of each; raises `UserError`."""
  where = 'standard input' if name == '-' else name
  try:
    if name == '-':
      if sys.stdin.isatty():
        print('Write a prompt on each line; Ctrl-D ends them.', file=sys.stderr)
      data = sys.stdin.buffer.read()
    else:
      data = pathlib.Path(name).expanduser().read_bytes()
  except OSError as e:
    raise errors.UserError(f'--prompts={name} cannot be read: {e.strerror}') from e
  lines = data.removesuffix(b'\n').split(b'\n')
  if not data:
    raise errors.UserError(f'--prompts={name}: {where} is empty; write a prompt on each line')
  prompts, found = [], []
  for number, line in enumerate(lines, 1):
    try:
      prompts.append((f'{where}:{number}', line.removesuffix(b'\r').decode()))
    except UnicodeDecodeError as e:
      found.append(f'{where}:{number} is not UTF-8: {e.reason} at byte {e.start} of the line')
  validation.fail(found)
  return prompts
