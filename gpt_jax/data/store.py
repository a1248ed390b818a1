"""A corpus as token ids on disk: a directory with a manifest and a memory-mapped shard.

`manifest.json` is `Manifest`; the shard is bare little-endian uint16 or uint32. This module reads
stores, `store_writer` makes them.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Self

import numpy as np

from gpt_jax import errors
from gpt_jax.data import tokenizers

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
DTYPES: dict[str, np.dtype[Any]] = {'uint16': np.dtype('<u2'), 'uint32': np.dtype('<u4')}
_HASH_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of tokens and its SHA-256, in hexadecimal."""

  file: str
  tokens: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store holds and what it was made of."""

  format_version: int
  source: str
  fingerprint: dict[str, Any]
  tokenizer: dict[str, Any]
  tokenizer_hash: str
  dtype: str
  tokens: int
  documents: int
  characters: int
  shards: list[Shard]

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> Self:
    """The inverse of `dataclasses.asdict`; raises `KeyError` or `TypeError`."""
    return cls(**{**values, 'shards': [Shard(**shard) for shard in values['shards']]})


@dataclasses.dataclass(frozen=True)
class Store:
  """The tokens of a corpus: `tokens` is (N,), memory-mapped and read-only."""

  directory: pathlib.Path
  manifest: Manifest
  tokens: np.ndarray

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> Self:
    """Opens a store; raises `UserError` if there is none or it is damaged."""
    directory = pathlib.Path(directory)
    manifest = _read_manifest(directory)
    dtype = DTYPES[manifest.dtype]
    (shard,) = manifest.shards
    path = directory / shard.file
    size = path.stat().st_size if path.is_file() else 0
    if size != shard.tokens * dtype.itemsize:
      raise _damaged(
        directory, f'{path} has {size:,} bytes, expected {shard.tokens * dtype.itemsize:,}'
      )
    return cls(directory, manifest, np.memmap(path, dtype, mode='r'))

  def tokenizer(self) -> tokenizers.Tokenizer:
    """What made the tokens; raises `UserError` if the manifest is damaged."""
    tokenizer = tokenizers.from_dict(self.manifest.tokenizer)
    if tokenizer.hash != self.manifest.tokenizer_hash:
      raise _damaged(self.directory, f'the tokenizer in {MANIFEST} does not have the hash there')
    return tokenizer

  def split(self, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens for training and, the last `val_fraction` of the corpus, for validation."""
    num_train = int(len(self.tokens) * (1 - val_fraction))
    return self.tokens[:num_train], self.tokens[num_train:]

  def verify(self) -> None:
    """Reads all of the store; raises `UserError` if it isn't what was written."""
    for shard in self.manifest.shards:
      path = self.directory / shard.file
      digest = hashlib.sha256()
      with path.open('rb') as file:
        while part := file.read(_HASH_BYTES):
          digest.update(part)
      if digest.hexdigest() != shard.sha256:
        raise _damaged(self.directory, f'the SHA-256 of {path} is not the one in {MANIFEST}')


def _read_manifest(directory: pathlib.Path) -> Manifest:
  path = directory / MANIFEST
  try:
    values = json.loads(path.read_bytes())
    version = values['format_version']
    if version != FORMAT_VERSION:
      raise errors.UserError(
        f'{directory} has token store format {version}, this version of gpt_jax reads format '
        f'{FORMAT_VERSION}: prepare the text again.'
      )
    manifest = Manifest.from_dict(values)
  except OSError as e:
    raise errors.UserError(f'{directory} is not a token store: {path}: {e.strerror}') from e
  except (ValueError, KeyError, TypeError) as e:
    raise _damaged(directory, f'{path} is not a manifest ({e!r})') from e
  if manifest.dtype not in DTYPES or len(manifest.shards) != 1:
    raise _damaged(directory, f'{path} names a type or shards that this format does not have')
  return manifest


def _damaged(directory: pathlib.Path, what: str) -> errors.UserError:
  return errors.UserError(
    f'the token store is damaged: {what}. Delete {directory} and prepare the text again.'
  )
