"""Text and vocabularies that the tests of the data room share."""

import functools

import pytest

from gpt_jax import config
from gpt_jax.data import prepare, sources, tokenizers


@pytest.fixture(scope='session')
def gpt2(vocabulary):
  """GPT-2's tokenizer."""
  return tokenizers.build(config.DataConfig(tokenizer='gpt2'), {})


@pytest.fixture
def serve(tmp_path_factory):
  """A function that returns a URL of bytes."""

  def url(body):
    path = tmp_path_factory.mktemp('served') / 'vocab.bpe'
    path.write_bytes(body)
    return path.as_uri()

  return url


@pytest.fixture(scope='session')
def prepare_parts():
  """A function that prepares documents, given part by part, and returns what was prepared.

  A document is text, or a list of the pieces that it is read in.
  """

  def pieces(part, number):
    for i, document in enumerate(part):
      texts = [document] if isinstance(document, str | bytes) else document
      for j, text in enumerate(texts):
        yield sources.Piece(f'part {number} document {i}', text, j == len(texts) - 1)

  def run(parts, folder, *, splits=None, progress=None, check=None, **knobs):
    source = sources.Source(
      'text:made.txt',
      tuple(
        sources.Part(
          split=splits[number] if splits else '',
          size=sum(len(piece.text) for piece in pieces(part, number)),
          read=functools.partial(iter, list(pieces(part, number))),
        )
        for number, part in enumerate(parts)
      ),
      {'parts': repr(parts)},
    )
    knobs = {'tokenizer': 'byte', 'processes': 1, **knobs}
    data = config.DataConfig(source=source.spec, cache_dir=str(folder), **knobs)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sources, 'open_source', lambda spec, *, text_field: source)
      return prepare.prepare(data, progress=progress, check=check)

  return run
