"""Text to the shards of a token store, each whole or not there; with the last the store appears.

A store is written in a hidden folder beside its place, a shard a part of the source. A finished
shard has a note in `parts/`, so that a writing that was killed goes on where it was. The last act
gives the folder its name.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_jax.data import sources, store, tokenizers
from gpt_jax.data.store import encoding, whole_file

_PARTS = 'parts'


@dataclasses.dataclass(frozen=True)
class Note:
  """A finished part: its shard, None if there was no text in it, and what went in."""

  shard: store.Shard | None
  counts: encoding.Counts


@dataclasses.dataclass(frozen=True)
class Task:
  """One part to write. Picklable."""

  folder: pathlib.Path
  number: int
  part: sources.Part
  tokenizer: dict[str, Any]
  invalid_utf8: str
  threads: int


def write_part(task: Task) -> Iterator[encoding.Counts]:
  """Writes the shard of one part and then its note.

  Yields:
    What was written since the last time, about once a million characters.

  Raises:
    UserError: The text isn't what it should be; names the place.
    OSError: The folder can't be written.
  """
  tokenizer = _tokenizer(json.dumps(task.tokenizer))
  documents, shard = _Documents(), None
  dtype = store.dtype_of(tokenizer.vocab_size)
  total = encoding.Counts()
  name = f'tokens-{task.number:05}.bin'
  with whole_file.WholeFile(task.folder / name) as file:
    for encoded in encoding.encode(
      task.part.read(), tokenizer, invalid_utf8=task.invalid_utf8, threads=task.threads
    ):
      file.append(encoded.ids.astype(dtype).tobytes())
      documents.append(encoded)
      total = total.plus(encoded.counts)
      yield encoded.counts
  if total.tokens:
    table = whole_file.WholeFile(task.folder / f'documents-{task.number:05}.bin')
    with table:
      table.append(documents.table().tobytes())
    shard = store.Shard(
      file=name,
      documents_file=table.path.name,
      split=task.part.split,
      tokens=total.tokens,
      documents=total.documents,
      sha256=file.sha256,
      documents_sha256=table.sha256,
      checksums=file.checksums,
    )
  else:
    (task.folder / name).unlink()
  note = {'shard': shard and dataclasses.asdict(shard), 'counts': total._asdict()}
  with whole_file.WholeFile(note_path(task.folder, task.number)) as file:
    file.append(json.dumps(note).encode())


@functools.lru_cache(1)
def _tokenizer(description: str) -> tokenizers.Tokenizer:
  """Of a JSON description; making GPT-2's takes 0.15 s, and a process writes many parts."""
  return tokenizers.from_dict(json.loads(description))


class _Documents:
  """Where the documents of a shard end, and their hashes."""

  def __init__(self) -> None:
    self._tables: list[np.ndarray] = []
    self._tokens = 0

  def append(self, encoded: encoding.Encoded) -> None:
    table = np.empty(len(encoded.ends), store.DOCUMENT)
    table['end'] = encoded.ends
    table['end'] += np.uint64(self._tokens)
    table['hash'] = encoded.hashes
    self._tables.append(table)
    self._tokens += len(encoded.ids)

  def table(self) -> np.ndarray:
    return np.concatenate(self._tables)


def note_path(folder: pathlib.Path, number: int) -> pathlib.Path:
  """Where the note of part `number` is, once its shard is whole."""
  return folder / _PARTS / f'{number:05}.json'


def read_note(folder: pathlib.Path, number: int) -> Note | None:
  """The note of part `number`, or None if it isn't finished."""
  try:
    values = json.loads(note_path(folder, number).read_bytes())
  except FileNotFoundError:
    return None
  shard = values['shard'] and store.Shard(**values['shard'])
  return Note(shard, encoding.Counts(**values['counts']))


def keep_tokenizer(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
  """Keeps a vocabulary that was counted, for a writing that goes on later."""
  with whole_file.WholeFile(folder / _PARTS / 'tokenizer.json') as file:
    file.append(json.dumps(tokenizer.to_dict()).encode())


def kept_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer | None:
  """What `keep_tokenizer` kept, or None."""
  try:
    return tokenizers.from_dict(json.loads((folder / _PARTS / 'tokenizer.json').read_bytes()))
  except FileNotFoundError:
    return None


def publish(folder: pathlib.Path, directory: pathlib.Path, manifest: store.Manifest) -> None:
  """Makes the finished `folder` the store `directory`, unless another process was first."""
  with whole_file.WholeFile(folder / store.MANIFEST) as file:
    file.append(json.dumps(dataclasses.asdict(manifest.sealed()), indent=2).encode())
  shutil.rmtree(folder / _PARTS)
  for path in folder.glob('.*'):  # of writers that were killed
    path.unlink()
  _sync_directory(folder)
  try:
    folder.rename(directory)
  except OSError:
    if not (directory / store.MANIFEST).is_file():
      raise
    shutil.rmtree(folder)
  _sync_directory(directory.parent)


def _sync_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # some network file systems can't
      os.fsync(descriptor)
  finally:
    os.close(descriptor)
