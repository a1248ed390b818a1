"""Text to the shards of a token store, each whole or not there; with the last the store appears.

A store is written in a hidden folder beside its place, a shard a part of the source. A finished
shard has a note in `parts/`, so that a writing that was killed goes on where it was. The last act
gives the folder its name.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt_jax.data import sources, store, tokenizers

_BATCH_CHARACTERS = 1 << 20  # encoded and written at a time: a fraction of a second
_PARTS = 'parts'


class Counts(NamedTuple):
  """What went into a shard, or into several. Also tells progress."""

  documents: int = 0
  characters: int = 0
  tokens: int = 0
  empty_documents: int = 0
  invalid_utf8: int = 0

  def plus(self, other: 'Counts') -> 'Counts':
    """The sum, field by field."""
    return Counts(*map(sum, zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class Note:
  """A finished part: its shard, None if there was no text in it, and what went in."""

  shard: store.Shard | None
  counts: Counts


@dataclasses.dataclass(frozen=True)
class Task:
  """One part to write. Picklable."""

  folder: pathlib.Path
  number: int
  part: sources.Part
  tokenizer: dict[str, Any]
  invalid_utf8: str
  threads: int


def write_part(task: Task) -> Iterator[Counts]:
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
  total = Counts()
  name = f'tokens-{task.number:05}.bin'
  with _Appearing(task.folder / name) as file:
    for encoded in _encoded(task, tokenizer):
      file.append(encoded.ids.astype(dtype).tobytes())
      documents.append(encoded)
      total = total.plus(encoded.counts)
      yield encoded.counts
  if total.tokens:
    table = _Appearing(task.folder / f'documents-{task.number:05}.bin')
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
  with _Appearing(note_path(task.folder, task.number)) as file:
    file.append(json.dumps(note).encode())


@functools.lru_cache(1)
def _tokenizer(description: str) -> tokenizers.Tokenizer:
  """Of a JSON description; making GPT-2's takes 0.15 s, and a process writes many parts."""
  return tokenizers.from_dict(json.loads(description))


class _Encoded(NamedTuple):
  """Some tokens, and the documents that end in them."""

  ids: np.ndarray  # uint32 (L,)
  ends: list[int]  # in `ids`
  hashes: list[int]
  counts: Counts


def _encoded(task: Task, tokenizer: tokenizers.Tokenizer) -> Iterator[_Encoded]:
  """The tokens of a part, about `_BATCH_CHARACTERS` at a time."""
  begins = _special(tokenizer.start_of_text)
  closes = _special(tokenizer.end_of_text)
  digest = None  # of the document that isn't at its end yet
  with concurrent.futures.ThreadPoolExecutor(task.threads) as pool:
    for batch in _batches(_texts(task, joined=not tokenizer.cuts)):
      texts = [text.text for text in batch]
      encode = pool.map if task.threads > 1 else map
      arrays, ends, hashes, length, empty = [], [], [], 0, 0
      for text, ids in zip(batch, encode(tokenizer.encode, texts), strict=True):
        if digest is None:
          if text.last and not len(ids):
            empty += 1
            continue
          digest = hashlib.blake2b(digest_size=8)
          arrays.append(begins)
          length += len(begins)
        digest.update(ids.data)
        arrays.append(ids)
        length += len(ids)
        if text.last:
          arrays.append(closes)
          length += len(closes)
          ends.append(length)
          hashes.append(int.from_bytes(digest.digest(), 'little'))
          digest = None
      counts = Counts(
        documents=len(ends),
        characters=sum(map(len, texts)),
        tokens=length,
        empty_documents=empty,
        invalid_utf8=sum(text.invalid for text in batch),
      )
      yield _Encoded(np.concatenate([*arrays, _special(None)]), ends, hashes, counts)


def _special(token: int | None) -> np.ndarray:
  return np.array([] if token is None else [token], np.uint32)


class _Text(NamedTuple):
  text: str
  last: bool
  invalid: int


def _texts(task: Task, *, joined: bool) -> Iterator[_Text]:
  """The pieces of a part, decoded; those of one document in one if `joined`."""
  held: list[str] = []
  invalid = 0
  for piece in task.part.read():
    text, bad = sources.decode(piece, invalid_utf8=task.invalid_utf8)
    invalid += bad
    if joined and not piece.last:
      held.append(text)
      continue
    yield _Text(''.join([*held, text]) if held else text, piece.last, invalid)
    held, invalid = [], 0


def _batches(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
  """`texts` in lists of about `_BATCH_CHARACTERS`, or of one longer text."""
  batch: list[_Text] = []
  characters = 0
  for text in texts:
    batch.append(text)
    characters += len(text.text)
    if characters >= _BATCH_CHARACTERS:
      yield batch
      batch, characters = [], 0
  if batch:
    yield batch


class _Documents:
  """Where the documents of a shard end, and their hashes."""

  def __init__(self) -> None:
    self._tables: list[np.ndarray] = []
    self._tokens = 0

  def append(self, encoded: _Encoded) -> None:
    table = np.empty(len(encoded.ends), store.DOCUMENT)
    table['end'] = encoded.ends
    table['end'] += np.uint64(self._tokens)
    table['hash'] = encoded.hashes
    self._tables.append(table)
    self._tokens += len(encoded.ids)

  def table(self) -> np.ndarray:
    return np.concatenate(self._tables)


class _Appearing:
  """A file that has its name only when it is whole; hashes what goes in."""

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.checksums: list[int] = []
    self._part = path.with_name(f'.{path.name}.{os.getpid()}')
    self._digest = hashlib.sha256()
    self._checksum = self._unsealed = 0

  @property
  def sha256(self) -> str:
    return self._digest.hexdigest()

  def append(self, data: bytes) -> None:
    self._file.write(data)
    self._digest.update(data)
    rest = memoryview(data)
    while rest:
      part = rest[: store.CHECKSUM_BYTES - self._unsealed]
      self._checksum = zlib.crc32(part, self._checksum)
      self._unsealed += len(part)
      if self._unsealed == store.CHECKSUM_BYTES:
        self._seal()
      rest = rest[len(part) :]

  def _seal(self) -> None:
    """Ends a stretch that has a checksum of its own."""
    if self._unsealed:
      self.checksums.append(self._checksum)
    self._checksum = self._unsealed = 0

  def __enter__(self) -> '_Appearing':
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self._part.open('wb')
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      with self._file:
        if kind is None:
          self._seal()
          self._file.flush()
          os.fsync(self._file.fileno())
      if kind is None:
        self._part.replace(self.path)
    finally:
      self._part.unlink(missing_ok=True)


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
  return Note(shard, Counts(**values['counts']))


def keep_tokenizer(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> None:
  """Keeps a vocabulary that was counted, for a writing that goes on later."""
  with _Appearing(folder / _PARTS / 'tokenizer.json') as file:
    file.append(json.dumps(tokenizer.to_dict()).encode())


def kept_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer | None:
  """What `keep_tokenizer` kept, or None."""
  try:
    return tokenizers.from_dict(json.loads((folder / _PARTS / 'tokenizer.json').read_bytes()))
  except FileNotFoundError:
    return None


def publish(folder: pathlib.Path, directory: pathlib.Path, manifest: store.Manifest) -> None:
  """Makes the finished `folder` the store `directory`, unless another process was first."""
  with _Appearing(folder / store.MANIFEST) as file:
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
