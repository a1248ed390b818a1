"""JSON lines (jsonlines.org): one object a line, a document each."""

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from gpt_jax import errors
from gpt_jax.data.sources import corpus, files

_MARK = b'\xef\xbb\xbf'
_COUNT_BYTES = 1 << 20


class _Range(NamedTuple):
  """The lines of a file that begin at `start` or behind it and before `stop`."""

  path: pathlib.Path
  start: int
  stop: int | None  # None: the end of the file
  size: int


def open_source(spec: str, pattern: str, *, text_field: str) -> corpus.Source:
  """The texts in field `text_field` of the files that `pattern` names; raises `UserError`.

  Files come in the order of their paths. Blank lines are skipped.
  """
  paths = files.find('jsonl', pattern, ending='.jsonl')
  described = files.describe(paths)
  full = corpus.part_bytes(sum(size for _, size, _ in described))
  ranges: list[_Range] = []
  for path, (_, size, _) in zip(paths, described, strict=True):
    ranges += _divide(path, size, full)
  parts = []
  for run in corpus.group([r.size for r in ranges], full):
    read = functools.partial(_read, ranges[run], text_field)
    parts.append(corpus.Part(_name(ranges[run]), '', sum(r.size for r in ranges[run]), read))
  return corpus.Source(spec, tuple(parts), {'files': described, 'text_field': text_field})


def _divide(path: pathlib.Path, size: int, full: int) -> Iterator[_Range]:
  """Ranges of about `full` bytes; a compressed file can only be read from its start."""
  if files.is_compressed(path) or size <= full:
    yield _Range(path, 0, None, size)
    return
  for start in range(0, size, full):
    yield _Range(path, start, start + full, min(full, size - start))


def _name(ranges: list[_Range]) -> str:
  first, more = ranges[0], len(ranges) - 1
  name = f'{first.path} from byte {first.start}' if first.start else str(first.path)
  return f'{name} and {more:,} more' if more else name


def _read(ranges: list[_Range], field: str) -> Iterator[corpus.Piece]:
  for path, start, stop, _ in ranges:
    for offset, line in _lines(path, start, stop):
      try:
        text = _text(line, field)
      except _LineError as e:
        raise errors.UserError(f'{path}, line {_line_number(path, offset):,}: {e}') from e
      yield corpus.Piece(f'{path} at byte {offset}', text)


def _lines(path: pathlib.Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
  """The lines that aren't blank and begin in [start, stop), each with its offset."""
  with files.open_binary(path) as file:
    offset = start
    if start:  # the rest of the line that begins before `start` is the range's before
      file.seek(start - 1)
      offset += len(file.readline()) - 1
    while stop is None or offset < stop:
      line = file.readline()
      if not line:
        break
      text = (line.removeprefix(_MARK) if not offset else line).rstrip()
      if text:
        yield offset, text
      offset += len(line)


class _LineError(Exception):
  """What is wrong with a line, and the fix."""


def _text(line: bytes, field: str) -> str | bytes:
  """The text in a line; bytes if the line isn't UTF-8, so that `sources.decode` sees them."""
  try:
    json_text = line.decode()
  except UnicodeDecodeError:
    text = _field(line.decode('utf-8', 'surrogateescape'), field)
    try:
      return text.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:  # it spells a lone surrogate as \u escape too
      return text
  return _field(json_text, field)


def _field(json_text: str, field: str) -> str:
  try:
    record = json.loads(json_text)
  except (ValueError, RecursionError) as e:
    where = f'{e.msg}, column {e.colno}' if isinstance(e, json.JSONDecodeError) else str(e)
    raise _LineError(
      f'this is not JSON ({where}); jsonl: wants one JSON object a line. Mend the line or leave '
      'the file out of --config.data.source.'
    ) from e
  if not isinstance(record, dict):
    raise _LineError(
      f'this is {_kind(record)}; jsonl: wants one JSON object a line: {{"{field}": "..."}}'
    )
  text = record.get(field)
  if isinstance(text, str):
    return text
  wrong = f'field {field} is {_kind(text)}' if field in record else f'there is no field {field}'
  raise _LineError(
    f'{wrong} (fields with text: {_list(k for k, v in record.items() if isinstance(v, str))}; all '
    f'fields: {_list(record)}); name the field that holds the text with --config.data.text_field, '
    'or mend the line.'
  )


def _list(fields: Iterable[str]) -> str:
  return ', '.join(fields) or 'none'


def _kind(value: Any) -> str:
  """What JSON calls `value`."""
  if value is None:
    return 'null'
  names = {dict: 'an object', list: 'a list', str: 'a string', bool: 'true or false'}
  return names.get(type(value), 'a number')


def _line_number(path: pathlib.Path, offset: int) -> int:
  """Which line begins at `offset`, from 1."""
  number = 1
  with files.open_binary(path) as file:
    while offset and (block := file.read(min(offset, _COUNT_BYTES))):
      number += block.count(b'\n')
      offset -= len(block)
  return number
