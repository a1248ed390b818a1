"""What a source has, read as workers read it."""

import pickle

import pytest

from gpt_jax import errors
from gpt_jax.data import sources


def read(spec: str, field: str = 'text') -> dict[str, list[str]]:
  """The documents of each split, from parts that were pickled."""
  splits: dict[str, list[str]] = {}
  for part in pickle.loads(pickle.dumps(sources.open_source(spec, text_field=field).parts)):
    documents = splits.setdefault(part.split, [])
    for piece in part.read():
      assert piece.last
      documents.append(sources.decode(piece, invalid_utf8='fail')[0])
  return splits


def fails(spec: str, *words: str, field: str = 'text') -> None:
  """Asserts that reading `spec` fails with one paragraph that has all `words`."""
  with pytest.raises(errors.UserError) as e:
    for part in sources.open_source(spec, text_field=field).parts:
      for piece in part.read():
        sources.decode(piece, invalid_utf8='fail')
  message = str(e.value)
  assert '\n' not in message
  for word in words:
    assert word in message
