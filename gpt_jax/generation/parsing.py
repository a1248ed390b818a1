"""Parsing of the command line and of files of lines: escapes, tokens, biases."""

import contextlib
import pathlib
import re
import sys
from typing import Any

from gpt_jax import errors, json_files

_ESCAPES = {r'\n': '\n', r'\t': '\t', r'\\': '\\'}


def unescape(key: str, given: str) -> str:
  r"""Returns `given` with a line break for \n, a tab for \t and a backslash for two.

  Raises `UserError` at `key` if the text is empty or has other escapes.
  """

  def character(match: re.Match[str]) -> str:
    if match[0] not in _ESCAPES:
      fix = r'\n is a line break, \t a tab, \\ a backslash'
      raise errors.UserError(key, f'{match[0]} in {given!r} is unknown', fix)
    return _ESCAPES[match[0]]

  if not given:
    raise errors.UserError(key, 'is empty')
  return re.sub(r'\\.?', character, given)


def token(key: str, given: str) -> str | int:
  """Returns a token as `options.make` takes it: text, with escapes, or the number of `id:N`."""
  match = re.fullmatch(r'id:(\d+)', given)
  return int(match[1]) if match else unescape(key, given)


def bias(key: str, given: str) -> tuple[str | int, float]:
  """Returns the token and the value of TOKEN:VALUE; raises `UserError`."""
  name, _, value = given.rpartition(':')
  try:
    number = float(value)
  except ValueError:
    name = ''
  if not name:
    raise errors.UserError(key, f'{given!r} must be TOKEN:VALUE', 'such as the:-1.5 or id:42:-inf')
  return token(key, name), number


def read_lines(path: str, *, key: str, kind: str) -> list[tuple[str, str]]:
  """Returns the place (FILE:LINE) and text of each line of a file, or of standard input for `-`.

  Raises `UserError`, at `key`, if the file can't be read or is empty, or if lines are not UTF-8.
  `kind` is what a line is, such as a prompt.
  """
  name = 'standard input' if path == '-' else path
  try:
    if path == '-' and sys.stdin.isatty():
      print(f'Write a {kind} on each line; Ctrl-D ends them.', file=sys.stderr)
    opened: Any = contextlib.nullcontext(sys.stdin.buffer)
    with opened if path == '-' else pathlib.Path(path).expanduser().open('rb') as file:
      data = json_files.read_all(file, name)
  except OSError as e:
    fix = 'check its path and its rights'
    raise errors.UserError(key, f'{name} cannot be read ({e.strerror})', fix) from e
  if not data:
    raise errors.UserError(key, f'{name} is empty', f'write a {kind} on each line')
  lines, found = [], []
  for number, line in enumerate(data.removesuffix(b'\n').split(b'\n'), 1):
    place = f'{name}:{number}'
    try:
      lines.append((place, line.removesuffix(b'\r').decode()))
    except UnicodeDecodeError as e:
      found.append(errors.UserError(place, f'not UTF-8: {e.reason} at byte {e.start}'))
  errors.raise_all(found)
  return lines
