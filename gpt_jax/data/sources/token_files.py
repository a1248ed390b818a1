"""Ready files of token ids, as nanoGPT and llm.c write them; read in place, never copied.

nanoGPT (data/*/prepare.py): bare uint16. llm.c (dev/data/data_common.py): a header of 256 int32,
of which the first three are a magic number, a version and the number of tokens, then the tokens.
All are little-endian. The `meta.pkl` beside nanoGPT's character data is never read: unpickling can
run any code.
"""

import dataclasses
import glob
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax import errors
from gpt_jax.data.sources import corpus, files

_HEADER_BYTES = 256 * 4
# Magic number -> version and type of the tokens.
_FORMATS: dict[int, tuple[int, np.dtype[Any]]] = {
  20240520: (1, np.dtype('<u2')),
  20240801: (7, np.dtype('<u4')),
}
_BARE: np.dtype[Any] = np.dtype('<u2')
_EVAL_MAGIC = 20240522
_CHECK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class TokenFile:
  """A file of tokens.

  Attributes:
    path: The file, absolute.
    split: `train`, `validation` or `test` if the name says so, else nothing.
    tokens: (N,) uint16 or uint32, memory-mapped and read-only, without the header.
  """

  path: pathlib.Path
  split: str
  tokens: np.ndarray


def find(pattern: str) -> list[TokenFile]:
  """The token files that `pattern` names, in the order of their paths.

  Args:
    pattern: A file, a glob or a folder: all the `.bin` files in it.

  Raises:
    UserError: No such file, or one isn't sound.
  """
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), '*.bin')
  paths = files.find('tokens', pattern, ending='.bin')
  return [TokenFile(path, _split(path), _map(path)) for path in paths]


def check(token_files: Sequence[TokenFile], *, vocab_size: int) -> None:
  """Raises `UserError` that names the first id that isn't below `vocab_size`; reads all."""
  for file in token_files:
    step = _CHECK_BYTES // file.tokens.itemsize
    for start in range(0, len(file.tokens), step):
      block = file.tokens[start : start + step]
      if block.max() >= vocab_size:
        position = int(np.argmax(block >= vocab_size))
        raise errors.UserError(
          f'{file.path}: token {start + position:,} is {block[position]}, but the vocabulary has '
          f'{vocab_size:,} ids; set --config.data.tokenizer to what made the file, or leave it out '
          'of --config.data.source.'
        )


def _split(path: pathlib.Path) -> str:
  """The split that a word of the name tells, as in `fineweb_train_000001.bin`."""
  words = re.split('[^a-z]+', path.stem.lower())
  named = {corpus.known_split(word) for word in words} - {''}
  return named.pop() if len(named) == 1 else ''


def _map(path: pathlib.Path) -> np.ndarray:
  try:
    size = path.stat().st_size
    with path.open('rb') as file:
      header = np.frombuffer(file.read(_HEADER_BYTES)[: size // 4 * 4], '<i4')
    magic = int(header[0]) if len(header) else 0
    if magic == _EVAL_MAGIC:
      raise _unsound(path, "is llm.c's file of questions to evaluate on, not text")
    offset, dtype = 0, _BARE
    if magic in _FORMATS:
      offset, dtype = _HEADER_BYTES, _FORMATS[magic][1]
      _check_header(path, header, size)
    if size <= offset:
      raise _unsound(path, 'has no tokens')
    if (size - offset) % dtype.itemsize:
      raise _unsound(path, f'has {size:,} bytes, not a whole number of {dtype.name} tokens')
    return np.memmap(path, dtype, mode='r', offset=offset)
  except OSError as e:
    raise files.unreadable(path, e) from e


def _check_header(path: pathlib.Path, header: np.ndarray, size: int) -> None:
  """Raises `UserError` unless a header of llm.c fits the file."""
  if header.nbytes < _HEADER_BYTES:
    raise _unsound(path, f'ends within the header of llm.c, which has {_HEADER_BYTES:,} bytes')
  magic, version, num_tokens = (int(value) for value in header[:3])
  known, dtype = _FORMATS[magic]
  if version != known:
    raise _unsound(path, f"has version {version} of llm.c's format {magic}, not {known}")
  wanted = _HEADER_BYTES + num_tokens * dtype.itemsize
  if size != wanted:
    raise _unsound(
      path, f'has {size:,} bytes, but its header tells of {num_tokens:,} tokens: {wanted:,} bytes'
    )


def _unsound(path: pathlib.Path, what: str) -> errors.UserError:
  return errors.UserError(
    f'{path} {what}; tokens: reads bare uint16 (nanoGPT) and the .bin files of llm.c. Make the '
    'file again or leave it out of --config.data.source.'
  )
