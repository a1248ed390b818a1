"""The tokens of a text by the model's tokenizer, from a source, a token store or token files."""

import contextlib
import functools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data import encoding, pretokenized, sources, store, tokenizers, workers
from gpt_jax.data.batches import stream


@contextlib.contextmanager
def open_tokens(
  spec: str,
  tokenizer: tokenizers.Tokenizer,
  *,
  text_field: str,
  invalid_utf8: str,
  split: str,
  limit: int | None,
  progress: progress.Report,
) -> Iterator[stream.Tokens]:
  """Opens the tokens of `spec`, memory-mapped, for the duration of the `with` block.

  `spec` is one source as in `data.source`, whose text is encoded into a temporary folder, or the
  folder of a token store; `split` is the source's own, empty takes all; `limit` is of tokens.
  Raises `UserError` if there is no such text, it is invalid, or isn't the tokenizer's.
  """
  parts = _parts(spec, tokenizer, text_field)
  chosen: Any = [part for name, part in parts if split in ('', name)]
  if not chosen:
    found = ', '.join(sorted({name for name, _ in parts} - {''})) or 'none'
    raise errors.UserError('split', f'{split!r} is not a split of {spec}', f'it has: {found}')
  with tempfile.TemporaryDirectory(prefix='gpt_jax-') as folder:
    if isinstance(chosen[0], sources.Part):
      options: Any = {'tokenizer': tokenizer, 'invalid_utf8': invalid_utf8}
      options |= {'folder': pathlib.Path(folder), 'threads': os.cpu_count() or 1}
      work = functools.partial(encoding.write_shard, **options)
      shards = workers.Job(progress=progress).map('encoding the text', work, chosen)
      dtype = store.dtype_of(tokenizer.vocab_size)
      chosen = (np.memmap(f'{folder}/{shard.file}', dtype, 'r') for shard in shards if shard.tokens)
    taken: list[np.ndarray] = []
    try:
      for array in chosen:  # text is encoded here, as much as is needed
        taken.append(array[:limit])
        limit = limit and limit - len(taken[-1])
        if limit == 0:
          break
    except OSError as e:
      raise errors.UserError(folder, f'cannot be written ({e})', 'set TMPDIR to another') from e
    yield stream.Tokens(tuple(taken))


def _parts(spec: str, tokenizer: tokenizers.Tokenizer, text_field: str) -> list[tuple[str, Any]]:
  """The split of each part, and its text or its tokens."""
  if os.path.isdir(spec):
    if not os.path.isfile(os.path.join(spec, store.MANIFEST)):
      problem = f'{spec} is a folder, but no token store: it has no {store.MANIFEST}'
      raise errors.UserError('data', problem, f'for the text in it: text:{spec}/*.txt')
    kept = store.Store.open(spec)
    if kept.manifest.tokenizer_hash != tokenizer.hash:
      problem = f'{spec} has tokens of another tokenizer than the model'
      raise errors.UserError('data', problem, f'give the text itself: {kept.spec}')
    return list(zip(kept.shard_splits, kept.tokens.shards, strict=True))
  if spec.startswith(pretokenized.SCHEME):
    return [(file.split, file.tokens) for file in pretokenized.find(spec)]
  return [(part.split, part) for part in sources.open_single(spec, text_field=text_field).parts]
