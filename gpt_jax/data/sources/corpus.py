"""What every source is: parts that separate processes can read, each a stream of documents."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_MIN_PART_BYTES = 4 << 20
_MAX_PART_BYTES = 256 << 20
_PARTS = 64
_SPLITS = {'training': 'train'} | dict.fromkeys(('valid', 'val', 'dev'), 'validation')
_SPLIT_ORDER = ('train', 'validation', 'test')


class Piece(NamedTuple):
  """A document, or a stretch of a long one."""

  place: str  # file and place, for messages: `a.txt`, `x.jsonl at byte 123`, `x.parquet row 17`
  text: bytes | str  # bytes are UTF-8 that has not been checked; a str may hold lone surrogates
  last: bool = True  # whether the document ends with this piece
  label: str = ''  # the class of the document; empty if it has none


@dataclasses.dataclass(frozen=True)
class Part:
  """What one process reads, encodes and stores as one shard; can be pickled."""

  split: str  # `train`, `validation`, `test`, another name, or empty if the source has no splits
  size: int  # approximate bytes of text; of compressed files their size on disk
  read: Callable[[], Iterator[Piece]]  # streams the documents, empty ones too; raises `UserError`


@dataclasses.dataclass(frozen=True)
class Source:
  """Text that can be read again and again."""

  spec: str  # what the user wrote, such as `text:books/*.txt`
  parts: tuple[Part, ...]  # in the order of the corpus; the same on every machine
  fingerprint: dict[str, Any]  # JSON values that change with the text, found without reading it


def part_bytes(total: int) -> int:
  """Returns the size at which a part of a corpus of `total` bytes is full: about a 64th."""
  return min(max(total // _PARTS, _MIN_PART_BYTES), _MAX_PART_BYTES)


def parts(
  items: Sequence[Any],
  sizes: Sequence[int],
  read: Callable[..., Iterator[Piece]],
  *,
  full: int,
  split: str = '',
) -> Iterator[Part]:
  """Yields parts of consecutive `items` of these sizes, each closed once it holds `full` bytes."""
  start = size = 0
  for end, more in enumerate(sizes, 1):
    size += more
    if size >= full or end == len(sizes):
      yield Part(split, size, functools.partial(read, items[start:end]))
      start, size = end, 0


def known_split(name: str) -> str:
  """Returns `train`, `validation` or `test` for one of its usual names, else an empty string."""
  split = _SPLITS.get(name, name)
  return split if split in _SPLIT_ORDER else ''


def split_rank(split: str) -> tuple[int, str]:
  """Returns a key that sorts splits: train, validation, test, then the others by name."""
  return (*_SPLIT_ORDER, split).index(split), split
