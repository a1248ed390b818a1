"""Tokenizers of the smallest pieces: a token a character, or a token a byte of UTF-8."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors
from gpt_jax.data.tokenizers import base

_CODE_POINTS = 0x110000
_REPLACEMENT = 0xFFFD


class CharTokenizer(base.Tokenizer):
  """A token a character; the vocabulary is the characters of a corpus, sorted.

  Special tokens come behind the characters; unk decodes to U+FFFD.
  """

  kind = 'char'

  def __init__(self, characters: str, special_tokens: Sequence[str] = ()):
    """Takes the vocabulary, in the order of the ids, and the names of the special tokens."""
    self._characters = characters
    self._special_tokens = base.in_order(special_tokens)
    self._number_special_tokens(self._special_tokens, len(characters))
    self.vocab_size = len(characters) + len(self._special_tokens)
    points = _code_points(characters)
    special = np.full(len(self._special_tokens), _REPLACEMENT, '<u4')
    self._points = np.concatenate([points, special])
    missing = self.vocab_size if self.unknown is None else self.unknown
    self._ids = np.full(_CODE_POINTS, missing, np.uint32)
    self._ids[points] = np.arange(len(characters))

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
    size = len(self._characters)
    allowed = repr(self._characters[:200]) + ('...' if size > 200 else '')
    return (
      f'the text has characters outside the vocabulary: {first}{more}. Allowed are the '
      f'{size} characters {allowed}; leave the others out, or train with '
      '--config.data.special_tokens=unk, which stands for all others, or with '
      '--config.data.tokenizer=byte, which knows every character.'
    )

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return str(self._points[self._checked_text(ids)].tobytes(), 'utf-32-le')

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    description = {'kind': self.kind, 'characters': self._characters}
    return {**description, **_named(self._special_tokens)}


class ByteTokenizer(base.Tokenizer):
  """A token a byte of UTF-8, then 256 for the end of a text, then bos and pad if asked for."""

  kind = 'byte'

  def __init__(self, special_tokens: Sequence[str] = ()):
    """Takes the names of the special tokens beside eos."""
    self._special_tokens = [n for n in base.in_order(special_tokens) if n != 'eos']
    self._number_special_tokens(['eos', *self._special_tokens], 256)
    self.vocab_size = 257 + len(self._special_tokens)

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    return np.frombuffer(text.encode('utf-8', 'replace'), np.uint8).astype(np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return str(self._checked_text(ids).astype(np.uint8).tobytes(), 'utf-8', 'replace')

  def token_bytes(self, token: int) -> bytes:
    """As `Tokenizer.token_bytes`: one byte, or none for a special token."""
    return self._checked_text([token]).astype(np.uint8).tobytes()

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    return {'kind': self.kind, **_named(self._special_tokens)}


def count(texts: Iterable[str]) -> collections.Counter[str]:
  """How often each character occurs."""
  totals = np.zeros(_CODE_POINTS, np.int64)
  for text in texts:
    times = np.bincount(_code_points(text))
    totals[: len(times)] += times
  seen = np.flatnonzero(totals)
  return collections.Counter(dict(zip(map(chr, seen), totals[seen].tolist(), strict=True)))


def _named(special_tokens: list[str]) -> dict[str, Any]:
  """The entry of special tokens in `to_dict`; none where there are none, as in older runs."""
  return {'special_tokens': special_tokens} if special_tokens else {}


def _code_points(text: str) -> np.ndarray:
  """Code points of `text`, uint32 (L,)."""
  return np.frombuffer(text.encode('utf-32-le', 'replace'), '<u4')
