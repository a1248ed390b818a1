"""A token a word: the vocabulary is the words of a corpus that occur often enough.

A word is a run of letters and digits, with apostrophes inside it (`don't`), and each other
character that isn't space is one by itself. Spaces and line breaks, `<br />` among them, are lost:
decoding puts a space between words, so the decoded text is readable but isn't the one that was
encoded.
"""

import collections
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.data.tokenizers import base

UNKNOWN = '<unk>'
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]|_")
_BREAK = re.compile(r'<br ?/?>')
_SPACE_BEFORE = re.compile(r' ([.,!?;:)])')
_SPACE_AFTER = re.compile(r'(\() ')


class WordTokenizer(base.Tokenizer):
  """Words, then the special tokens, of which it always has eos and unk; unk decodes to `<unk>`."""

  kind = 'word'

  def __init__(self, words: Sequence[str], special_tokens: Iterable[str], *, lowercase: bool):
    """Takes the words by their ids; `lowercase` ignores case."""
    self._lowercase = lowercase
    self._special_tokens = base.in_order([*special_tokens, 'eos', 'unk'])
    self._set_special_ids({n: len(words) + i for i, n in enumerate(self._special_tokens)})
    self._words = list(words)
    self._texts = [*words, *(UNKNOWN for _ in self._special_tokens)]
    self._ids = {word: i for i, word in enumerate(words)}
    self.vocab_size = len(self._texts)

  def encode(self, text: str) -> np.ndarray:
    ids = [self._ids.get(word, self.unk_id) for word in _split(text, self._lowercase)]
    return np.array(ids, np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Decodes with a space before each word, but not before `.,!?;:)` nor after `(`."""
    text = ' '.join(self._texts[i] for i in self._checked(ids).tolist())
    return _SPACE_AFTER.sub(r'\1', _SPACE_BEFORE.sub(r'\1', text))

  def to_dict(self) -> dict[str, Any]:
    words = ' '.join(self._words)
    saved = {'kind': self.kind, 'words': words, 'special_tokens': self._special_tokens}
    return saved | {'lowercase': True} if self._lowercase else saved


def count(texts: Iterable[str], *, lowercase: bool) -> collections.Counter[str]:
  """Returns how often each word occurs."""
  split = functools.partial(_split, lowercase=lowercase)
  return collections.Counter(itertools.chain.from_iterable(map(split, texts)))


def build(
  counts: Mapping[str, int],
  *,
  min_frequency: int,
  special_tokens: Iterable[str],
  lowercase: bool,
) -> WordTokenizer:
  """Builds a tokenizer of the words that occur `min_frequency` times, the most frequent first."""
  frequent = [word for word, times in counts.items() if times >= min_frequency]
  words = sorted(frequent, key=lambda w: (-counts[w], w))
  return WordTokenizer(words, special_tokens, lowercase=lowercase)


def _split(text: str, lowercase: bool) -> list[str]:
  text = _BREAK.sub(' ', base.without_surrogates(text))
  return _WORD.findall(text.lower() if lowercase else text)
