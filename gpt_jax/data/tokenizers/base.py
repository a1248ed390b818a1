"""What every tokenizer is: text to token ids and back, and the ids that stand for no text."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from gpt_jax import errors

SPECIAL_TOKENS = ('bos', 'eos', 'pad', 'unk')


class Tokenizer(Protocol):
  """What turns text into token ids and back.

  The special ids never come out of `encode`, but for `unknown`: callers put them in.

  Attributes:
    kind: `char`, `byte`, `word`, `gpt2` or `hf`.
    vocab_size: Ids are in [0, vocab_size).
    start_of_text: The id before a document (bos), or None where there is no such id.
    end_of_text: The id that closes a document (eos), or None.
    padding: The id that fills up a row (pad), or None.
    unknown: The id of what the vocabulary lacks (unk), or None.
    cuts: Whether encode(a + b) is encode(a) and then encode(b) wherever a ends in an ASCII letter
      and b begins with a space and an ASCII letter.
  """

  kind: str
  vocab_size: int
  start_of_text: int | None = None
  end_of_text: int | None = None
  padding: int | None = None
  unknown: int | None = None
  cuts: bool = True

  def encode(self, text: str) -> np.ndarray:
    """Token ids of `text`, uint32 (L,); lone surrogates count as `?`.

    Raises:
      UserError: The vocabulary lacks something of `text` and has no `unknown`.
    """
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """The text of `ids`, (L,), with U+FFFD for bytes that aren't UTF-8; bos, eos and pad are none.

    Raises:
      UserError: An id is outside the vocabulary.
    """
    ...

  def to_dict(self) -> dict[str, Any]:
    """What `tokenizers.from_dict` rebuilds the tokenizer from, for JSON."""
    ...

  @property
  def hash(self) -> str:
    """SHA-256 of `to_dict`, in hexadecimal."""
    canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(canonical.encode()).hexdigest()

  def token_id(self, token: str) -> int:
    """The id of one token given as text; `bos`, `eos`, `pad` and `unk` name the special ones.

    Raises:
      UserError: `token` isn't exactly one token of this tokenizer.
    """
    if token in SPECIAL_TOKENS:
      ids = (self.start_of_text, self.end_of_text, self.padding, self.unknown)
      special = ids[SPECIAL_TOKENS.index(token)]
      if special is None:
        raise errors.UserError(
          f'the {self.kind} tokenizer has no token {token}; char, byte and word take '
          f'--config.data.special_tokens={token}'
        )
      return special
    nowhere = f'{token!r} is not in the vocabulary of the {self.kind} tokenizer'
    try:
      found = self.encode(token).tolist()
    except errors.UserError as e:
      raise errors.UserError(nowhere) from e
    if found == [self.unknown]:
      raise errors.UserError(nowhere)
    if len(found) != 1:
      raise errors.UserError(
        f'{token!r} is {len(found)} tokens of the {self.kind} tokenizer {found[:10]}; it must be 1'
      )
    return found[0]

  def token_bytes(self, token: int) -> bytes:
    """What one token stands for, in UTF-8; for some tokenizers perhaps a part of a character.

    Raises:
      UserError: The id is outside the vocabulary.
    """
    return self.decode([token]).encode()

  def _number_special_tokens(self, names: Sequence[str], first: int) -> None:
    """Gives the ids from `first` on to the special tokens `names`, in that order."""
    ids = {name: first + i for i, name in enumerate(names)}
    self.start_of_text, self.end_of_text = ids.get('bos'), ids.get('eos')
    self.padding, self.unknown = ids.get('pad'), ids.get('unk')

  def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """`ids` as int64 (L,); raises `UserError` for one that is outside the vocabulary."""
    array = np.asarray(ids, np.int64)
    outside = array[(array < 0) | (array >= self.vocab_size)]
    if outside.size:
      raise errors.UserError(
        f'token id {outside[0]} is outside the vocabulary; ids are 0 to {self.vocab_size - 1}'
      )
    return array

  def _checked_text(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """As `_checked`, without bos, eos and pad."""
    array = self._checked(ids)
    silent = [i for i in (self.start_of_text, self.end_of_text, self.padding) if i is not None]
    return array[~np.isin(array, silent)]


def in_order(special_tokens: Sequence[str]) -> list[str]:
  """Names of special tokens, each once, in the order in which they are numbered."""
  return [name for name in SPECIAL_TOKENS if name in special_tokens]


def without_surrogates(text: str) -> str:
  """`text` with a `?` for each lone surrogate, which UTF-8 can't spell."""
  return text.encode('utf-8', 'replace').decode()
