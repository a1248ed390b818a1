"""What a source has, read as workers read it."""

import pickle

from gpt_jax import errors
from gpt_jax.data import sources
from tests import raised


def read(spec: str, field: str = 'text', policy: str = 'fail') -> dict[str, list[str]]:
  """The documents of each split, from parts that were pickled."""
  splits: dict[str, list[str]] = {}
  for part in pickle.loads(pickle.dumps(sources.open_source(spec, text_field=field).parts)):
    documents, pieces = splits.setdefault(part.split, []), []
    for piece in part.read():
      pieces.append(sources.decode(piece, invalid_utf8=policy)[0])
      if piece.last:
        documents.append(''.join(pieces))
        pieces = []
    assert not pieces  # a document ends in the part where it began
  return splits


def labels(spec: str, label_field: str, field: str = 'text') -> list[tuple[str, str]]:
  """The documents of a source of short ones, with their classes."""
  parts = sources.open_source(spec, text_field=field, label_field=label_field).parts
  pieces = (piece for part in pickle.loads(pickle.dumps(parts)) for piece in part.read())
  return [(sources.decode(piece, invalid_utf8='fail')[0], piece.label) for piece in pieces]


def error(spec: str, field: str = 'text') -> errors.UserError:
  """The error that opening or reading `spec` raises."""
  return raised.user_error(read, spec, field)


def fingerprint(spec: str, field: str = 'text') -> str:
  """The fingerprint of a source, as JSON."""
  return repr(sources.open_source(spec, text_field=field).fingerprint)
