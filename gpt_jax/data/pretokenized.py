"""Token files written by nanoGPT and llm.c, read in place.

nanoGPT (data/*/prepare.py): bare uint16. llm.c (dev/data/data_common.py): a header of 256 int32, of
which the first three are a magic number, a version and the number of tokens, then the tokens. All
are little-endian. The `meta.pkl` of nanoGPT's character data is never read: unpickling can run any
code.
"""

import dataclasses
import functools
import glob
import hashlib
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import errors
from gpt_jax.data import store, tokenizers, workers
from gpt_jax.data.batches import stream
from gpt_jax.data.sources import corpus, files

SCHEME = 'tokens:'  # with which a source begins that names token files, not text
_HEADER_BYTES = 256 * 4
# Magic number -> version and type of the tokens.
_FORMATS: dict[int, tuple[int, np.dtype[Any]]] = {
  20240520: (1, np.dtype('<u2')),
  20240801: (7, np.dtype('<u4')),
}
_EVAL_MAGIC = 20240522
_BLOCK = 1 << 22  # tokens searched at a time


class TokenFile(NamedTuple):
  """A file of tokens: (N,) uint16 or uint32, memory-mapped and read-only, without the header.

  `split` is `train`, `validation` or `test` if the file's name has such a word, else ''.
  """

  path: pathlib.Path
  split: str
  tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenFiles:
  """The files of a source, each a shard, like a `store.Store`.

  `eos_id` ends a document; `content_hash` is a SHA-256 of the names and tokens of the files.
  """

  spec: str
  tokens: stream.Tokens
  shard_splits: tuple[str, ...]
  eos_id: int | None
  content_hash: str
  classes: tuple[str, ...] = ()

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """(N,) of `stream.DOCUMENT`: a document ends at each eos and at the end of a file."""
    documents, first = [], 0
    for shard in self.tokens.shards:
      tokens, start = np.asarray(shard), 0
      blocks = [] if self.eos_id is None else range(0, len(tokens), _BLOCK)
      ends = [np.flatnonzero(tokens[i : i + _BLOCK] == self.eos_id) + i + 1 for i in blocks]
      for end in np.unique(np.concatenate([*ends, [len(tokens)]])).tolist():
        # As in a store, the hash is of the text alone.
        text = tokens[start : end - (tokens[end - 1] == self.eos_id)].astype(np.uint32)
        digest = hashlib.blake2b(text.data, digest_size=8).digest()
        documents.append((first + end, int.from_bytes(digest, 'little'), -1))
        start = end
      first += len(tokens)
    return np.array(documents, stream.DOCUMENT)

  def summary(self) -> str:
    """Returns what the files hold, in a line."""
    return f'{self.spec}: {len(self.shard_splits)} files, {len(self.tokens):,} tokens'


def open_files(spec: str, tokenizer: tokenizers.Tokenizer, job: workers.Job) -> TokenFiles:
  """Opens the files of `tokens:PATH`, hashes them and checks their ids.

  Raises `UserError` as `find` does, and if an id is outside the vocabulary of `tokenizer`.
  """
  found = find(spec)
  tokens = stream.Tokens(tuple(file.tokens for file in found))
  report = job.reporter(f'reading {spec}', tokens.nbytes)
  hashes = store.hash_tokens(tokens.shards, vocab_size=tokenizer.vocab_size, report=report)
  for file, (_, outside) in zip(found, hashes, strict=True):
    if outside is not None:
      problem = f'token {outside} is {file.tokens[outside]}, not below {tokenizer.vocab_size}'
      fix = 'set `data.tokenizer` to the one that made the file'
      raise errors.UserError(str(file.path), problem, fix)
  named = [(file.path.name, sha256) for file, (sha256, _) in zip(found, hashes, strict=True)]
  content_hash = hashlib.sha256(repr(named).encode()).hexdigest()
  splits = tuple(file.split for file in found)
  return TokenFiles(spec, tokens, splits, tokenizer.eos_id, content_hash)


def find(spec: str) -> list[TokenFile]:
  """Returns the files of `tokens:PATH`, in the order of their paths, without reading their tokens.

  PATH is a file, a glob, or a folder: all `.bin` files in it. Raises `UserError` if there is none,
  or one is damaged.
  """
  pattern = os.path.expanduser(spec.removeprefix(SCHEME))
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), '*.bin')
  found = []
  for path in files.find('tokens', pattern):
    words = re.split('[^a-z]+', path.stem.lower())  # as in fineweb_train_000001
    splits = {corpus.known_split(word) for word in words} - {''}
    found.append(TokenFile(path, splits.pop() if len(splits) == 1 else '', _map(path)))
  return found


def _map(path: pathlib.Path) -> np.ndarray:
  try:
    size = path.stat().st_size
    with path.open('rb') as file:
      header = np.frombuffer(file.read(_HEADER_BYTES)[: size // 4 * 4], '<i4')
    magic, version, num_tokens = [*header[:3].tolist(), 0, 0, 0][:3]
    known, dtype = _FORMATS.get(magic, (0, np.dtype('<u2')))
    offset = _HEADER_BYTES if known else 0
    problem = ''
    if magic == _EVAL_MAGIC:
      problem = "is llm.c's file of evaluation questions, not text"
    elif known and version != known:
      problem = f"has version {version} of llm.c's format {magic}, not {known}"
    elif known and size != offset + num_tokens * dtype.itemsize:
      problem = f'has {size:,} bytes, but its header promises {num_tokens:,} tokens'
    elif size <= offset:
      problem = 'has no tokens'
    elif size % dtype.itemsize:
      problem = f'has {size:,} bytes, not a whole number of {dtype.name} tokens'
    if problem:
      raise errors.UserError(str(path), problem, 'get it again or leave it out of `data.source`')
    return np.memmap(path, dtype, mode='r', offset=offset)
  except OSError as e:
    raise files.unreadable(path, e) from e
