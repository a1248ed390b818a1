"""Where text comes from: a spec names a source, `open_source` finds its parts.

A source is a list of parts, which separate processes can read at the same time; a part streams
pieces: documents, or stretches of long ones.
"""

import difflib
import glob
import hashlib
import math
import os
import pydoc_data.topics
import re
from collections.abc import Iterator

from gpt_jax import errors
from gpt_jax.data.sources import corpus, jsonl, text_files

Piece = corpus.Piece
Part = corpus.Part
Source = corpus.Source

_SCHEMES = ('builtin', 'text', 'jsonl', 'parquet', 'tfds', 'tokens')
_BUILTIN = 'python-reference'
_KINDS = (
  f'sources are builtin:{_BUILTIN}, text:GLOB, jsonl:GLOB, parquet:GLOB or parquet:FOLDER, '
  'tfds:NAME and tokens:PATH'
)
_KIND = rf'(?:{"|".join(_SCHEMES)}):'
_JOINT = re.compile(rf' \+ (?=(?:[^\s*:]+ ?\* ?)?{_KIND})')
_WEIGHTED = re.compile(rf'([^\s*:]+) ?\* ?({_KIND}.*)', re.DOTALL)
_SURROGATE = re.compile('[\ud800-\udfff]')


def parse_mixture(source: str) -> list[tuple[float | None, str]]:
  """The weights and specs in `source`, such as `0.7*text:a.txt + 0.3*tfds:pg19`.

  A ` + ` joins two sources only where a kind and a colon follow, so file names may hold one.

  Returns:
    A pair for each source; the weights are None if none is given. The specs may still be wrong.

  Raises:
    UserError: A weight isn't a positive number, only some have one, or a spec is there twice.
  """
  pairs = [_weigh(item) for item in _JOINT.split(source)]
  specs = [spec for _, spec in pairs]
  for spec in specs:
    if specs.count(spec) > 1:
      raise errors.UserError(
        f'--config.data.source={source}: {spec} is there twice; give it once, with a larger weight.'
      )
  bare = [spec for weight, spec in pairs if weight is None]
  if bare and len(bare) < len(pairs):
    raise errors.UserError(
      f'--config.data.source={source}: {bare[0]} has no weight but others have; give each source '
      f'a weight, as in 0.5*{bare[0]}, or none.'
    )
  return pairs


def _weigh(item: str) -> tuple[float | None, str]:
  """The weight and the spec of one source of a mixture."""
  weighted = _WEIGHTED.fullmatch(item)
  if not weighted:
    return None, item
  try:
    weight = float(weighted[1])
  except ValueError:
    weight = math.nan
  if not (math.isfinite(weight) and weight > 0):
    raise errors.UserError(
      f'--config.data.source: the weight in {item} is {weighted[1]}, must be a positive number.'
    )
  return weight, weighted[2]


def open_source(spec: str, *, text_field: str) -> corpus.Source:
  """The source that `spec` names.

  Args:
    spec: One source without a weight: `builtin:python-reference` (the prose of CPython's language
      reference, a document a topic, topics in the order of their names), `text:GLOB` (UTF-8 files
      in the order of their paths, a document each; `**` and `~` work), `jsonl:GLOB`,
      `parquet:GLOB`, `parquet:FOLDER` or `tfds:NAME` (as TFDS writes names).
    text_field: The field, column or feature that holds the text, where there are such.

  Raises:
    UserError: The spec or what it names isn't sound.
  """
  scheme, _, name = spec.partition(':')
  if scheme in _SCHEMES and name:
    if scheme == 'builtin':
      return _open_builtin(spec, name)
    if scheme == 'text':
      return text_files.open_source(spec, name)
    if scheme == 'jsonl':
      return jsonl.open_source(spec, name, text_field=text_field)
    if scheme == 'parquet':
      from gpt_jax.data.sources import parquet  # pyarrow takes a fifth of a second to import

      return parquet.open_source(spec, name, text_field=text_field)
    if scheme == 'tfds':
      from gpt_jax.data.sources import tfds  # TFDS takes half a second to import

      return tfds.open_source(spec, name, text_field=text_field)
  raise errors.UserError(_unknown(spec))


