"""Token stores: the token ids of a source on disk, in memory-mapped shards with a manifest.

`manifest.json` is a `Manifest`. A shard is two files: `tokens-NNNNN.bin`, little-endian uint16 or
uint32 ids, and `documents-NNNNN.bin`, a `stream.DOCUMENT` per document with ends counted from the
start of the shard. This module reads stores; `data.encoding` writes shards, `data.prepare` stores.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from gpt_jax import errors, json_files
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import stream

FORMAT_VERSION = 4
MANIFEST = 'manifest.json'
_BLOCK = 1 << 21  # tokens hashed between two reports


def dtype_of(vocab_size: int) -> np.dtype[Any]:
  """Returns the smallest type that holds the ids of a vocabulary."""
  return np.dtype('<u2' if vocab_size <= 1 << 16 else '<u4')


@dataclasses.dataclass(frozen=True)
class Shard:
  """One part of a source: the names of its files, their SHA-256, and counts.

  `split` is the source's name of its split (`train`, `validation`, …), or ''. `classes` are names,
  by the numbers of its documents' labels.
  """

  file: str
  documents_file: str
  split: str
  tokens: int
  documents: int
  classes: list[str]
  characters: int
  empty_documents: int
  invalid_utf8: int
  sha256: str
  documents_sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store holds, and what it was made from.

  Counts are sums over the parts of the source; parts without tokens have no shard. Empty documents
  were left out, invalid UTF-8 was replaced by U+FFFD. `hash` is of all other fields.
  """

  format_version: int
  source: str
  fingerprint: dict[str, Any]
  tokenizer: dict[str, Any]
  tokenizer_hash: str
  dtype: str
  tokens: int
  documents: int
  characters: int
  empty_documents: int
  invalid_utf8: int
  shards: list[Shard]
  hash: str = ''

  def sealed(self) -> 'Manifest':
    """Returns this manifest with its hash."""
    values = dataclasses.asdict(self)
    del values['hash']
    canonical = json.dumps(values, sort_keys=True, separators=(',', ':'))
    return dataclasses.replace(self, hash=hashlib.sha256(canonical.encode()).hexdigest())

  @classmethod
  def read(cls, path: pathlib.Path) -> Self:
    """Reads a manifest; raises `UserError` if it is damaged or of another format."""
    values = json_files.read(path)
    if values.get('format_version') != FORMAT_VERSION:
      problem = f'is not the manifest of a token store of format {FORMAT_VERSION}'
      raise errors.UserError(str(path), problem, 'prepare the text again')
    try:
      manifest = cls(**{**values, 'shards': [Shard(**shard) for shard in values['shards']]})
      if manifest.sealed() == manifest:
        return manifest
    except (KeyError, TypeError):
      pass
    raise _damaged(path, 'is damaged')


@dataclasses.dataclass(frozen=True)
class Store:
  """The tokens of a source, memory-mapped and read-only."""

  directory: pathlib.Path
  manifest: Manifest
  tokens: stream.Tokens

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> Self:
    """Opens a store without reading its tokens.

    Raises `UserError` if there is none, or a file is damaged, missing or of another size.
    """
    directory = pathlib.Path(directory)
    manifest = Manifest.read(directory / MANIFEST)
    dtype = np.dtype(manifest.dtype).newbyteorder('<')
    for shard in manifest.shards:
      for file, expected in (
        (shard.file, shard.tokens * dtype.itemsize),
        (shard.documents_file, shard.documents * stream.DOCUMENT.itemsize),
      ):
        path = directory / file
        size = path.stat().st_size if path.is_file() else 'no'
        if size != expected:
          raise _damaged(path, f'has {size} bytes instead of {expected}')
    arrays = [np.memmap(directory / shard.file, dtype, mode='r') for shard in manifest.shards]
    return cls(directory, manifest, stream.Tokens(tuple(arrays)))

  @property
  def spec(self) -> str:
    return self.manifest.source

  @property
  def content_hash(self) -> str:
    """SHA-256 of all tokens, shard by shard: the same wherever and whenever they were made."""
    shards = ''.join(shard.sha256 for shard in self.manifest.shards)
    return hashlib.sha256(shards.encode()).hexdigest()

  @property
  def shard_splits(self) -> tuple[str, ...]:
    return tuple(shard.split for shard in self.manifest.shards)

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    names = {name for shard in self.manifest.shards for name in shard.classes}
    return tuple(sorted(names, key=lambda name: (len(name) if name.isdecimal() else 99, name)))

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """(N,) of `stream.DOCUMENT`, ends in the addresses of `tokens`, labels as in `classes`."""
    tables, first = [], 0
    for shard in self.manifest.shards:
      table = np.fromfile(self.directory / shard.documents_file, stream.DOCUMENT)
      table['end'] += np.uint64(first)
      numbers = [*map(self.classes.index, shard.classes), -1]  # the last is that of no class
      table['label'] = np.array(numbers)[table['label']]
      tables.append(table)
      first += shard.tokens
    return np.concatenate(tables)

  def tokenizer(self) -> tokenizers.Tokenizer:
    """Returns what made the tokens; raises `UserError` if it can't be rebuilt."""
    tokenizer = tokenizers.from_dict(self.manifest.tokenizer)
    if tokenizer.hash != self.manifest.tokenizer_hash:
      raise _damaged(self.directory / MANIFEST, 'has a tokenizer that does not have its hash')
    return tokenizer

  def summary(self) -> str:
    """Returns what the store holds, in a line."""
    counts = {
      'documents': self.manifest.documents,
      'characters': self.manifest.characters,
      'tokens': self.manifest.tokens,
      'empty documents left out': self.manifest.empty_documents,
      'invalid places of UTF-8 replaced': self.manifest.invalid_utf8,
    }
    return f'{self.spec}: ' + ', '.join(f'{n:,} {what}' for what, n in counts.items() if n)

  def verify(self, report: Callable[[int], None]) -> None:
    """Reads the whole store; raises `UserError` if it isn't what was written."""
    vocab_size = self.tokenizer().vocab_size
    hashes = hash_tokens(self.tokens.shards, vocab_size=vocab_size, report=report)
    for shard, (sha256, outside) in zip(self.manifest.shards, hashes, strict=True):
      if sha256 != shard.sha256 or outside is not None:
        raise _damaged(self.directory / shard.file, 'has other tokens than were written')
      path = self.directory / shard.documents_file
      if hashlib.sha256(path.read_bytes()).hexdigest() != shard.documents_sha256:
        raise _damaged(path, 'has other documents than were written')


def hash_tokens(
  shards: Sequence[np.ndarray], *, vocab_size: int, report: Callable[[int], None]
) -> list[tuple[str, int | None]]:
  """Returns the SHA-256 of each shard (tokens,), and the position of its first id >= `vocab_size`.

  Uses all cores. `report` is called with the bytes of each block; what it raises ends the work.
  """
  lock = threading.Lock()

  def hash_shard(shard: np.ndarray) -> tuple[str, int | None]:
    digest, outside = hashlib.sha256(), None
    for start in range(0, len(shard), _BLOCK):
      block = shard[start : start + _BLOCK]
      digest.update(block.data)
      if outside is None and block.max() >= vocab_size:
        outside = start + int(np.argmax(block >= vocab_size))
      with lock:
        report(block.nbytes)
    return digest.hexdigest(), outside

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    return list(pool.map(hash_shard, shards))


def _damaged(path: pathlib.Path, problem: str) -> errors.UserError:
  return errors.UserError(str(path), problem, f'delete {path.parent} and prepare the text again')
