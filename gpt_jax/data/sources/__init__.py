"""Where text comes from: a spec names a source, `open_source` finds its parts.

A source is a list of parts, which separate processes can read at the same time; a part streams
pieces: documents, or stretches of long ones.
"""

import functools
import hashlib
import math
import os
import pydoc_data.topics
import re
from collections.abc import Iterator

from gpt_jax import errors
from gpt_jax.data.sources import corpus, rules, text_files, turns

Piece = corpus.Piece
Part = corpus.Part
Source = corpus.Source

_SCHEMES = ('builtin', 'text', 'jsonl', 'parquet', 'tfds', 'tokens')
_BUILTIN = 'builtin:python-reference'
_CONVERSATIONS = [f'builtin:{name}' for name in rules.RULES]
_FORMS = f'{_BUILTIN}, text:GLOB, jsonl:GLOB, parquet:GLOB, parquet:FOLDER, tfds:NAME, tokens:PATH'
_KIND = rf'(?:{"|".join(_SCHEMES)}):'
_JOINT = re.compile(rf' \+ (?=(?:[^\s*:]+ ?\* ?)?{_KIND})')
_WEIGHTED = re.compile(rf'([^\s*:]+) ?\* ?({_KIND}.*)', re.DOTALL)
_SURROGATE = re.compile('[\ud800-\udfff]')


def parse_mixture(source: str) -> list[tuple[float | None, str]]:
  """Parses `source`, such as `0.7*text:a.txt + 0.3*tfds:pg19`, into weights and specs.

  A ` + ` joins two sources only before a kind and a colon, so file names may hold one. The weights
  are None if none is given. The specs may still be invalid. Raises `UserError` if a weight isn't a
  positive number, only some sources have one, or a spec is there twice.
  """
  pairs: list[tuple[float | None, str]] = []
  for item in _JOINT.split(source):
    if not (weighted := _WEIGHTED.fullmatch(item)):
      pairs.append((None, item))
      continue
    try:
      weight = float(weighted[1])
    except ValueError:
      weight = math.nan
    if not 0 < weight < math.inf:
      problem = f'the weight of {item} is {weighted[1]}, must be a positive number'
      raise errors.UserError('data.source', problem)
    pairs.append((weight, weighted[2]))
  specs = [spec for _, spec in pairs]
  if twice := [spec for spec in specs if specs.count(spec) > 1]:
    raise errors.UserError('data.source', f'{twice[0]} is there twice', 'give it a larger weight')
  bare = [spec for weight, spec in pairs if weight is None]
  if bare and len(bare) < len(pairs):
    problem = f'{bare[0]} has no weight, but others have'
    raise errors.UserError('data.source', problem, 'give each a weight, or none')
  return pairs


def open_source(
  spec: str, *, text_field: str, label_field: str = '', template: str = ''
) -> corpus.Source:
  """Opens the source of text that `spec` names, see `_FORMS`; raises `UserError`.

  `builtin:python-reference` is the prose of CPython's language reference, a document per topic.
  `text_field` is the field, column or feature that holds the text, `label_field` the one that holds
  the class of a document, empty for none. With a `template`, the documents are the turns of
  conversations, as `turns.labelled` gives them: those of JSON lines, or of `builtin:instructions`,
  `builtin:dates` and `builtin:analogies`, which are made by `rules`.
  """
  scheme, _, name = spec.partition(':')
  if label_field and scheme in ('builtin', 'text'):
    problem = f'{spec} has no classes'
    raise errors.UserError('data.label_field', problem, 'use jsonl:, parquet: or tfds:')
  if bool(template) != (spec in _CONVERSATIONS) and (scheme != 'jsonl' or not template):
    problem = f'{spec} has {"no " * bool(template)}conversations'
    fix = f'set `task=instruct`, or evaluate examples:{spec}'
    if template:
      fix = f'use jsonl: or {" or ".join(_CONVERSATIONS)}'
    raise errors.UserError('data.template', problem, fix)
  match scheme if name else None:
    case 'builtin' if spec in _CONVERSATIONS:
      return _made_by_rule(spec, name, template)
    case 'builtin' if spec == _BUILTIN:
      texts = [text.encode() for _, text in sorted(pydoc_data.topics.topics.items())]
      digest = hashlib.sha256(b''.join(text + b'\0' for text in texts))
      part = corpus.Part('', sum(map(len, texts)), _read_builtin)
      return corpus.Source(spec, (part,), {'sha256': digest.hexdigest()})
    case 'text':
      return text_files.open_text(spec, name)
    case 'jsonl':
      fields = {'text_field': text_field, 'label_field': label_field, 'template': template}
      return text_files.open_jsonl(spec, name, **fields)
    case 'parquet':
      try:
        from gpt_jax.data.sources import parquet
      except ImportError as e:
        fix = "pip install 'gpt_jax[parquet]'"
        raise errors.UserError('data.source', f'{spec} needs the package pyarrow', fix) from e
      return parquet.open_source(spec, name, text_field=text_field, label_field=label_field)
    case 'tfds':
      from gpt_jax.data.sources import tfds  # TFDS takes half a second to import

      return tfds.open_source(spec, name, text_field=text_field, label_field=label_field)
  fix = f'did you mean text:{spec}?' if os.path.exists(spec) else f'use {_FORMS}'
  raise errors.UserError('data.source', f'no such source: {spec!r}', fix)


def open_single(spec: str, *, text_field: str) -> corpus.Source:
  """Opens what isn't a mixture, as `open_source` does; raises `UserError`."""
  ((weight, _), *others) = parse_mixture(spec)
  if others or weight is not None:
    fix = 'give one source, without a weight'
    raise errors.UserError('data.source', f'{spec} is a mixture', fix)
  return open_source(spec, text_field=text_field)


def _read_builtin() -> Iterator[corpus.Piece]:
  for topic, text in sorted(pydoc_data.topics.topics.items()):
    yield corpus.Piece(f'{_BUILTIN} topic {topic}', text.encode())


def _made_by_rule(spec: str, name: str, template: str) -> corpus.Source:
  parts, digest = [], hashlib.sha256()
  for split in rules.NUMBERS:
    read = functools.partial(_read_by_rule, name, split, template)
    texts = [str(piece.text).encode() for piece in read()]
    digest.update(b'\0'.join(texts))
    parts.append(corpus.Part(split, sum(map(len, texts)), read))
  return corpus.Source(spec, tuple(parts), {'sha256': digest.hexdigest()})


def _read_by_rule(name: str, split: str, template: str) -> Iterator[corpus.Piece]:
  for made in rules.conversations(name, split):
    for text, label in turns.labelled(made.turns, template):
      yield corpus.Piece(made.place, text, label=label)


def decode(piece: corpus.Piece, *, invalid_utf8: str) -> tuple[str, int]:
  """Returns the text of `piece`, all of which can be encoded as UTF-8, and its invalid places.

  If `invalid_utf8` is 'replace', U+FFFD is put in each invalid place, as Unicode recommends (one
  for each longest start of a character; Unicode 16.0, section 3.9); if it is 'fail', `UserError`
  names the first. Each lone surrogate of a str is one invalid place.
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
    first = f'lone surrogate U+{ord(e.object[e.start]):04X} at character {e.start}'
  if invalid_utf8 == 'replace':
    return text, count
  more = f' and {count - 1:,} more places' if count > 1 else ''
  raise errors.UserError(
    piece.place,
    f'invalid UTF-8: {first}{more}',
    'convert the text to UTF-8, leave it out of `data.source`, or set `data.invalid_utf8=replace`',
  )
