"""Token files of others: documents and sides as their makers meant them."""

import numpy as np
import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, ready, tokenizers

BYTE = tokenizers.build(config.DataConfig(tokenizer='byte'), {})
_END = BYTE.end_of_text


@pytest.fixture
def folder(tmp_path):
  """nanoGPT's two files, of bytes."""
  np.array([1, 2, _END, 3, _END, 4], np.uint16).tofile(tmp_path / 'train.bin')
  np.array([_END, 5, 6, _END, 3, _END], np.uint16).tofile(tmp_path / 'val.bin')
  return tmp_path


def test_an_end_of_text_ends_a_document_and_so_does_a_file(folder, monkeypatch):
  for block in (1, 4, 100):
    monkeypatch.setattr(ready, '_BLOCK', block)
    tokenized = ready.open_tokens(f'tokens:{folder}', BYTE).tokenized()
    documents = tokenized.documents()
    assert documents.ends.tolist() == [3, 5, 6, 7, 10, 12]
    assert len(set(documents.hashes.tolist())) == 5, 'documents 1 and 5 are equal'


def test_a_tokenizer_without_an_end_of_text_sees_a_document_a_file(folder):
  char = tokenizers.build(config.DataConfig(tokenizer='char'), {'a': 1})
  assert ready.open_tokens(f'tokens:{folder}', char).tokenized().documents().ends.tolist() == [
    6,
    12,
  ]


def test_the_files_are_the_sides(folder):
  data = config.DataConfig(source=f'tokens:{folder}', tokenizer='byte', split='given')
  prepared = prepare.prepare(data, progress=None, check=None)
  prepared.verify(None)
  (tokenized,) = prepared.tokenized()
  train, val = tokenized.sides(data)
  assert train.spans.tolist() == [[0, 6]] and val.spans.tolist() == [[6, 12]]
  assert '12 tokens' in prepared.sources[0].summary()


def test_an_id_outside_the_vocabulary_is_found(folder):
  np.array([1, 257], np.uint16).tofile(folder / 'val.bin')
  data = config.DataConfig(source=f'tokens:{folder}', tokenizer='byte')
  prepared = prepare.prepare(data, progress=None, check=None)
  with pytest.raises(errors.UserError, match='val.bin: token 1 is 257'):
    prepared.verify(None)


def test_a_vocabulary_cannot_be_counted_from_tokens(folder):
  data = config.DataConfig(source=f'tokens:{folder}', tokenizer='char')
  with pytest.raises(errors.UserError, match='name the tokenizer that made them'):
    prepare.prepare(data, progress=None, check=None)
