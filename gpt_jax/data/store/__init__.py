"""A corpus as token ids on disk: a directory with a manifest and memory-mapped shards.

`manifest.json` is `Manifest`. A shard is two files: `tokens-NNNNN.bin`, bare little-endian uint16
or uint32, and `documents-NNNNN.bin`, two little-endian uint64 a document: where it ends in the
shard and a hash of its tokens. This module reads stores, `store_writer` makes them.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import sides, stream

FORMAT_VERSION = 2
MANIFEST = 'manifest.json'
DTYPES: dict[str, np.dtype[Any]] = {'uint16': np.dtype('<u2'), 'uint32': np.dtype('<u4')}
DOCUMENT = np.dtype([('end', '<u8'), ('hash', '<u8')])
CHECKSUM_BYTES = 1 << 20


def dtype_of(vocab_size: int) -> np.dtype[Any]:
  """The smallest type that holds the ids of a vocabulary."""
  return DTYPES['uint16' if vocab_size <= 1 << 16 else 'uint32']


@dataclasses.dataclass(frozen=True)
class Shard:
  """One part of the source, in two files.

  Attributes:
    file: Of the tokens.
    documents_file: Of the documents.
    split: What the source says that this text is for (`train`, `validation`, …), or ''.
    tokens: In the first file.
    documents: In the second.
    sha256: Of the first file, in hexadecimal.
    documents_sha256: Of the second.
    checksums: CRC-32 of each `CHECKSUM_BYTES` of the first, to tell where damage is.
  """

  file: str
  documents_file: str
  split: str
  tokens: int
  documents: int
  sha256: str
  documents_sha256: str
  checksums: list[int]


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a store holds and what it was made of.

  `empty_documents` were left out; `invalid_utf8` counts what was replaced by U+FFFD. `hash` is the
  SHA-256 of all the other fields.
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

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> Self:
    """The inverse of `dataclasses.asdict`; raises `KeyError` or `TypeError`."""
    return cls(**{**values, 'shards': [Shard(**shard) for shard in values['shards']]})

  def sealed(self) -> 'Manifest':
    """This manifest with its hash."""
    values = dataclasses.asdict(self)
    del values['hash']
    canonical = json.dumps(values, sort_keys=True, separators=(',', ':'))
    return dataclasses.replace(self, hash=hashlib.sha256(canonical.encode()).hexdigest())


@dataclasses.dataclass(frozen=True)
class Store:
  """The tokens of a source; the arrays are memory-mapped and read-only."""

  directory: pathlib.Path
  manifest: Manifest
  tokens: stream.Tokens

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> Self:
    """Opens a store without reading its tokens.

    Raises:
      UserError: There is none, its manifest is damaged, or a file is missing or of another size.
    """
    directory = pathlib.Path(directory)
    manifest = _read_manifest(directory)
    dtype = DTYPES[manifest.dtype]
    shards = []
    for shard in manifest.shards:
      _check_size(directory, shard.documents_file, shard.documents * DOCUMENT.itemsize)
      _check_size(directory, shard.file, shard.tokens * dtype.itemsize)
      shards.append(np.memmap(directory / shard.file, dtype, mode='r'))
    return cls(directory, manifest, stream.Tokens(tuple(shards)))

  @property
  def spec(self) -> str:
    """The source's."""
    return self.manifest.source

  @property
  def num_bytes(self) -> int:
    """Bytes of tokens."""
    return self.manifest.tokens * DTYPES[self.manifest.dtype].itemsize

  @property
  def content_hash(self) -> str:
    """SHA-256 of all tokens, shard by shard, wherever and whenever they were made."""
    shards = ''.join(shard.sha256 for shard in self.manifest.shards)
    return hashlib.sha256(shards.encode()).hexdigest()

  def summary(self) -> str:
    """What the store holds, in a line."""
    manifest = self.manifest
    notes = [
      f'{count:,} {what}'
      for count, what in [
        (manifest.empty_documents, 'empty documents left out'),
        (manifest.invalid_utf8, 'places that are not UTF-8 replaced'),
      ]
      if count
    ]
    return ', '.join(
      [
        f'{manifest.source}: {manifest.documents:,} documents',
        f'{manifest.characters:,} characters',
        f'{manifest.tokens:,} tokens',
        *notes,
      ]
    )

  def tokenizer(self) -> tokenizers.Tokenizer:
    """What made the tokens; raises `UserError` if it can't be made any more."""
    tokenizer = tokenizers.from_dict(self.manifest.tokenizer)
    if tokenizer.hash != self.manifest.tokenizer_hash:
      raise _damaged(self.directory, f'the tokenizer in {MANIFEST} does not have the hash there')
    return tokenizer

  def tokenized(self) -> sides.Tokenized:
    """The tokens and their documents, to be divided into sides."""
    return sides.Tokenized(
      source=self.manifest.source,
      tokens=self.tokens,
      splits=tuple(shard.split for shard in self.manifest.shards),
      documents=functools.cache(self._documents),
    )

  def _documents(self) -> sides.Documents:
    ends, hashes, first = [], [], 0
    for shard in self.manifest.shards:
      table = np.fromfile(self.directory / shard.documents_file, DOCUMENT)
      ends.append(table['end'].astype(np.int64) + first)
      hashes.append(table['hash'])
      first += shard.tokens
    return sides.Documents(np.concatenate(ends), np.concatenate(hashes))

  def verify(self, progress: Callable[[int], None] | None) -> None:
    """Reads all of the store; raises `UserError` if it isn't what was written.

    Args:
      progress: Called with the number of bytes that were read since the last call.
    """
    vocab_size = self.tokenizer().vocab_size
    hashes = {shard.sha256: shard.file for shard in self.manifest.shards}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      checks = [
        pool.submit(self._verify_shard, shard, vocab_size, hashes) for shard in self.manifest.shards
      ]
      for shard, check in zip(self.manifest.shards, checks, strict=True):
        check.result()
        if progress:
          progress(shard.tokens * DTYPES[self.manifest.dtype].itemsize)

  def _verify_shard(self, shard: Shard, vocab_size: int, hashes: dict[str, str]) -> None:
    path = self.directory / shard.file
    digest, outside, dtype = hashlib.sha256(), None, DTYPES[self.manifest.dtype]
    with path.open('rb') as file:
      for start in itertools.count(0, CHECKSUM_BYTES // dtype.itemsize):
        if not (part := file.read(CHECKSUM_BYTES)):
          break
        digest.update(part)
        ids = np.frombuffer(part, dtype)
        if outside is None and ids.max() >= vocab_size:
          at = int(np.argmax(ids >= vocab_size))
          outside = f'{path} has id {ids[at]} at position {start + at:,}'
    if digest.hexdigest() != shard.sha256:
      other = hashes.get(digest.hexdigest())
      where = f'it holds what belongs in {other}' if other else _where(path, shard)
      raise _damaged(self.directory, f'the SHA-256 of {path} is not the one in {MANIFEST}: {where}')
    if outside:
      raise _damaged(self.directory, f'{outside}, and ids end at {vocab_size - 1}')
    documents_path = self.directory / shard.documents_file
    data = documents_path.read_bytes()
    ends = np.frombuffer(data, DOCUMENT)['end'].astype(np.int64)
    increasing = np.all(np.diff(ends, prepend=0) > 0) and ends[-1] == shard.tokens
    if hashlib.sha256(data).hexdigest() != shard.documents_sha256 or not increasing:
      raise _damaged(self.directory, f'{documents_path} does not have the documents of {MANIFEST}')


def _where(path: pathlib.Path, shard: Shard) -> str:
  """The stretches of a damaged file that aren't as they were written."""
  bad = []
  with path.open('rb') as file:
    for i, checksum in enumerate(shard.checksums):
      if zlib.crc32(file.read(CHECKSUM_BYTES)) != checksum:
        bad.append(i)
  if not bad:
    return 'its checksums agree, so the hash itself was changed'
  first, last = bad[0] * CHECKSUM_BYTES, (bad[-1] + 1) * CHECKSUM_BYTES
  return f'{len(bad)} MiB of it, between bytes {first:,} and {last:,}'


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
  if manifest.dtype not in DTYPES:
    raise _damaged(directory, f'{path} names the type {manifest.dtype}, not one of {list(DTYPES)}')
  if manifest.sealed().hash != manifest.hash:
    raise _damaged(directory, f'{path} was changed: it does not have the hash that it tells')
  return manifest


def _check_size(directory: pathlib.Path, file: str, expected: int) -> None:
  path = directory / file
  if not path.is_file():
    raise _damaged(directory, f'{path} is missing')
  if (size := path.stat().st_size) != expected:
    raise _damaged(directory, f'{path} has {size:,} bytes, expected {expected:,}')


def _damaged(directory: pathlib.Path, what: str) -> errors.UserError:
  return errors.UserError(
    f'the token store is damaged: {what}. Delete {directory} and prepare the text again.'
  )
