"""Text to a shard of a token store: documents encoded, with bos and eos around them, and hashed."""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import atomic, errors
from gpt_jax.data import sources, store, tokenizers
from gpt_jax.data.batches import stream

_BATCH_CHARACTERS = 1 << 20  # encoded at a time: a fraction of a second


class _Text(NamedTuple):
  """A document or, unless `last`, a stretch of one, decoded."""

  place: str
  text: str
  last: bool
  invalid: int
  label: str


def write_shard(
  number: int,
  part: sources.Part,
  report: Callable[[int], None] | None = None,
  *,
  folder: pathlib.Path,
  tokenizer: tokenizers.Tokenizer,
  invalid_utf8: str,
  threads: int,
) -> store.Shard:
  """Encodes the documents of a part and writes them to `folder` as shard `number`.

  `report` is called with the characters of each batch. A shard without tokens has no files. Raises
  `UserError` if the text is invalid or the tokenizer doesn't know something in it, and `OSError`.
  """
  dtype = store.dtype_of(tokenizer.vocab_size)
  special_ids = (tokenizer.bos_id, tokenizer.eos_id)
  bos, eos = (np.array([] if i is None else [i], np.uint32) for i in special_ids)
  tokens = characters = empty = invalid = 0
  documents: list[tuple[int, int, int]] = []  # as `stream.DOCUMENT`
  classes: dict[str, int] = {'': -1}
  document_hash: Any = None  # of a document that has begun and not ended
  sha256 = hashlib.sha256()
  path, documents_path = (folder / f'{kind}-{number:05}.bin' for kind in ('tokens', 'documents'))
  with atomic.open_file(path) as file:
    for text, ids in _encoded(part, tokenizer, invalid_utf8, threads, report):
      characters += len(text.text)
      invalid += text.invalid
      begins = document_hash is None
      if begins and text.last and not len(ids):
        empty += 1
        continue
      document_hash = document_hash or hashlib.blake2b(digest_size=8)
      document_hash.update(ids.data)
      data = np.concatenate([bos] * begins + [ids] + [eos] * text.last).astype(dtype)
      sha256.update(data.data)
      file.write(data.data)
      tokens += len(data)
      if text.last:
        label = classes.setdefault(text.label, len(classes) - 1)
        documents.append((tokens, int.from_bytes(document_hash.digest(), 'little'), label))
        document_hash = None
  table = np.array(documents, stream.DOCUMENT).tobytes()
  if tokens:
    atomic.write_bytes(documents_path, table)
  else:
    path.unlink()
  return store.Shard(
    file=path.name,
    documents_file=documents_path.name,
    split=part.split,
    tokens=tokens,
    documents=len(documents),
    classes=list(classes)[1:],
    characters=characters,
    empty_documents=empty,
    invalid_utf8=invalid,
    sha256=sha256.hexdigest(),
    documents_sha256=hashlib.sha256(table).hexdigest(),
  )


def _encoded(
  part: sources.Part,
  tokenizer: tokenizers.Tokenizer,
  invalid_utf8: str,
  threads: int,
  report: Callable[[int], None] | None,
) -> Iterator[tuple[_Text, np.ndarray]]:
  """The texts of a part with their tokens, uint32 (L,)."""

  def encode(text: _Text) -> np.ndarray:
    try:
      return tokenizer.encode(text.text)
    except errors.UserError as e:
      raise e.at(text.place) from e

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for batch in _batches(part.read(), invalid_utf8, whole=not tokenizer.cuts):
      yield from zip(batch, (pool.map if threads > 1 else map)(encode, batch), strict=True)
      if report:
        report(sum(len(text.text) for text in batch))


def _batches(
  pieces: Iterable[sources.Piece], invalid_utf8: str, *, whole: bool
) -> Iterator[list[_Text]]:
  """The decoded pieces, those of one document joined if `whole`, `_BATCH_CHARACTERS` at a time."""
  batch: list[_Text] = []
  held: list[str] = []  # of a document that has to be joined
  place, invalid, size = '', 0, 0
  for piece in pieces:
    text, count = sources.decode(piece, invalid_utf8=invalid_utf8)
    held.append(text)
    place, invalid, size = place or piece.place, invalid + count, size + len(text)
    if piece.last or not whole:
      batch.append(_Text(place, ''.join(held), piece.last, invalid, piece.label))
      held, place, invalid = [], '', 0
      if size >= _BATCH_CHARACTERS:
        yield batch
        batch, size = [], 0
  yield batch
