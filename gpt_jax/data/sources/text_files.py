"""Text files, a document each, and JSON lines (jsonlines.org), a document a line."""

import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from gpt_jax import errors
from gpt_jax.data.sources import corpus, files, turns

_PIECE_BYTES = 1 << 20
_MARK = b'\xef\xbb\xbf'

# Up to the last place where a letter is followed by a space and a letter. A text may be cut there
# and only there: GPT-2's pattern ends a token behind the letter and begins one with the space,
# whatever stands around them, so the tokens of the pieces are those of the whole.
_UP_TO_CUT = re.compile(rb'.*[A-Za-z](?= [A-Za-z])', re.DOTALL)

# The lines of a file that begin at one offset or behind it, and before another.
_Range = tuple[pathlib.Path, int, int]


def open_text(spec: str, pattern: str) -> corpus.Source:
  """Opens the files that `pattern` names, in the order of their paths; raises `UserError`.

  A byte-order mark at the start of a file is dropped; nothing else is changed.
  """
  paths = files.find('text', pattern)
  described = files.describe(paths)
  sizes = [size for _, size, _ in described]
  parts = corpus.parts(paths, sizes, _read_text, full=corpus.part_bytes(sum(sizes)))
  return corpus.Source(spec, tuple(parts), {'files': described})


def _read_text(paths: Sequence[pathlib.Path]) -> Iterator[corpus.Piece]:
  for path in paths:
    with files.open_binary(path) as file:
      yield from _pieces(file, path)


def _pieces(file: BinaryIO, path: pathlib.Path) -> Iterator[corpus.Piece]:
  """The document in `file`, in stretches of about `_PIECE_BYTES` if it's longer than that.

  Text without a place to cut, such as Chinese, grows in memory until there is one.
  """
  name = str(path)

  def piece(length: int, *, last: bool) -> corpus.Piece:
    place = f'{name} from byte {offset}' if offset else name
    return corpus.Piece(place, bytes(buffer[:length]), last)

  buffer = bytearray(file.read(_PIECE_BYTES))
  offset = len(_MARK) if buffer.startswith(_MARK) else 0
  del buffer[:offset]
  searched = 0
  while block := file.read(_PIECE_BYTES):
    if cut := _UP_TO_CUT.match(buffer, searched):
      yield piece(cut.end(), last=False)
      offset += cut.end()
      del buffer[: cut.end()]
    searched = max(0, len(buffer) - 2)  # a letter and a space may be the begin of a place to cut
    buffer += block
    _check_length(path, len(buffer), 'text without a space')
  yield piece(len(buffer), last=True)


def open_jsonl(
  spec: str, pattern: str, *, text_field: str, label_field: str = '', template: str = ''
) -> corpus.Source:
  """Opens the files that `pattern` names, by path, for texts in `text_field` and their classes.

  With a `template`, it is for conversations, as of `turns.parse`.
  """
  paths = files.find('jsonl', pattern)
  described = files.describe(paths)
  full = corpus.part_bytes(sum(size for _, size, _ in described))
  ranges: list[_Range] = []
  sizes = []
  for path, (_, size, _) in zip(paths, described, strict=True):
    step = max(1, size if path.suffix in files.COMPRESSED else full)  # those have no offsets
    for start in range(0, max(1, size), step):
      stop = start + step
      ranges.append((path, start, stop if stop < size else sys.maxsize))
      sizes.append(min(step, size - start))
  find = functools.partial(_labelled, field=text_field, label_field=label_field)
  if template:
    find = functools.partial(_turns, template=template)
  read = functools.partial(_read_jsonl, find=find)
  parts = corpus.parts(ranges, sizes, read, full=full)
  fingerprint = {'files': described, 'text_field': text_field, 'label_field': label_field}
  fingerprint |= {'template': template} if template else {}
  return corpus.Source(spec, tuple(parts), fingerprint)


