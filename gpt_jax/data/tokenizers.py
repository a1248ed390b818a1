"""Text to token ids and back: characters, bytes, or GPT-2's byte-pair encoding."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gpt_jax import errors
from gpt_jax.data import bpe

_CODE_POINTS = 0x110000


class Tokenizer(Protocol):
  """What turns text into token ids and back.

  Attributes:
    kind: `char`, `byte` or `gpt2`.
    vocab_size: Ids are in [0, vocab_size).
    end_of_text: The id that closes a document, or None where there is no such id.
  """

  kind: str
  vocab_size: int
  end_of_text: int | None

  def encode(self, text: str) -> np.ndarray:
    """Token ids of `text`, uint32 (L,), without `end_of_text`; lone surrogates count as `?`.

    Raises:
      UserError: The vocabulary lacks a character of `text`.
    """
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`, (L,), with U+FFFD for bytes that aren't UTF-8.

    Raises:
      UserError: An id is outside the vocabulary.
    """
    ...

  def to_dict(self) -> dict[str, Any]:
    """What `from_dict` rebuilds the tokenizer from, for JSON."""
    ...

  @property
  def hash(self) -> str:
    """SHA-256 of `to_dict`, in hexadecimal."""
    canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()


class CharTokenizer(Tokenizer):
  """A token a character; the vocabulary is the characters of a corpus, sorted."""

  kind = 'char'
  end_of_text = None

  def __init__(self, characters: str):
    """Takes the vocabulary, in the order of the ids."""
    self._characters = characters
    self._points = np.frombuffer(characters.encode('utf-32-le'), '<u4')
    self.vocab_size = len(characters)
    self._ids = np.full(_CODE_POINTS, self.vocab_size, np.uint32)
    self._ids[self._points] = np.arange(self.vocab_size)

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    ids: np.ndarray = self._ids[_code_points(text)]
    if ids.size and ids.max() == self.vocab_size:
      raise errors.UserError(self._complaint(text, ids))
    return ids

  def _complaint(self, text: str, ids: np.ndarray) -> str:
    where = np.flatnonzero(ids == self.vocab_size)
    first = ', '.join(f'{text[i]!r} at position {i}' for i in where[:5].tolist())
    more = f' and {len(where) - 5} more' if len(where) > 5 else ''
    allowed = repr(self._characters[:200]) + ('...' if self.vocab_size > 200 else '')
    return (
      f'the text has characters outside the vocabulary: {first}{more}. Allowed are the '
      f'{self.vocab_size} characters {allowed}; leave the others out, or use '
      '--config.data.tokenizer=byte, which knows every character.'
    )

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return str(self._points[_checked(ids, self.vocab_size)].tobytes(), 'utf-32-le')

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    return {'kind': self.kind, 'characters': self._characters}


class ByteTokenizer(Tokenizer):
  """A token a byte of UTF-8, and 256 for the end of a text, which decodes to nothing."""

  kind = 'byte'
  vocab_size = 257
  end_of_text = 256

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    return np.frombuffer(text.encode('utf-8', 'replace'), np.uint8).astype(np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    ids = _checked(ids, self.vocab_size)
    text = ids[ids != self.end_of_text].astype(np.uint8).tobytes()
    return str(text, 'utf-8', 'replace')

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    return {'kind': self.kind}


class Gpt2Tokenizer(Tokenizer):
  """GPT-2's byte-pair encoding; the end of a text decodes to `<|endoftext|>`.

  The text `<|endoftext|>` itself is encoded as ordinary text, in several tokens.
  """

  kind = 'gpt2'
  vocab_size = bpe.END_OF_TEXT + 1
  end_of_text = bpe.END_OF_TEXT

  def __init__(self) -> None:
    """Finds the vocabulary; raises `UserError` if there is none."""
    self._encoding = bpe.gpt2()

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    text = text.encode('utf-8', 'replace').decode()
    return self._encoding.encode_to_numpy(text, disallowed_special=())

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return self._encoding.decode(_checked(ids, self.vocab_size).tolist())

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    return {'kind': self.kind, 'vocab_bpe_sha256': bpe.SHA256}


def build(kind: str, documents: Iterable[str]) -> Tokenizer:
  """A tokenizer for a corpus; only `char` reads `documents`.

  Raises:
    UserError: No such `kind`, or GPT-2's vocabulary can't be found.
  """
  if kind == 'char':
    return CharTokenizer(_alphabet(documents))
  return from_dict({'kind': kind, 'vocab_bpe_sha256': bpe.SHA256})


def from_dict(description: Mapping[str, Any]) -> Tokenizer:
  """The inverse of `Tokenizer.to_dict`.

  Raises:
    UserError: `description` isn't of a tokenizer that exists here.
  """
  match description:
    case {'kind': 'char', 'characters': str(characters)}:
      return CharTokenizer(characters)
    case {'kind': 'byte'}:
      return ByteTokenizer()
    case {'kind': 'gpt2', 'vocab_bpe_sha256': bpe.SHA256}:
      return Gpt2Tokenizer()
  raise errors.UserError(
    f'unknown tokenizer {str(description)[:200]}: it must be char with its characters, byte, or '
    f'gpt2 with the published vocabulary (vocab_bpe_sha256 {bpe.SHA256})'
  )


def _alphabet(documents: Iterable[str]) -> str:
  """The distinct characters of `documents`, sorted."""
  seen = np.zeros(_CODE_POINTS, bool)
  for document in documents:
    seen[_code_points(document)] = True
  return np.flatnonzero(seen).astype('<u4').tobytes().decode('utf-32-le')


def _code_points(text: str) -> np.ndarray:
  """Code points of `text`, uint32 (L,)."""
  return np.frombuffer(text.encode('utf-32-le', 'replace'), '<u4')


def _checked(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
  """`ids` as int64 (L,); raises `UserError` for one that is outside the vocabulary."""
  array = np.asarray(ids, np.int64)
  outside = array[(array < 0) | (array >= vocab_size)]
  if outside.size:
    raise errors.UserError(
      f'token id {outside[0]} is outside the vocabulary; ids are 0 to {vocab_size - 1}'
    )
  return array