def decode(piece: corpus.Piece, *, invalid_utf8: str) -> tuple[str, int]:
  """The text of `piece`, all of it encodable as UTF-8, and how much of it wasn't.

  Args:
    piece: Bytes, or a str in which each lone surrogate counts as one bad place.
    invalid_utf8: `data.invalid_utf8`: 'fail', or 'replace' to put U+FFFD in each bad place, as
      Unicode recommends (one for each longest start of a character; Unicode 16.0, section 3.9).

  Returns:
    The text and the number of bad places.

  Raises:
    UserError: There is a bad place and the policy is 'fail'; names the first.
  """
  try:
    if isinstance(piece.text, bytes):
      return piece.text.decode(), 0
    piece.text.encode()
    return piece.text, 0
  except UnicodeDecodeError as e:
    text = e.object.decode(errors='replace')
    count = text.count('\ufffd') - e.object.count('\ufffd'.encode())
    first = f'byte {e.object[e.start]:#04x} at offset {e.start} ({e.reason})'
  except UnicodeEncodeError as e:
    text, count = _SURROGATE.subn('\ufffd', e.object)
    first = f'half a surrogate pair, U+{ord(e.object[e.start]):04X}, at character {e.start}'
  if invalid_utf8 == 'replace':
    return text, count
  raise errors.UserError(
    f'{piece.place} is not UTF-8: {first}{f" and {count - 1:,} more places" * (count > 1)}; '
    'convert it (iconv -f latin1 -t utf-8, if it is Latin-1), leave it out of '
    '--config.data.source, or put U+FFFD for what is wrong with --config.data.invalid_utf8=replace.'
  )


def _unknown(spec: str) -> str:
  """The message for a spec that names no source, with the nearest one that would."""
  scheme, colon, name = spec.partition(':')
  near = difflib.get_close_matches(scheme.lower(), _SCHEMES, n=1)
  if colon and near and name:
    hint = f'did you mean {near[0]}:{name}?'
  elif found := glob.glob(os.path.expanduser(spec), recursive=True):
    hint = f'did you mean {_scheme_of(found[0])}:{spec}?'
  elif difflib.get_close_matches(spec, [_BUILTIN], n=1):
    hint = f'did you mean builtin:{_BUILTIN}?'
  else:
    hint = 'give the kind of source, a colon and its name'
  return f'--config.data.source={spec}: no such source; {hint} ({_KINDS})'


def _scheme_of(path: str) -> str:
  """The kind of source that a file probably is, by its name."""
  for ending, scheme in (('.jsonl', 'jsonl'), ('.parquet', 'parquet'), ('.bin', 'tokens')):
    if re.search(rf'\{ending}(\.gz|\.zst)?$', path):
      return scheme
  return 'text'


def _open_builtin(spec: str, name: str) -> corpus.Source:
  if name != _BUILTIN:
    raise errors.UserError(f'{spec}: no such text; the only one built in is builtin:{_BUILTIN}')
  texts = [text for _, text in _builtin_texts()]
  digest = hashlib.sha256(b''.join(text + b'\0' for text in texts))
  part = corpus.Part(spec, '', sum(map(len, texts)), _read_builtin)
  return corpus.Source(spec, (part,), {'sha256': digest.hexdigest()})


def _builtin_texts() -> Iterator[tuple[str, bytes]]:
  for topic, text in sorted(pydoc_data.topics.topics.items()):
    yield topic, text.encode()


def _read_builtin() -> Iterator[corpus.Piece]:
  for topic, text in _builtin_texts():
    yield corpus.Piece(f'builtin:{_BUILTIN} topic {topic}', text)