def _read_jsonl(
  ranges: Sequence[_Range], *, find: Callable[[Any], Iterator[tuple[str, str]]]
) -> Iterator[corpus.Piece]:
  for path, start, stop in ranges:
    for offset, line in _lines(path, start, stop):
      try:
        texts = _texts(line, find)
      except (ValueError, RecursionError, LookupError, errors.UserError) as e:
        line_place = f'{path}, line {_line_number(path, offset):,}'
        if isinstance(e, errors.UserError):
          raise e.at(line_place) from e
        if isinstance(e, LookupError):
          key, problem = e.args
          raise errors.UserError(f'data.{key}', f'{line_place} has {problem}') from e
        fix = 'fix the line or leave the file out of `data.source`'
        raise errors.UserError(line_place, f'not a JSON object ({e})', fix) from e
      for text, label in texts:
        yield corpus.Piece(f'{path} at byte {offset}', text, label=label)


def _lines(path: pathlib.Path, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
  """The lines that aren't blank and begin in [start, stop), each with its offset."""
  longest = files.MOST_HELD + 1 if path.suffix in files.COMPRESSED else -1
  with files.open_binary(path) as file:
    offset = start
    if start:  # the rest of the line that begins before `start` is the range's before
      file.seek(start - 1)
      offset += len(file.readline()) - 1
    while offset < stop and (line := file.readline(longest)):
      _check_length(path, len(line), 'a line')
      text = (line.removeprefix(_MARK) if not offset else line).rstrip()
      if text:
        yield offset, text
      offset += len(line)


def _check_length(path: pathlib.Path, length: int, what: str) -> None:
  """Raises `UserError` if a compressed file holds something so long that it may be a trap."""
  if path.suffix in files.COMPRESSED and length > files.MOST_HELD:
    problem = f'holds {what} of more than {files.MOST_HELD >> 20} MB'
    raise errors.UserError(str(path), problem, 'decompress it, if it is meant to')


def _line_number(path: pathlib.Path, offset: int) -> int:
  number = 1
  with files.open_binary(path) as file:
    while offset and (block := file.read(min(offset, _PIECE_BYTES))):
      number, offset = number + block.count(b'\n'), offset - len(block)
  return number


def _texts(
  line: bytes, find: Callable[[Any], Iterator[tuple[str, str]]]
) -> list[tuple[str | bytes, str]]:
  """The texts of a line and their classes; bytes if not UTF-8, so that `sources.decode` sees them.

  Raises `ValueError` or `RecursionError` if it is no JSON object, and what `find` raises.
  """
  try:
    json_text, valid = line.decode(), True
  except UnicodeDecodeError:
    json_text, valid = line.decode('utf-8', 'surrogateescape'), False
  record = json.loads(json_text)
  if not isinstance(record, dict):
    raise ValueError(f'it is a {type(record).__name__}')
  return [(_bytes(text) if not valid else text, label) for text, label in find(record)]


def _bytes(text: str) -> str | bytes:
  try:
    return text.encode('utf-8', 'surrogateescape')
  except UnicodeEncodeError:  # it spells a lone surrogate as \u escape too
    return text


def _turns(record: Any, template: str) -> Iterator[tuple[str, str]]:
  return turns.labelled(turns.parse(record), template)


def _labelled(record: Any, field: str, label_field: str) -> Iterator[tuple[str, str]]:
  """The text in a field and its class; raises `LookupError` if the record lacks one."""
  text = record.get(field)
  if not isinstance(text, str):
    value = f' but {json.dumps(text)[:40]}' if field in record else ''
    texts = ', '.join(k for k, v in record.items() if isinstance(v, str)) or 'none'
    problem = f'no text in field {field!r}{value}; fields with text: {texts}'
    raise LookupError('text_field', problem)
  label = record.get(label_field, '')
  if label_field and (not isinstance(label, str | int) or label == ''):
    raise LookupError('label_field', f'no class in field {label_field!r}')
  yield text, str(label)
