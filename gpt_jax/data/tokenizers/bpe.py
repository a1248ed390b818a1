"""GPT-2's byte-pair encoding; the only module that imports tiktoken.

The vocabulary is one published file, `vocab.bpe`, whose SHA-256 is checked. Without a path it is
looked for in `TIKTOKEN_CACHE_DIR`, in this package's own cache, and on the network; not by tiktoken
itself, which downloads without a time-out and deletes a cached file that it finds damaged.
"""

import contextlib
import functools
import hashlib
import http.client
import os
import pathlib
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from gpt_jax import atomic, errors, json_files, user_cache
from gpt_jax.data.tokenizers import base

URL = 'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe'
CACHE_NAME = hashlib.sha1(URL.encode()).hexdigest()  # of the file in a tiktoken cache
SHA256 = '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'
END_OF_TEXT = 50256
_TIMEOUT = 10  # seconds without an answer


class Gpt2Tokenizer(base.Tokenizer):
  """GPT-2's byte-pair encoding (Radford et al. 2019); eos decodes to `<|endoftext|>`.

  The text `<|endoftext|>` itself is encoded as ordinary text, in several tokens.
  """

  kind = 'gpt2'
  vocab_size = END_OF_TEXT + 1
  eos_id = END_OF_TEXT

  def __init__(self, path: str = '') -> None:
    self._encoding = tiktoken.Encoding(
      'gpt2',
      pat_str=openai_public.r50k_pat_str,
      mergeable_ranks=mergeable_ranks(find_merges(path)),
      special_tokens={openai_public.ENDOFTEXT: END_OF_TEXT},
      explicit_n_vocab=self.vocab_size,
    )

  def encode(self, text: str) -> np.ndarray:
    text = base.without_surrogates(text)
    return self._encoding.encode_to_numpy(text, disallowed_special=())

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._encoding.decode(self._checked(ids, text_only=False).tolist())

  def token_id(self, token: str) -> int:
    return super().token_id('eos' if token == openai_public.ENDOFTEXT else token)

  def token_bytes(self, token: int) -> bytes:
    [checked] = self._checked([token], text_only=False).tolist()
    return self._encoding.decode_single_token_bytes(checked)

  def to_dict(self) -> dict[str, Any]:
    return {'kind': self.kind, 'vocab_bpe_sha256': SHA256}


def mergeable_ranks(merges: bytes) -> dict[bytes, int]:
  """Returns token bytes -> id, from the contents of `vocab.bpe`."""
  byte_of = {char: b for b, char in _spelling().items()}
  ids = spelled_vocabulary(merges)
  del ids[openai_public.ENDOFTEXT]
  return {bytes(map(byte_of.__getitem__, token)): rank for token, rank in ids.items()}


def spelled_vocabulary(merges: bytes) -> dict[str, int]:
  """Returns token as spelled in files -> id, from `vocab.bpe`: the contents of `encoder.json`.

  The ids are the bytes in the order of `_spelling`, then the merges in the order of their lines
  (Radford et al. 2019, the released code).
  """
  lines = merges.decode().splitlines()[1:]  # behind a version
  tokens = [*_spelling().values(), *(line.replace(' ', '') for line in lines)]
  return {token: i for i, token in enumerate([*tokens, openai_public.ENDOFTEXT])}


def _spelling() -> dict[int, str]:
  """Byte -> the character that spells it: itself if it is printable, else one from U+0100 on."""
  printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
  others = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def is_gpt2(merges: bytes) -> bool:
  """Returns whether these are the contents of the published `vocab.bpe`."""
  return hashlib.sha256(merges).hexdigest() == SHA256


def find_merges(path: str = '') -> bytes:
  """Returns the verified contents of `vocab.bpe`; raises `UserError` if it isn't found.

  `path` is the file, or a folder that has it as vocab.bpe; it is kept in the package's own cache
  too, where a later run finds it without `path`.
  """
  own = user_cache.folder() / 'tiktoken' / CACHE_NAME
  if path:
    given = pathlib.Path(path).expanduser()
    data = _read(given / 'vocab.bpe' if given.is_dir() else given)
    _keep(own, data)
    return data
  users = os.environ.get('TIKTOKEN_CACHE_DIR')
  places = [pathlib.Path(users, CACHE_NAME), own] if users else [own]
  for place in places:
    try:
      return _read(place)
    except errors.UserError as e:
      if place.exists():
        _warn(str(e))
  try:
    with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response:
      data = response.read()
    if not is_gpt2(data):
      raise ValueError('its SHA-256 is not the published one')
  except (OSError, ValueError, http.client.HTTPException) as e:
    problem = f"GPT-2's vocabulary is not in {', '.join(map(str, places))} nor at {URL} ({e})"
    fix = 'connect to the network or download the file elsewhere and use `data.tokenizer=gpt2:PATH`'
    raise errors.UserError('data.tokenizer', problem, fix) from e
  _keep(own if places[0].exists() else places[0], data)  # a damaged file is the user's to delete
  return data


def _read(path: pathlib.Path) -> bytes:
  """The verified contents of a file; raises `UserError`."""
  data = json_files.read_bytes(path)
  if not is_gpt2(data):
    raise errors.UserError(str(path), "is not GPT-2's vocab.bpe, or damaged", f'get it from {URL}')
  return data


@functools.cache  # prints once
def _warn(problem: str) -> None:
  print(f'warning: {problem}; it is not used', file=sys.stderr)


def _keep(path: pathlib.Path, data: bytes) -> None:
  """Writes `path`, if a cache can be written there."""
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
      atomic.write_bytes(path, data)
