"""Tokenizers of the smallest pieces: a token a character, or a token a byte of UTF-8."""

import collections
import reprlib
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

  def __init__(self, characters: str, special_tokens: Iterable[str] = ()):
    self._characters = characters
    self._special_tokens = base.in_order(special_tokens)
    self._set_special_ids({n: len(characters) + i for i, n in enumerate(self._special_tokens)})
    self.vocab_size = len(characters) + len(self._special_tokens)
    points = _code_points(characters)
    special = np.full(len(self._special_tokens), _REPLACEMENT, '<u4')
    self._points = np.concatenate([points, special])
    missing = self.vocab_size if self.unk_id is None else self.unk_id
    self._ids = np.full(_CODE_POINTS, missing, np.uint32)
    self._ids[points] = np.arange(len(characters))

  def encode(self, text: str) -> np.ndarray:
    ids: np.ndarray = self._ids[_code_points(text)]
    if ids.size and ids.max() == self.vocab_size:
      missing = np.flatnonzero(ids == self.vocab_size).tolist()
      found = ', '.join(f'{text[i]!r} at position {i}' for i in missing[:5])
      more = f' and {len(missing) - 5:,} more' if len(missing) > 5 else ''
      problem = f'the vocabulary, {reprlib.repr(self._characters)}, lacks {found}{more}'
      fix = 'train with `data.special_tokens=unk` or `data.tokenizer=byte` to allow them'
      raise errors.UserError('text', problem, fix)
    return ids

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return str(self._points[self._checked(ids)].tobytes(), 'utf-32-le')

  def to_dict(self) -> dict[str, Any]:
    return {'kind': self.kind, 'characters': self._characters, **_named(self._special_tokens)}


class ByteTokenizer(base.Tokenizer):
  """A token a byte of UTF-8, then 256 for the end of a text, then bos, pad, mask if asked for."""

  kind = 'byte'

  def __init__(self, special_tokens: Iterable[str] = ()):
    self._special_tokens = [n for n in base.in_order(special_tokens) if n != 'eos']
    self._set_special_ids({n: 256 + i for i, n in enumerate(['eos', *self._special_tokens])})
    self.vocab_size = 257 + len(self._special_tokens)

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(base.encoded(text), np.uint8).astype(np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return str(self._checked(ids).astype(np.uint8).tobytes(), 'utf-8', 'replace')

  def token_bytes(self, token: int) -> bytes:
    return self._checked([token]).astype(np.uint8).tobytes()

  def to_dict(self) -> dict[str, Any]:
    return {'kind': self.kind, **_named(self._special_tokens)}


def count(texts: Iterable[str]) -> collections.Counter[str]:
  """Returns how often each character occurs."""
  totals = np.zeros(_CODE_POINTS, np.int64)
  for text in texts:
    times = np.bincount(_code_points(text))
    totals[: len(times)] += times
  seen = np.flatnonzero(totals)
  return collections.Counter(dict(zip(map(chr, seen), totals[seen].tolist(), strict=True)))


def _named(special_tokens: list[str]) -> dict[str, Any]:
  """The entry of special tokens in `to_dict`; none if there are none, as in older runs."""
  return {'special_tokens': special_tokens} if special_tokens else {}


def _code_points(text: str) -> np.ndarray:
  """Code points of `text`, uint32 (L,)."""
  return np.frombuffer(base.encoded(text, 'utf-32-le'), '<u4')
