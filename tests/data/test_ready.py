"""Token files of others: documents and sides as their makers meant them."""

import itertools

import numpy as np
import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, tokenizers
from gpt_jax.data.store import ready

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


def test_a_document_is_told_by_each_of_its_tokens(tmp_path):
  documents: list = [[1, 2, 3, _END], [1, 2, 4, _END], [0, 2, 3, _END], [1, 2]]
  for folder in (tmp_path / 'a', tmp_path / 'b'):
    folder.mkdir()
    np.array([*itertools.chain(*documents)], np.uint16).tofile(folder / 'train.bin')
  np.array([1, 2, 3, _END], np.uint16).tofile(tmp_path / 'b' / 'val.bin')
  one, two = (
    ready.open_tokens(f'tokens:{tmp_path}/{name}', BYTE).tokenized().documents().hashes.tolist()
    for name in 'ab'
  )
  assert len(set(one)) == 4 and two == [*one, one[0]]


def test_equal_documents_are_equal_in_files_of_every_type(tmp_path):
  ids = [1, 2, _END]
  np.array(ids, '<u2').tofile(tmp_path / 'a.bin')
  header = np.zeros(256, '<i4')
  header[:3] = 20240801, 7, len(ids)
  (tmp_path / 'b.bin').write_bytes(header.tobytes() + np.array(ids, '<u4').tobytes())
  documents = ready.open_tokens(f'tokens:{tmp_path}', BYTE).tokenized().documents()
  assert documents.ends.tolist() == [3, 6] and documents.hashes[0] == documents.hashes[1]


def test_a_document_has_the_hash_that_it_has_in_a_store(prepare_parts, tmp_path):
  (kept,) = prepare_parts([['abc', 'x']], tmp_path / 'cache').sources
  np.array([*b'abc', _END, *b'x'], np.uint16).tofile(tmp_path / 'train.bin')
  ours = kept.tokenized().documents().hashes.tolist()
  assert (
    ready.open_tokens(f'tokens:{tmp_path}/train.bin', BYTE).tokenized().documents().hashes.tolist()
    == ours
  )


def test_ready_tokens_are_told_by_their_scheme():
  assert ready.names('tokens:x') and not ready.names('text:tokens:x')


def test_the_content_hash_is_of_names_and_sizes(folder):
  hashes = [ready.open_tokens(f'tokens:{folder}', BYTE).content_hash]
  (folder / 'val.bin').rename(folder / 'validation.bin')
  hashes.append(ready.open_tokens(f'tokens:{folder}/*.bin', BYTE).content_hash)
  np.array([1, 2], np.uint16).tofile(folder / 'validation.bin')
  hashes.append(ready.open_tokens(f'tokens:{folder}/*.bin', BYTE).content_hash)
  assert len(set(hashes)) == 3


def test_verifying_tells_its_progress(folder):
  tokens = ready.open_tokens(f'tokens:{folder}', BYTE)
  seen: list[int] = []
  tokens.verify(seen.append)
  assert seen == [12, 12] and tokens.num_bytes == 24


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
