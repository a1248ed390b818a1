"""Text and vocabularies that the tests of the data room share."""

import functools

import pytest

from gpt_jax import config
from gpt_jax.data import prepare, sources, tokenizers


@pytest.fixture(scope='session')
def gpt2(vocabulary):
  """GPT-2's tokenizer."""
  return tokenizers.build(config.DataConfig(tokenizer='gpt2'), {})


@pytest.fixture(scope='session')
def prepare_parts():
  """A function that prepares documents, given part by part, and returns what was prepared.

  A document is text, a tuple of text and class, or a list of the pieces that it is read in.
  """

  def part(number, documents, split):
    pieces: list[sources.Piece] = []
    for i, document in enumerate(documents):
      text, label = document if isinstance(document, tuple) else (document, '')
      texts = [text] if isinstance(text, str | bytes) else text
      place, last = f'part {number} document {i}', len(texts) - 1
      pieces += [sources.Piece(place, text, j == last, label) for j, text in enumerate(texts)]
    size = sum(len(piece.text) for piece in pieces)
    return sources.Part(split, size, functools.partial(iter, pieces))

  def run(parts, folder, *, splits=None, progress=None, **knobs):
    made = tuple(map(part, range(len(parts)), parts, splits or [''] * len(parts)))
    source = sources.Source('text:made.txt', made, {'parts': repr(parts)})
    knobs = {'tokenizer': 'byte', 'processes': 1, **knobs}
    data = config.DataConfig(source=source.spec, cache_dir=str(folder), **knobs)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sources, 'open_source', lambda spec, **fields: source)
      return prepare.prepare(data, progress=progress)

  return run
