"""Token files of nanoGPT and llm.c are read as they are, and every fault is reported."""

import itertools

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data import prepare, pretokenized, splits, store, tokenizers, workers
from tests import raised

BYTE = tokenizers.build(config.DataConfig(tokenizer='byte'), {})
EOS = 256
_IDS = np.array([0, 1, 50256, 65535, 7], np.uint16)


def _llm_c(ids, *, magic=20240520, version=1, length=None, dtype='<u2'):
  """A file as llm.c's `write_datafile` makes it."""
  header = np.zeros(256, '<i4')
  header[:3] = magic, version, len(ids) if length is None else length
  return header.tobytes() + np.asarray(ids).astype(dtype).tobytes()


def _open(path, tokenizer=BYTE):
  return pretokenized.open_files(f'tokens:{path}', tokenizer, workers.Job())


@pytest.fixture
def folder(tmp_path):
  """nanoGPT's two files, of bytes."""
  np.array([1, 2, EOS, 3, EOS, 4], np.uint16).tofile(tmp_path / 'train.bin')
  np.array([EOS, 5, 6, EOS, 3, EOS], np.uint16).tofile(tmp_path / 'val.bin')
  return tmp_path


@pytest.mark.parametrize('count', [1, 2, 5, 3000])
def test_nanogpt_files_are_bare(tmp_path, count):
  ids = np.resize(_IDS, count)
  ids.tofile(tmp_path / 'train.bin')
  (file,) = pretokenized.find(f'tokens:{tmp_path}/train.bin')
  assert file.path == tmp_path / 'train.bin' and file.split == 'train'
  assert file.tokens.dtype == np.uint16 and isinstance(file.tokens, np.memmap)
  np.testing.assert_array_equal(file.tokens, ids)
  with pytest.raises(ValueError, match='read-only'):
    file.tokens[0] = 1


def test_llm_c_files_have_a_header(tmp_path):
  (tmp_path / 'gpt2_train.bin').write_bytes(_llm_c(_IDS))
  large = [1, 128_000, 2**32 - 1]
  (tmp_path / 'llama_val.bin').write_bytes(_llm_c(large, magic=20240801, version=7, dtype='<u4'))
  gpt2, llama = pretokenized.find(f'tokens:{tmp_path}')
  assert gpt2.tokens.dtype == np.uint16 and llama.tokens.dtype == np.uint32
  np.testing.assert_array_equal(gpt2.tokens, _IDS)
  np.testing.assert_array_equal(llama.tokens, large)


def test_files_are_sorted_and_a_word_of_the_name_is_the_split(tmp_path, monkeypatch):
  names = {
    'constrained.bin': '',
    'dev-000001.bin': 'validation',
    'fineweb_train_000001.bin': 'train',
    'fineweb_val_000000.bin': 'validation',
    'test.bin': 'test',
    'train_val.bin': '',
  }
  for name in reversed(names):
    _IDS.tofile(tmp_path / name)
  (tmp_path / 'meta.pkl').write_bytes(b'never read')
  (tmp_path / 'deeper').mkdir()
  _IDS.tofile(tmp_path / 'deeper' / 'train.bin')
  monkeypatch.setenv('HOME', str(tmp_path))
  found = pretokenized.find('tokens:~')
  assert [(file.path.name, file.split) for file in found] == sorted(names.items())
  assert len(pretokenized.find('tokens:~/fineweb_*.bin')) == 2


@pytest.mark.parametrize(
  ('data', 'word'),
  [
    (b'', 'no tokens'),
    (_llm_c([]), 'no tokens'),
    (b'abc', '3 bytes'),
    (_llm_c(_IDS)[:-1], '1,033 bytes'),
    (_llm_c(_IDS) + b'ab', '1,036 bytes'),
    (_llm_c(_IDS, length=-1), '-1 tokens'),
    (_llm_c(_IDS, version=2), 'version 2'),
    (_llm_c(_IDS, magic=20240801, version=1, dtype='<u4'), 'version 1'),
    (_llm_c(_IDS, magic=20240801, version=7), '5 tokens'),
    (_llm_c(_IDS)[:900], '900 bytes'),
    (_llm_c(_IDS, magic=20240522), 'questions'),
  ],
)
def test_an_invalid_file_is_reported(tmp_path, data, word):
  _IDS.tofile(tmp_path / 'a.bin')
  (tmp_path / 'b.bin').write_bytes(data)
  error = raised.user_error(pretokenized.find, f'tokens:{tmp_path}')
  assert error.key == str(tmp_path / 'b.bin') and word in str(error)


