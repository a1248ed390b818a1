"""Text to token ids and back: characters, bytes, words, GPT-2's byte-pair encoding, or another's.

A spec such as `char` or `gpt2:PATH` (`data.tokenizer`) names a tokenizer. One whose vocabulary is
of the corpus is made in two steps, so that several processes can count parts of it: `counts` of
each part, added up, then `build`.
"""

import collections
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from gpt_jax import config, errors
from gpt_jax.data.tokenizers import base, bpe, char, word

Tokenizer = base.Tokenizer
_KINDS = ('char', 'byte', 'word', 'gpt2', 'hf')


def needs_counts(data: config.DataConfig) -> bool:
  """Returns whether the vocabulary is of the corpus, so that `counts` reads it."""
  return data.tokenizer in ('char', 'word')


def counts(data: config.DataConfig, texts: Iterable[str]) -> collections.Counter[str]:
  """Returns how often each character (char) or word (word) occurs; else nothing, `texts` unread.

  Documents may be cut between an ASCII letter and a space.
  """
  match data.tokenizer:
    case 'char':
      return char.count(texts)
    case 'word':
      return word.count(texts, lowercase=data.lowercase)
  return collections.Counter()


def build(data: config.DataConfig, counts: Mapping[str, int]) -> Tokenizer:
  """Builds the tokenizer of a corpus that has these `counts`; raises `UserError`."""
  kind, _, path = data.tokenizer.partition(':')
  special_tokens = data.special_tokens.split()
  match kind:
    case 'char':
      return char.CharTokenizer(''.join(sorted(counts)), special_tokens)
    case 'byte':
      return char.ByteTokenizer(special_tokens)
    case 'word':
      return word.build(
        counts,
        min_frequency=data.min_frequency,
        special_tokens=special_tokens,
        lowercase=data.lowercase,
      )
    case 'gpt2':
      return bpe.Gpt2Tokenizer(path)
    case 'hf':
      from gpt_jax.data.tokenizers import hf

      return hf.load(path)
  raise errors.UserError('data.tokenizer', f'no such tokenizer: {data.tokenizer!r}')


def description(data: config.DataConfig) -> dict[str, Any]:
  """Returns what decides the tokenizer apart from the corpus, as JSON; raises as `build`."""
  minimum = data.min_frequency if data.tokenizer == 'word' else None
  return {'without_corpus': build(data, {}).hash, 'min_frequency': minimum}


def from_dict(description: Any) -> Tokenizer:
  """Rebuilds a tokenizer: the inverse of `Tokenizer.to_dict`; raises `UserError`."""
  given = description.get('special_tokens', []) if isinstance(description, dict) else None
  if isinstance(given, list | dict) and all(name in base.SPECIAL_TOKENS for name in given):
    match description:
      case {'kind': 'char', 'characters': str(characters)}:
        return char.CharTokenizer(characters, given)
      case {'kind': 'byte'}:
        return char.ByteTokenizer(given)
      case {'kind': 'word', 'words': str(words)}:
        lowercase = bool(description.get('lowercase'))
        return word.WordTokenizer(words.split(' ') if words else [], given, lowercase=lowercase)
      case {'kind': 'gpt2', 'vocab_bpe_sha256': bpe.SHA256}:
        return bpe.Gpt2Tokenizer()
      case {'kind': 'hf', 'json': str(json), 'special_tokens': dict(tokens)}:
        if all(isinstance(token, str) for token in tokens.values()):
          from gpt_jax.data.tokenizers import hf

          return hf.HfTokenizer(json, {role: tokens.get(role) for role in base.SPECIAL_TOKENS})
  if isinstance(description, dict) and (kind := description.get('kind')) not in _KINDS:
    problem = f'kind {kind!r:.80} must be one of {", ".join(_KINDS)}'
    fix = 'restore it; one of a newer version of gpt_jax needs that version'
    raise errors.UserError('data.tokenizer', problem, fix)
  problem = f'does not describe a tokenizer: {reprlib.repr(description)}'
  raise errors.UserError('data.tokenizer', problem, 'restore it or get it again')
