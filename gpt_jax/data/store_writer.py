"""Documents to a token store, in constant memory; the store appears complete or not at all."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from gpt_jax import errors
from gpt_jax.data import store, tokenizers

_SHARD = 'tokens-00000.bin'
_BATCH_CHARACTERS = 1 << 20  # handed to the encoding threads at a time: a fraction of a second

Progress = Callable[[int, int, int], None]


def write(
  directory: str | os.PathLike[str],
  documents: Iterable[str],
  tokenizer: tokenizers.Tokenizer,
  *,
  source: str,
  fingerprint: dict[str, Any],
  progress: Progress | None,
) -> store.Store:
  """Writes a store and opens it.

  Args:
    directory: Where it is to be; a store that another process puts there meanwhile is kept.
    documents: Texts; `tokenizer.end_of_text` is put behind each, where there is such an id. What
      the iterator raises ends the writing and leaves nothing behind.
    tokenizer: What encodes them.
    source: The source spec, for the manifest.
    fingerprint: The source's, for the manifest.
    progress: Called now and then with the documents, characters and tokens so far.

  Raises:
    UserError: There are no tokens, or the tokenizer can't encode a document.
    OSError: The directory can't be written.
  """
  directory = pathlib.Path(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(prefix=f'.{directory.name}.', dir=directory.parent))
  try:
    part.chmod(0o755)  # mkdtemp's are closed to others, with whom a cache may be shared
    with (part / _SHARD).open('xb') as file:
      shard = _ShardWriter(file, tokenizer)
      shard.write(documents, progress)
      _sync(file)
    if not shard.tokens:
      raise errors.UserError(f'{source} is empty: it gives no tokens to store.')
    manifest = shard.manifest(source, fingerprint)
    with (part / store.MANIFEST).open('xb') as file:
      file.write(json.dumps(dataclasses.asdict(manifest), indent=2).encode())
      _sync(file)
    _publish(part, directory)
  finally:
    shutil.rmtree(part, ignore_errors=True)  # gone already, if all went well
  return store.Store.open(directory)


class _ShardWriter:
  """Encodes documents into a file and counts what went through."""

  def __init__(self, file: BinaryIO, tokenizer: tokenizers.Tokenizer):
    self._file = file
    self._tokenizer = tokenizer
    self._dtype = store.DTYPES['uint16' if tokenizer.vocab_size <= 1 << 16 else 'uint32']
    self._digest = hashlib.sha256()
    self._documents = self._characters = self.tokens = 0

  def write(self, documents: Iterable[str], progress: Progress | None) -> None:
    """Appends the tokens of `documents`; tiktoken and NumPy encode on all cores."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for batch in _batches(documents):
        for ids in pool.map(self._encode, batch):
          self._file.write(ids.data)
          self._digest.update(ids.data)
          self.tokens += len(ids)
        self._documents += len(batch)
        self._characters += sum(map(len, batch))
        if progress:
          progress(self._documents, self._characters, self.tokens)

  def _encode(self, document: str) -> np.ndarray:
    """Token ids (L,) in the file's type, the end of text included."""
    ids = self._tokenizer.encode(document).astype(self._dtype)
    end = self._tokenizer.end_of_text
    return ids if end is None else np.append(ids, self._dtype.type(end))

  def manifest(self, source: str, fingerprint: dict[str, Any]) -> store.Manifest:
    """The manifest for what has been written."""
    return store.Manifest(
      format_version=store.FORMAT_VERSION,
      source=source,
      fingerprint=fingerprint,
      tokenizer=self._tokenizer.to_dict(),
      tokenizer_hash=self._tokenizer.hash,
      dtype=self._dtype.name,
      tokens=self.tokens,
      documents=self._documents,
      characters=self._characters,
      shards=[store.Shard(_SHARD, self.tokens, self._digest.hexdigest())],
    )


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
  """`documents` in lists of about `_BATCH_CHARACTERS`, or of one longer document."""
  batch: list[str] = []
  characters = 0
  for document in documents:
    batch.append(document)
    characters += len(document)
    if characters >= _BATCH_CHARACTERS:
      yield batch
      batch, characters = [], 0
  if batch:
    yield batch


def _publish(part: pathlib.Path, directory: pathlib.Path) -> None:
  """Gives the finished store its name, unless another process was first."""
  _sync_directory(part)
  try:
    part.rename(directory)
  except OSError:
    if not (directory / store.MANIFEST).is_file():
      raise
  _sync_directory(directory.parent)


def _sync(file: BinaryIO) -> None:
  file.flush()
  os.fsync(file.fileno())


def _sync_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # some network file systems can't
      os.fsync(descriptor)
  finally:
    os.close(descriptor)
