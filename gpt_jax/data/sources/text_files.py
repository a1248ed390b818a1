"""Text files, a document each."""

import functools
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from gpt_jax.data.sources import corpus, files

_PIECE_BYTES = 1 << 20
_MARK = b'\xef\xbb\xbf'

# Up to the last place where a letter is followed by a space and a letter. A text may be cut there
# and only there: GPT-2's pattern ends a token behind the letter and begins one with the space,
# whatever stands around them, so the tokens of the pieces are those of the whole.
_UP_TO_CUT = re.compile(rb'.*[A-Za-z](?= [A-Za-z])', re.DOTALL)


def open_source(spec: str, pattern: str) -> corpus.Source:
  """The files that `pattern` names, in the order of their paths; raises `UserError`.

  A byte-order mark at the start of a file is dropped; nothing else is changed.
  """
  paths = files.find('text', pattern, ending='.txt')
  described = files.describe(paths)
  sizes = [size for _, size, _ in described]
  parts = []
  for run in corpus.group(sizes, corpus.part_bytes(sum(sizes))):
    more = len(paths[run]) - 1
    name = f'{paths[run][0]} and {more:,} more' if more else str(paths[run][0])
    parts.append(corpus.Part(name, '', sum(sizes[run]), functools.partial(_read, paths[run])))
  return corpus.Source(spec, tuple(parts), {'files': described})


def _read(paths: list[pathlib.Path]) -> Iterator[corpus.Piece]:
  for path in paths:
    with files.open_binary(path) as file:
      yield from _pieces(file, str(path))


def _pieces(file: BinaryIO, name: str) -> Iterator[corpus.Piece]:
  """The document in `file`, in stretches of about `_PIECE_BYTES` if it's longer than that.

  Text without a place to cut, such as Chinese, grows in memory until there is one.
  """
  buffer = bytearray(file.read(_PIECE_BYTES))
  offset = len(_MARK) if buffer.startswith(_MARK) else 0
  del buffer[:offset]
  searched = 0
  while block := file.read(_PIECE_BYTES):
    if cut := _UP_TO_CUT.match(buffer, searched):
      yield corpus.Piece(_place(name, offset), bytes(buffer[: cut.end()]), last=False)
      offset += cut.end()
      del buffer[: cut.end()]
    searched = max(0, len(buffer) - 2)  # a letter and a space may be the begin of a place to cut
    buffer += block
  yield corpus.Piece(_place(name, offset), bytes(buffer))


def _place(name: str, offset: int) -> str:
  return f'{name} from byte {offset}' if offset else name
