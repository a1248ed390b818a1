"""What every tokenizer is: text to token ids and back, and the ids that stand for no text."""

import abc
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors

SPECIAL_TOKENS = ('bos', 'eos', 'pad', 'unk', 'mask')


class Tokenizer(abc.ABC):
  """Turns text into token ids, in [0, vocab_size), and back.

  Special ids never come out of `encode`, except for `unk_id`: callers put them in.
  """

  kind: str  # `char`, `byte`, `word`, `gpt2` or `hf`
  vocab_size: int
  bos_id: int | None = None  # before a document
  eos_id: int | None = None  # closes a document
  pad_id: int | None = None  # fills up a row
  unk_id: int | None = None  # what the vocabulary lacks
  mask_id: int | None = None  # hides a token that is to be guessed
  # Whether encode(a + b) is encode(a) and then encode(b) whenever a ends in an ASCII letter and b
  # begins with a space and an ASCII letter.
  cuts: bool = True

  @abc.abstractmethod
  def encode(self, text: str) -> np.ndarray:
    """Returns the token ids of `text`, uint32 (L,); lone surrogates count as `?`.

    Raises `UserError` if `text` is no str, or has something that the vocabulary lacks, unless there
    is an `unk_id`.
    """

  @abc.abstractmethod
  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of `ids`, (L,), with U+FFFD for invalid UTF-8.

    Of special tokens only unk has a text. Raises `UserError` if an id is outside the vocabulary.
    """

  @abc.abstractmethod
  def to_dict(self) -> dict[str, Any]:
    """Returns JSON values from which `tokenizers.from_dict` rebuilds the tokenizer."""

  @property
  def hash(self) -> str:
    """SHA-256 of `to_dict`, in hexadecimal."""
    canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()

  def token_id(self, token: str) -> int:
    """Returns the id of one token given as text; `bos`, `eos` etc. name special tokens.

    Raises `UserError` if `token` isn't exactly one token of this tokenizer.
    """
    if token in SPECIAL_TOKENS:
      special: int | None = getattr(self, f'{token}_id')
      if special is None:
        raise errors.UserError('token', f'the {self.kind} tokenizer has no special token {token}')
      return special
    try:
      ids = self.encode(token).tolist()
    except errors.UserError:
      ids = []
    if len(ids) != 1 or ids == [self.unk_id]:
      raise errors.UserError('token', f'{token!r} is not one token of the {self.kind} tokenizer')
    return ids[0]

  def token_bytes(self, token: int) -> bytes:
    """Returns what one token stands for, in UTF-8, perhaps a part of a character."""
    return self.decode([token]).encode()

  def _set_special_ids(self, ids: Mapping[str, int]) -> None:
    for name in SPECIAL_TOKENS:
      setattr(self, f'{name}_id', ids.get(name))

  def _checked(self, ids: Sequence[int] | np.ndarray, *, text_only: bool = True) -> np.ndarray:
    """`ids` as int64 (L,), only those with a text if `text_only`; raises `UserError`."""
    try:
      array = np.asarray(ids, np.int64)
    except (TypeError, ValueError, OverflowError) as e:
      raise errors.UserError('ids', f'{ids!r:.80} must be a list of token ids') from e
    outside = array[(array < 0) | (array >= self.vocab_size)]
    if outside.size:
      problem = f'{outside[0]} is outside the vocabulary, from 0 to {self.vocab_size - 1}'
      raise errors.UserError('ids', problem)
    special = (self.bos_id, self.eos_id, self.pad_id, self.mask_id)
    silent = [i for i in special if i is not None]
    return array[~np.isin(array, silent)] if text_only else array


def in_order(special_tokens: Iterable[str]) -> list[str]:
  """Returns names of special tokens, each once, in the order in which they are numbered."""
  return [name for name in SPECIAL_TOKENS if name in special_tokens]


def encoded(text: str, encoding: str = 'utf-8') -> bytes:
  """Returns the bytes of `text`, with a `?` for each lone surrogate, which UTF-8 can't encode.

  Raises `UserError` for what is no text.
  """
  if not isinstance(text, str):
    raise errors.UserError('text', f'{text!r:.80} is {type(text).__name__}, must be str')
  return text.encode(encoding, 'replace')


def without_surrogates(text: str) -> str:
  """Returns `text` as `encoded` encodes it."""
  return encoded(text).decode()
