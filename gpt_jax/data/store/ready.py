"""Token files that others have made, nanoGPT's and llm.c's, as a corpus: read as they are."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from gpt_jax.data import tokenizers
from gpt_jax.data.batches import sides, stream
from gpt_jax.data.sources import token_files

_SCHEME = 'tokens:'
_BLOCK = 1 << 22  # tokens looked at in one go


def names(spec: str) -> bool:
  """Whether `spec` names token files, not text."""
  return spec.startswith(_SCHEME)


@dataclasses.dataclass(frozen=True)
class ReadyTokens:
  """The files of a spec, and the tokenizer that the config says has made them."""

  spec: str
  files: tuple[token_files.TokenFile, ...]
  tokenizer: tokenizers.Tokenizer

  @property
  def num_bytes(self) -> int:
    """Bytes of tokens."""
    return sum(file.tokens.nbytes for file in self.files)

  @property
  def content_hash(self) -> str:
    """SHA-256 of the names and sizes of the files; what is in them has no hash of its own."""
    files = [(file.path.name, file.tokens.nbytes) for file in self.files]
    return hashlib.sha256(repr(files).encode()).hexdigest()

  def summary(self) -> str:
    """What the files hold, in a line."""
    total = sum(len(file.tokens) for file in self.files)
    return f'{self.spec}: {len(self.files)} files, {total:,} tokens'

  def verify(self, progress: Callable[[int], None] | None) -> None:
    """Reads all of the files; raises `UserError` if an id is outside the vocabulary."""
    for file in self.files:
      token_files.check([file], vocab_size=self.tokenizer.vocab_size)
      if progress:
        progress(file.tokens.nbytes)

  def tokenized(self) -> sides.Tokenized:
    """The tokens, and documents wherever an end of text stands."""
    return sides.Tokenized(
      source=self.spec,
      tokens=stream.Tokens(tuple(file.tokens for file in self.files)),
      splits=tuple(file.split for file in self.files),
      documents=functools.cache(self._documents),
    )

  def _documents(self) -> sides.Documents:
    ends, hashes, first = [], [], 0
    for file in self.files:
      start = 0
      for end in self._ends(file.tokens):
        # As in a store, of the text alone.
        text = end - (file.tokens[end - 1] == self.tokenizer.end_of_text)
        ids = file.tokens[start:text].astype(np.uint32)
        digest = hashlib.blake2b(ids.data, digest_size=8).digest()
        ends.append(first + end)
        hashes.append(int.from_bytes(digest, 'little'))
        start = end
      first += len(file.tokens)
    return sides.Documents(np.array(ends, np.int64), np.array(hashes, np.uint64))

  def _ends(self, tokens: np.ndarray) -> Iterator[int]:
    """Where documents end: behind each end of text, and at the end of the file."""
    end_of_text = self.tokenizer.end_of_text
    last = 0
    if end_of_text is not None:
      for start in range(0, len(tokens), _BLOCK):
        found = np.flatnonzero(tokens[start : start + _BLOCK] == end_of_text)
        for last in (found + start + 1).tolist():
          yield last
    if last < len(tokens):
      yield len(tokens)


def open_tokens(spec: str, tokenizer: tokenizers.Tokenizer) -> ReadyTokens:
  """The files that `spec`, `tokens:PATH`, names, made by `tokenizer`.

  Raises:
    UserError: There are none, or they are damaged.
  """
  return ReadyTokens(spec, tuple(token_files.find(spec.removeprefix(_SCHEME))), tokenizer)
