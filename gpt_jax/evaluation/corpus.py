"""The tokens of a text by the model's tokenizer, from a source, a token store or token files."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors
from gpt_jax.data import sources, store, tokenizers
from gpt_jax.data.batches import stream
from gpt_jax.data.store import ready, workers, writer
from gpt_jax.evaluation import scoring


@contextlib.contextmanager
def open_tokens(
  spec: str,
  tokenizer: tokenizers.Tokenizer,
  *,
  text_field: str,
  invalid_utf8: str,
  split: str,
  limit: int | None,
  progress: scoring.Progress | None,
) -> Iterator[stream.Tokens]:
  """The tokens of `spec`, memory-mapped; there as long as the `with` lasts.

  Text is encoded into files in a temporary folder, documents and their ends as for training.

  Args:
    spec: A source as `data.source` has it, one and without a weight, or the folder of a token
      store.
    tokenizer: The model's.
    text_field: As `data.text_field`.
    invalid_utf8: As `data.invalid_utf8`.
    split: The part of the source to take: `train`, `validation`, `test` or another name; empty
      takes all.
    limit: Only the first tokens, at most so many.
    progress: See `scoring.Progress`.

  Raises:
    UserError: There is no such text, it isn't sound, or isn't the tokenizer's.
  """
  with contextlib.ExitStack() as stack:
    if os.path.isdir(spec):
      arrays = _stored(spec, tokenizer, split)
    elif ready.names(spec):
      arrays = [f.tokens for f in _of_split(ready.open_tokens(spec, tokenizer).files, split, spec)]
    else:
      folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='gpt_jax-')))
      parts = _of_split(_source(spec, text_field).parts, split, spec)
      arrays = _encode(parts, tokenizer, folder, invalid_utf8, limit, progress)
    yield stream.Tokens(tuple(_first(arrays, limit)))


def _source(spec: str, text_field: str) -> sources.Source:
  ((weight, only), *more) = sources.parse_mixture(spec)
  if more or weight is not None:
    raise errors.UserError(
      f'--data={spec} is a mixture: measure one source at a time, without a weight'
    )
  return sources.open_source(only, text_field=text_field)


def _stored(folder: str, tokenizer: tokenizers.Tokenizer, split: str) -> list[np.ndarray]:
  """The shards of a token store."""
  found = store.Store.open(folder)
  if found.manifest.tokenizer_hash != tokenizer.hash:
    kind = found.manifest.tokenizer['kind']
    raise errors.UserError(
      f'{folder} has tokens of another tokenizer ({kind}) than the model ({tokenizer.kind}): give '
      f'the text itself, as --data={found.spec}'
    )
  pairs = zip(found.manifest.shards, found.tokens.shards, strict=True)
  arrays = {shard.file: array for shard, array in pairs}
  return [arrays[shard.file] for shard in _of_split(found.manifest.shards, split, folder)]


def _of_split(items: Sequence[Any], split: str, spec: str) -> list[Any]:
  """Those of parts, shards or files that belong to `split`."""
  chosen = [item for item in items if not split or item.split == split]
  if not chosen:
    have = ', '.join(sorted({item.split for item in items} - {''})) or 'none'
    raise errors.UserError(f'--split={split}: {spec} has no such split; there are: {have}')
  return chosen


def _encode(
  parts: Sequence[sources.Part],
  tokenizer: tokenizers.Tokenizer,
  folder: pathlib.Path,
  invalid_utf8: str,
  limit: int | None,
  progress: scoring.Progress | None,
) -> list[np.ndarray]:
  """The tokens of each part, as files in `folder`; no more parts than `limit` needs."""
  arrays: list[np.ndarray] = []
  size, done = sum(part.size for part in parts), 0
  for number, part in enumerate(parts):
    if limit is not None and sum(map(len, arrays)) >= limit:
      break
    task = writer.Task(
      folder, number, part, tokenizer.to_dict(), invalid_utf8, threads=workers.wanted(0)
    )
    try:
      for counts in writer.write_part(task):
        done += counts.characters
        if progress:
          progress('encoding the text', min(done, size), size)
    except OSError as e:
      raise errors.UserError(
        f'tokens cannot be kept in {folder} ({e.strerror or e}): mend that, or name another folder '
        'with the variable TMPDIR'
      ) from e
    except errors.UserError as e:
      raise _located(part, tokenizer, invalid_utf8) or e from e
    note = writer.read_note(folder, number)
    if note and note.shard:
      dtype = store.dtype_of(tokenizer.vocab_size)
      arrays.append(np.memmap(folder / note.shard.file, dtype, mode='r'))
  return arrays


def _located(
  part: sources.Part, tokenizer: tokenizers.Tokenizer, invalid_utf8: str
) -> errors.UserError | None:
  """What is wrong with the first piece that the tokenizer can't encode, with its place."""
  for piece in part.read():
    text, _ = sources.decode(piece, invalid_utf8=invalid_utf8)
    try:
      tokenizer.encode(text)
    except errors.UserError as e:
      return errors.UserError(f'{piece.place}: {e}')
  return None


def _first(arrays: Sequence[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
  """The first `limit` tokens of `arrays`."""
  for array in arrays:
    yield array[:limit]
    limit = limit and max(0, limit - len(array))
