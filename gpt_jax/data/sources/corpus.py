"""A corpus as the kinds of source give it: parts that separate processes can read, in order."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

_MIN_PART_BYTES = 4 << 20
_MAX_PART_BYTES = 256 << 20
_PARTS = 64


class Piece(NamedTuple):
  """A document, or a stretch of a long one.

  Attributes:
    place: File and place, for messages: `a.txt`, `x.jsonl at byte 123`, `x.parquet row 17`.
    text: Bytes are UTF-8 that nobody checked yet; a str may hold lone surrogates.
    last: Whether the document ends with this piece.
  """

  place: str
  text: bytes | str
  last: bool = True


@dataclasses.dataclass(frozen=True)
class Part:
  """What one process reads, encodes and stores as one shard; can be pickled.

  Attributes:
    name: What it reads, for messages and progress.
    split: `train`, `validation`, `test`, another name, or nothing where the source has no splits.
    size: Bytes of text, roughly; of compressed files their size on disk.
    read: Streams the documents from the first, empty ones too; raises `UserError`.
  """

  name: str
  split: str
  size: int
  read: Callable[[], Iterator[Piece]]


@dataclasses.dataclass(frozen=True)
class Source:
  """Text that can be read again and again.

  Attributes:
    spec: What the user wrote, such as `text:books/*.txt`.
    parts: In the order of the corpus; the same on every machine.
    fingerprint: What changes when the text changes, for JSON; made from little or nothing of it.
  """

  spec: str
  parts: tuple[Part, ...]
  fingerprint: dict[str, Any]


def part_bytes(total: int) -> int:
  """The size from which a part of a corpus of `total` bytes is full.

  Small enough to keep many cores busy, large enough that a shard is worth a file.
  """
  return min(max(total // _PARTS, _MIN_PART_BYTES), _MAX_PART_BYTES)


def group(sizes: Sequence[int], full: int) -> list[slice]:
  """Cuts items of these sizes into runs, each closed as soon as it holds `full` bytes."""
  runs = []
  start = held = 0
  for i, size in enumerate(sizes):
    held += size
    if held >= full:
      runs.append(slice(start, i + 1))
      start, held = i + 1, 0
  if start < len(sizes):
    runs.append(slice(start, len(sizes)))
  return runs


def known_split(name: str) -> str:
  """`train`, `validation` or `test` by one of its usual names, or nothing."""
  match name:
    case 'train' | 'training':
      return 'train'
    case 'validation' | 'valid' | 'val' | 'dev':
      return 'validation'
    case 'test':
      return 'test'
  return ''


def split_rank(split: str) -> tuple[int, str]:
  """Sorts splits: train, validation, test, then the others by name."""
  first = ('train', 'validation', 'test')
  return (first.index(split), '') if split in first else (len(first), split)
