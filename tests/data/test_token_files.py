"""Files of tokens that others wrote are mapped as they are, and every fault is named."""

import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.data.sources import token_files

_IDS = np.array([0, 1, 50256, 65535, 7], np.uint16)


def llm_c(ids, *, magic=20240520, version=1, length=None, dtype='<u2'):
  """A file as llm.c's `write_datafile` makes it."""
  header = np.zeros(256, '<i4')
  header[:3] = magic, version, len(ids) if length is None else length
  return header.tobytes() + np.asarray(ids).astype(dtype).tobytes()


def fails(use, *words):
  with pytest.raises(errors.UserError) as e:
    use()
  message = str(e.value)
  assert '\n' not in message
  for word in words:
    assert word in message


@pytest.mark.parametrize('count', [1, 2, 5])
def test_nanogpt_files_are_bare(tmp_path, count):
  _IDS[:count].tofile(tmp_path / 'train.bin')
  (file,) = token_files.find(f'{tmp_path}/train.bin')
  assert file.path == tmp_path / 'train.bin' and file.split == 'train'
  assert file.tokens.dtype == np.uint16 and isinstance(file.tokens, np.memmap)
  np.testing.assert_array_equal(file.tokens, _IDS[:count])
  with pytest.raises(ValueError, match='read-only'):
    file.tokens[0] = 1


def test_bare_tokens_longer_than_a_header_are_all_there(tmp_path):
  ids = np.arange(3000, dtype=np.uint16)
  ids.tofile(tmp_path / 'a.bin')
  (file,) = token_files.find(f'{tmp_path}/a.bin')
  np.testing.assert_array_equal(file.tokens, ids)


def test_llm_c_files_have_a_header(tmp_path):
  (tmp_path / 'gpt2_train.bin').write_bytes(llm_c(_IDS))
  large = [1, 128_000, 2**32 - 1]
  (tmp_path / 'llama_val.bin').write_bytes(llm_c(large, magic=20240801, version=7, dtype='<u4'))
  gpt2, llama = token_files.find(str(tmp_path))
  assert gpt2.tokens.dtype == np.uint16 and llama.tokens.dtype == np.uint32
  np.testing.assert_array_equal(gpt2.tokens, _IDS)
  np.testing.assert_array_equal(llama.tokens, large)


def test_files_are_sorted_and_their_names_tell_the_split(tmp_path, monkeypatch):
  splits = {
    'constrained.bin': '',
    'dev-000001.bin': 'validation',
    'fineweb_train_000001.bin': 'train',
    'fineweb_train_000002.bin': 'train',
    'fineweb_val_000000.bin': 'validation',
    'part1.bin': '',
    'test.bin': 'test',
    'tiny_shakespeare_train.bin': 'train',
    'tiny_shakespeare_val.bin': 'validation',
    'train.bin': 'train',
    'train_val.bin': '',
    'val.bin': 'validation',
  }
  for name in reversed(splits):
    _IDS.tofile(tmp_path / name)
  (tmp_path / 'meta.pkl').write_bytes(b'never read')
  (tmp_path / 'deeper').mkdir()
  _IDS.tofile(tmp_path / 'deeper' / 'train.bin')
  found = token_files.find(str(tmp_path))
  assert {file.path.name: file.split for file in found} == splits
  assert [file.path.name for file in found] == sorted(splits)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert [file.path.name for file in token_files.find('~/fineweb_*.bin')] == sorted(
    name for name in splits if name.startswith('fineweb')
  )
  assert len(token_files.find('~')) == len(splits)


@pytest.mark.parametrize(
  ('data', 'words'),
  [
    (b'', ['no tokens']),
    (llm_c([]), ['no tokens']),
    (b'abc', ['3 bytes', 'uint16']),
    (llm_c(_IDS)[:-1], ['1,033 bytes', '5 tokens', '1,034 bytes']),
    (llm_c(_IDS) + b'ab', ['1,036 bytes', '5 tokens']),
    (llm_c(_IDS, length=-1), ['-1 tokens']),
    (llm_c(_IDS, version=2), ['version 2', 'not 1']),
    (llm_c(_IDS, magic=20240801, version=1, dtype='<u4'), ['version 1', 'not 7']),
    (llm_c(_IDS, magic=20240801, version=7), ['5 tokens', '1,044 bytes']),
    (llm_c(_IDS)[:900], ['within the header']),
    (llm_c(_IDS, magic=20240522), ['questions']),
  ],
)
def test_a_file_that_is_not_sound_is_named(tmp_path, data, words):
  _IDS.tofile(tmp_path / 'a.bin')
  (tmp_path / 'b.bin').write_bytes(data)
  fails(lambda: token_files.find(str(tmp_path)), 'b.bin', '--config.data.source', *words)


def test_missing_things_are_named(tmp_path, monkeypatch):
  fails(lambda: token_files.find(f'{tmp_path}/a.bin'), 'tokens:', 'a.bin', 'no such file')
  fails(lambda: token_files.find(str(tmp_path)), '*.bin', 'matches no file')
  _IDS.tofile(tmp_path / 'a.bin')

  def denied(*args, **kwargs):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(token_files.pathlib.Path, 'open', denied)
  fails(lambda: token_files.find(str(tmp_path)), 'a.bin', 'Permission denied')


@pytest.mark.parametrize('block', [2, 6, 1 << 24])
@pytest.mark.parametrize('position', [0, 1, 3, 4])
def test_an_id_outside_the_vocabulary_is_named(tmp_path, monkeypatch, block, position):
  monkeypatch.setattr(token_files, '_CHECK_BYTES', block)
  ids = np.array([3, 1, 2, 3, 0], np.uint16)
  ids.tofile(tmp_path / 'a.bin')
  token_files.check(token_files.find(str(tmp_path)), vocab_size=4)
  ids[position] = 4
  ids[4] = max(ids[4], 4)
  ids.tofile(tmp_path / 'b.bin')
  files = token_files.find(str(tmp_path))
  token_files.check(files, vocab_size=5)
  words = ('b.bin', f'token {position} is 4', '4 ids', '--config.data.tokenizer')
  fails(lambda: token_files.check(files, vocab_size=4), *words)
