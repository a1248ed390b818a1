"""Text to token ids and back: characters, bytes, words, GPT-2's byte-pair encoding, or another's.

A spec such as `char` or `gpt2:PATH` (`data.tokenizer`) names a tokenizer. One whose vocabulary is
of the corpus is made in two steps, so that several processes can count parts of it: `counts` of
each part, added up, then `build`.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import config, errors
from gpt_jax.data.tokenizers import base, bpe, char, word

Tokenizer = base.Tokenizer


class Gpt2Tokenizer(Tokenizer):
  """GPT-2's byte-pair encoding; the end of a text decodes to `<|endoftext|>`.

  The text `<|endoftext|>` itself is encoded as ordinary text, in several tokens.
  """

  kind = 'gpt2'
  vocab_size = bpe.END_OF_TEXT + 1
  end_of_text = bpe.END_OF_TEXT

  def __init__(self, path: str = '') -> None:
    """Takes the vocabulary from `path`, or finds it; raises `UserError` if there is none."""
    self._encoding = bpe.gpt2(path)

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    text = base.without_surrogates(text)
    return self._encoding.encode_to_numpy(text, disallowed_special=())

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return self._encoding.decode(self._checked(ids).tolist())

  def token_id(self, token: str) -> int:
    """As `Tokenizer.token_id`; `<|endoftext|>` is eos."""
    return super().token_id('eos' if token == '<|endoftext|>' else token)

  def token_bytes(self, token: int) -> bytes:
    """As `Tokenizer.token_bytes`."""
    return self._encoding.decode_single_token_bytes(self._checked([token]).item())

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`."""
    return {'kind': self.kind, 'vocab_bpe_sha256': bpe.SHA256}


def needs_counts(data: config.DataConfig) -> bool:
  """Whether the vocabulary is of the corpus: whether `counts` reads it."""
  return data.tokenizer in ('char', 'word')


def counts(data: config.DataConfig, texts: Iterable[str]) -> collections.Counter[str]:
  """How often each character (char) or word (word) occurs; nothing for others, `texts` unread.

  Args:
    data: The tokenizer's spec is read.
    texts: Documents, or parts of them that were cut between an ASCII letter and a space.
  """
  match data.tokenizer:
    case 'char':
      return char.count(texts)
    case 'word':
      return word.count(texts)
  return collections.Counter()


def build(data: config.DataConfig, counts: Mapping[str, int]) -> Tokenizer:
  """The tokenizer of a corpus.

  Args:
    data: The spec of the tokenizer, its special tokens and `min_frequency` are read.
    counts: Those of the whole corpus, as `counts` gives them.

  Raises:
    UserError: There is no such tokenizer, or a file that it needs can't be found or isn't sound.
  """
  kind, _, path = data.tokenizer.partition(':')
  special_tokens = data.special_tokens.split()
  match kind:
    case 'char':
      return char.CharTokenizer(''.join(sorted(counts)), special_tokens)
    case 'byte':
      return char.ByteTokenizer(special_tokens)
    case 'word':
      return word.build(counts, min_frequency=data.min_frequency, special_tokens=special_tokens)
    case 'gpt2':
      return Gpt2Tokenizer(path)
    case 'hf':
      from gpt_jax.data.tokenizers import hf

      return hf.load(path)
  raise _unknown(data.tokenizer)


def description(data: config.DataConfig) -> dict[str, Any]:
  """What decides the tokenizer apart from the corpus, for JSON; reads the files that `data` names.

  Raises:
    UserError: There is no such tokenizer, or its file can't be read or isn't GPT-2's vocabulary.
  """
  kind, _, path = data.tokenizer.partition(':')
  special_tokens = base.in_order(data.special_tokens.split())
  match kind:
    case 'char' | 'byte':
      return {'kind': kind, 'special_tokens': special_tokens}
    case 'word':
      minimum = data.min_frequency
      return {'kind': kind, 'special_tokens': special_tokens, 'min_frequency': minimum}
    case 'gpt2':
      if path:
        bpe.find_merges(path)
      return {'kind': kind, 'vocab_bpe_sha256': bpe.SHA256}
    case 'hf':
      from gpt_jax.data.tokenizers import hf

      return {'kind': kind, **hf.description(path)}
  raise _unknown(data.tokenizer)


def from_dict(description: Mapping[str, Any]) -> Tokenizer:
  """The inverse of `Tokenizer.to_dict`.

  Raises:
    UserError: `description` isn't of a tokenizer that exists here, or a file can't be found.
  """
  special_tokens: Any = description.get('special_tokens', [])
  sound = isinstance(special_tokens, list | dict) and all(
    name in base.SPECIAL_TOKENS for name in special_tokens
  )
  if sound:
    match description:
      case {'kind': 'char', 'characters': str(characters)}:
        return char.CharTokenizer(characters, special_tokens)
      case {'kind': 'byte'}:
        return char.ByteTokenizer(special_tokens)
      case {'kind': 'word', 'words': str(words)}:
        return word.WordTokenizer(words.split(' ') if words else [], special_tokens)
      case {'kind': 'gpt2', 'vocab_bpe_sha256': bpe.SHA256}:
        return Gpt2Tokenizer()
      case {'kind': 'hf', 'json': str(json), 'special_tokens': dict()}:
        from gpt_jax.data.tokenizers import hf

        return hf.HfTokenizer(json, special_tokens)
  raise _unknown(description)


def _unknown(what: object) -> errors.UserError:
  return errors.UserError(
    f'unknown tokenizer {str(what)[:200]}: it must be char with its characters, byte, word with '
    f'its words, gpt2 with the published vocabulary (vocab_bpe_sha256 {bpe.SHA256}), or hf with '
    'its tokenizer.json'
  )