def test_missing_files_are_reported(tmp_path):
  for path in (tmp_path / 'a.bin', tmp_path):
    assert raised.user_error(pretokenized.find, f'tokens:{path}').key == 'data.source'


@pytest.mark.parametrize('block', [1, 4, 100])
@pytest.mark.parametrize('position', [0, 1, 3, 5])
def test_an_id_outside_the_vocabulary_is_reported(folder, monkeypatch, block, position):
  monkeypatch.setattr(store, '_BLOCK', block)
  ids = np.array([3, 1, EOS, 3, 0, EOS + 1], np.uint16)
  ids[position] = EOS + 1
  ids.tofile(folder / 'val.bin')
  error = raised.user_error(_open, folder)
  assert error.key == str(folder / 'val.bin') and f'token {position} is {EOS + 1}' in str(error)


@pytest.mark.parametrize('block', [1, 4, 100])
def test_a_document_ends_with_eos_or_with_its_file(folder, monkeypatch, block):
  monkeypatch.setattr(pretokenized, '_BLOCK', block)
  documents = _open(folder).documents
  assert documents['end'].tolist() == [3, 5, 6, 7, 10, 12]
  assert len(set(documents['hash'].tolist())) == 5, 'documents 1 and 5 are equal'
  char = tokenizers.build(
    config.DataConfig(tokenizer='char'), dict.fromkeys(map(chr, range(300)), 1)
  )
  assert _open(folder, char).documents['end'].tolist() == [6, 12], 'char has no eos'


def test_the_hash_of_a_document_depends_on_each_token_and_on_no_other(tmp_path):
  documents: list = [[1, 2, 3, EOS], [1, 2, 4, EOS], [0, 2, 3, EOS], [1, 2]]
  np.array([*itertools.chain(*documents)], np.uint16).tofile(tmp_path / 'a.bin')
  (tmp_path / 'b.bin').write_bytes(_llm_c([1, 2, 3, EOS], magic=20240801, version=7, dtype='<u4'))
  hashes = _open(tmp_path).documents['hash'].tolist()
  assert len(set(hashes)) == 4 and hashes[4] == hashes[0]


def test_a_document_has_the_hash_that_it_has_in_a_store(prepare_parts, tmp_path):
  (kept,) = prepare_parts([['abc', 'x']], tmp_path / 'cache').sources
  np.array([*b'abc', EOS, *b'x'], np.uint16).tofile(tmp_path / 'train.bin')
  assert _open(tmp_path / 'train.bin').documents['hash'].tolist() == kept.documents['hash'].tolist()


def test_the_content_hash_is_of_names_and_tokens(folder):
  hashes = [_open(folder).content_hash]
  assert _open(folder / '*.bin').content_hash == hashes[0]
  np.array([EOS, 5, 6, EOS, 4, EOS], np.uint16).tofile(folder / 'val.bin')  # of the same size
  hashes.append(_open(folder).content_hash)
  np.array([EOS, 5, 6, EOS, 4], np.uint16).tofile(folder / 'val.bin')
  hashes.append(_open(folder).content_hash)
  (folder / 'val.bin').rename(folder / 'validation.bin')
  hashes.append(_open(folder).content_hash)
  assert len(set(hashes)) == 4


def test_a_run_on_token_files(folder):
  data = config.DataConfig(source=f'tokens:{folder}', tokenizer='byte', split='given')
  seen: list = []
  prepared = prepare.prepare(data, progress=lambda *args: seen.append(args[1:]))
  prepared.verify()
  (source,) = prepared.sources
  assert seen[-1] == (24, 24) and source.tokens.nbytes == 24
  assert '12 tokens' in source.summary() and not prepared.new_stores
  train, val, _ = splits.make(source, data)
  assert train.spans.tolist() == [[0, 6]] and val.spans.tolist() == [[6, 12]]


def test_a_vocabulary_cannot_be_counted_from_tokens(folder):
  data = config.DataConfig(source=f'tokens:{folder}', tokenizer='char')
  assert raised.user_error(prepare.prepare, data).key == 'data.tokenizer'
