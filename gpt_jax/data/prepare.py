"""From the data section of a config to a tokenizer and a token store, made once and kept."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from gpt_jax import config, errors
from gpt_jax.data import sources, store, store_writer, tokenizers

Check = Callable[[], None]


def prepare(
  data: config.DataConfig, *, progress: store_writer.Progress | None, check: Check | None
) -> tuple[tokenizers.Tokenizer, store.Store]:
  """The tokenizer and the tokens of `data.source`, from the cache if they are there.

  A store's name holds a hash of the source's fingerprint: text that changed gets another store.

  Args:
    data: The source, the tokenizer and the cache directory are read.
    progress: Called now and then with the documents, characters and tokens stored so far.
    check: Called between documents; what it raises (`errors.Stopped`) leaves nothing behind.

  Raises:
    UserError: The source isn't sound, the kept store is damaged, or the cache can't be written.
  """
  source = sources.open_source(data.source)
  fingerprint = source.fingerprint()
  directory = cache_folder(data.cache_dir) / _store_name(data, fingerprint)
  try:
    if directory.exists():
      kept = store.Store.open(directory)
      return kept.tokenizer(), kept
    tokenizer = tokenizers.build(data.tokenizer, _watched(source, check))
    return tokenizer, store_writer.write(
      directory,
      _watched(source, check),
      tokenizer,
      source=source.spec,
      fingerprint=fingerprint,
      progress=progress,
    )
  except OSError as e:
    raise errors.UserError(
      f'the token store {directory} cannot be kept ({e.strerror or e}): mend that, or name another '
      'folder with --config.data.cache_dir.'
    ) from e


def check_length(*, num_train: int, num_val: int, block_size: int) -> None:
  """Raises `UserError` if a side of the split has no window of `block_size` + 1 tokens."""
  if min(num_train, num_val) > block_size:
    return
  raise errors.UserError(
    f'the text is too short: {num_train:,} tokens for training and {num_val:,} for validation, and '
    f'each needs at least {block_size + 1:,} (model.block_size + 1). Give more text '
    '(--config.data.source), or a smaller --config.model.block_size, or another share for '
    'validation (--config.data.val_fraction).'
  )


def cache_folder(cache_dir: str) -> pathlib.Path:
  """Where stores are kept, for the value of `data.cache_dir`."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home, 'gpt_jax', 'tokens')


def _store_name(data: config.DataConfig, fingerprint: dict[str, object]) -> str:
  """A name to recognise the source by, and a hash of all that the tokens depend on."""
  slug = re.sub('[^A-Za-z0-9]+', '-', data.source).strip('-')[:60]
  key = json.dumps([data.source, fingerprint, data.tokenizer, store.FORMAT_VERSION], sort_keys=True)
  return f'{slug}-{data.tokenizer}-{hashlib.sha256(key.encode()).hexdigest()[:12]}'


def _watched(source: sources.Source, check: Check | None) -> Iterator[str]:
  """The documents of `source`, with a call of `check` before each."""
  for document in source.documents():
    if check:
      check()
    yield document
