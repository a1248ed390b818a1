"""Where text comes from: a source spec names it, `Source.documents` streams it."""

import dataclasses
import difflib
import glob
import hashlib
import os
import pathlib
import pydoc_data.topics
from collections.abc import Callable, Iterator
from typing import Any

from gpt_jax import errors

_SCHEMES = ('builtin', 'text', 'tfds')
_BUILTIN = 'python-reference'


@dataclasses.dataclass(frozen=True)
class Source:
  """Text that can be read again and again, a document at a time.

  Attributes:
    spec: What the user wrote, such as `text:books/*.txt`.
    read: Streams the documents from the first, empty ones too.
    fingerprint: What changes when the text changes, for JSON; reads little or nothing of it.
  """

  spec: str
  read: Callable[[], Iterator[str]]
  fingerprint: Callable[[], dict[str, Any]]

  def documents(self) -> Iterator[str]:
    """Streams the documents that aren't empty; raises `UserError` if there is none."""
    empty = True
    for document in self.read():
      if document:
        empty = False
        yield document
    if empty:
      raise errors.UserError(
        f'{self.spec} is empty: it has no text to learn from; name another --config.data.source.'
      )


def open_source(spec: str) -> Source:
  """The source that `spec` names.

  Args:
    spec: `builtin:python-reference` (the prose of CPython's language reference, a document a
      topic, topics in the order of their names), `text:GLOB` (UTF-8 files in the order of their
      paths, a document each; `**` and `~` work) or `tfds:NAME` (as TFDS writes names).

  Raises:
    UserError: The spec or what it names isn't sound.
  """
  scheme, colon, name = spec.partition(':')
  if not colon or scheme not in _SCHEMES or not name:
    raise errors.UserError(_unknown(spec))
  if scheme == 'builtin':
    return _open_builtin(spec, name)
  if scheme == 'text':
    paths = _find_files(name)
    return Source(spec, lambda: map(_read_file, paths), lambda: _describe_files(paths))
  from gpt_jax.data import tfds_source  # TFDS takes half a second to import

  corpus = tfds_source.open_corpus(name)
  return Source(spec, corpus.documents, corpus.fingerprint)


def _unknown(spec: str) -> str:
  """The message for a spec that names no source, with the nearest one that would."""
  scheme, colon, name = spec.partition(':')
  near = difflib.get_close_matches(scheme.lower(), _SCHEMES, n=1)
  if colon and near and name:
    hint = f'did you mean {near[0]}:{name}?'
  elif glob.glob(os.path.expanduser(spec), recursive=True):
    hint = f'did you mean text:{spec}?'
  elif difflib.get_close_matches(spec, [_BUILTIN], n=1):
    hint = f'did you mean builtin:{_BUILTIN}?'
  else:
    hint = 'give the kind of source, a colon and its name'
  return (
    f'--config.data.source={spec}: no such source; {hint} '
    f'(sources are builtin:{_BUILTIN}, text:GLOB and tfds:NAME)'
  )


def _open_builtin(spec: str, name: str) -> Source:
  if name != _BUILTIN:
    raise errors.UserError(f'{spec}: no such text; the only one built in is builtin:{_BUILTIN}')
  topics = pydoc_data.topics.topics

  def read() -> Iterator[str]:
    return (topics[topic] for topic in sorted(topics))

  def fingerprint() -> dict[str, Any]:
    digest = hashlib.sha256()
    for document in read():
      digest.update(document.encode() + b'\0')
    return {'sha256': digest.hexdigest()}

  return Source(spec, read, fingerprint)


def _find_files(pattern: str) -> list[pathlib.Path]:
  """The regular files that `pattern` names, as absolute paths, sorted."""
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    inside = os.path.join(pattern, '**', '*.txt')
    raise errors.UserError(f'text:{pattern} is a directory; to read the files in it: text:{inside}')
  # A file whose own name has brackets or stars is meant as it stands.
  found = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
  paths = sorted(pathlib.Path(os.path.abspath(path)) for path in found if os.path.isfile(path))
  if paths:
    return paths
  if found:
    raise errors.UserError(f'text:{pattern} matches no regular file, only {found[0]}')
  if glob.has_magic(pattern):
    raise errors.UserError(
      f'text:{pattern} matches no file in {os.getcwd()}; ** stands for folders at any depth, and '
      'the whole spec needs quotes where the shell would expand the stars'
    )
  raise errors.UserError(f'text:{pattern}: no such file (looked from {os.getcwd()})')


def _read_file(path: pathlib.Path) -> str:
  """The text of `path` with its newlines as they are and without a byte-order mark."""
  try:
    data = path.read_bytes()
  except OSError as e:
    raise _unreadable(path, e) from e
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    offset = e.start + len(data) - len(e.object)  # the decoder counts from behind the mark
    raise errors.UserError(
      f'{path} is not UTF-8: byte {data[offset]:#04x} at offset {offset} ({e.reason}); convert it '
      f'(iconv -f latin1 -t utf-8, if it is Latin-1) or leave it out of --config.data.source.'
    ) from e


def _describe_files(paths: list[pathlib.Path]) -> dict[str, Any]:
  files = []
  for path in paths:
    try:
      status = path.stat()
    except OSError as e:
      raise _unreadable(path, e) from e
    files.append([str(path), status.st_size, status.st_mtime_ns])
  return {'files': files}


def _unreadable(path: pathlib.Path, e: OSError) -> errors.UserError:
  return errors.UserError(
    f'{path} cannot be read ({e.strerror}): mend that or leave it out of --config.data.source.'
  )
