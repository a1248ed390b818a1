"""Documents to token ids: special tokens put around them, ends and hashes noted, all counted."""

import concurrent.futures
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.data import sources, tokenizers

_BATCH_CHARACTERS = 1 << 20  # encoded at a time: a fraction of a second


class Counts(NamedTuple):
  """What went into a shard, or into several. Also tells progress."""

  documents: int = 0
  characters: int = 0
  tokens: int = 0
  empty_documents: int = 0
  invalid_utf8: int = 0

  def plus(self, other: 'Counts') -> 'Counts':
    """The sum, field by field."""
    return Counts(*map(sum, zip(self, other, strict=True)))


class Encoded(NamedTuple):
  """Some tokens, and the documents that end in them."""

  ids: np.ndarray  # uint32 (L,)
  ends: list[int]  # in `ids`
  hashes: list[int]
  counts: Counts


def encode(
  pieces: Iterable[sources.Piece],
  tokenizer: tokenizers.Tokenizer,
  *,
  invalid_utf8: str,
  threads: int,
) -> Iterator[Encoded]:
  """The tokens of documents, each between its special tokens, about a million characters at a time.

  Args:
    pieces: Documents, some perhaps in stretches; empty ones are counted and left out.
    tokenizer: What encodes them.
    invalid_utf8: As `data.invalid_utf8`.
    threads: That encode at the same time.

  Raises:
    UserError: The text isn't UTF-8, or has what the tokenizer doesn't know.
  """
  texts = _texts(pieces, invalid_utf8=invalid_utf8, joined=not tokenizer.cuts)
  joiner = _Joiner(tokenizer)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for batch in _batches(texts):
      encode_each = pool.map if threads > 1 else map
      for text, ids in zip(
        batch, encode_each(tokenizer.encode, [text.text for text in batch]), strict=True
      ):
        joiner.add(ids, last=text.last)
      yield joiner.take(
        characters=sum(len(text.text) for text in batch),
        invalid_utf8=sum(text.invalid for text in batch),
      )


class _Joiner:
  """Puts the tokens of texts behind each other, and special tokens around documents."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    self._begins = _special(tokenizer.start_of_text)
    self._closes = _special(tokenizer.end_of_text)
    self._digest: Any = None  # of the document that isn't at its end yet
    self._start()

  def _start(self) -> None:
    self._arrays = [_special(None)]
    self._ends: list[int] = []
    self._hashes: list[int] = []
    self._length = self._empty = 0

  def add(self, ids: np.ndarray, *, last: bool) -> None:
    """Adds a stretch of a document, the last of it or not."""
    if self._digest is None:
      if last and not len(ids):
        self._empty += 1
        return
      self._digest = hashlib.blake2b(digest_size=8)
      self._append(self._begins)
    self._digest.update(ids.data)
    self._append(ids)
    if last:
      self._append(self._closes)
      self._ends.append(self._length)
      self._hashes.append(int.from_bytes(self._digest.digest(), 'little'))
      self._digest = None

  def _append(self, ids: np.ndarray) -> None:
    self._arrays.append(ids)
    self._length += len(ids)

  def take(self, *, characters: int, invalid_utf8: int) -> Encoded:
    """What was added since the last time."""
    counts = Counts(len(self._ends), characters, self._length, self._empty, invalid_utf8)
    encoded = Encoded(np.concatenate(self._arrays), self._ends, self._hashes, counts)
    self._start()
    return encoded


def _special(token: int | None) -> np.ndarray:
  return np.array([] if token is None else [token], np.uint32)


class _Text(NamedTuple):
  text: str
  last: bool
  invalid: int


def _texts(pieces: Iterable[sources.Piece], *, invalid_utf8: str, joined: bool) -> Iterator[_Text]:
  """The pieces, decoded; those of one document in one if `joined`."""
  held: list[str] = []
  invalid = 0
  for piece in pieces:
    text, bad = sources.decode(piece, invalid_utf8=invalid_utf8)
    invalid += bad
    if joined and not piece.last:
      held.append(text)
      continue
    yield _Text(''.join([*held, text]) if held else text, piece.last, invalid)
    held, invalid = [], 0


def _batches(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
  """`texts` in lists of about `_BATCH_CHARACTERS`, or of one longer text."""
  batch: list[_Text] = []
  characters = 0
  for text in texts:
    batch.append(text)
    characters += len(text.text)
    if characters >= _BATCH_CHARACTERS:
      yield batch
      batch, characters = [], 0
  if batch:
    yield batch
