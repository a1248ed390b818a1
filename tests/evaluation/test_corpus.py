"""A text to measure on has the tokens that training would have, by the model's tokenizer."""

import tempfile
from unittest import mock

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data import encoding, prepare
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import corpus
from tests import raised

BYTE = char.ByteTokenizer()
EOS = BYTE.eos_id


def _open(spec, tokenizer=BYTE, **options):
  options = {'text_field': 'text', 'invalid_utf8': 'fail', 'split': '', **options}
  return corpus.open_tokens(str(spec), tokenizer, **{'limit': None, 'progress': None, **options})


def _ids(spec, tokenizer=BYTE, **options):
  with _open(spec, tokenizer, **options) as tokens:
    return tokens.read(0, len(tokens)).tolist()


def _fails(key, spec, tokenizer=BYTE, **options):
  assert raised.user_error(_ids, spec, tokenizer, **options).key == str(key)


@pytest.fixture
def store_of(tmp_path):
  """A function that makes the token store that training would make."""

  def make(source, tokenizer='byte', **knobs):
    knobs |= {'source': source, 'tokenizer': tokenizer, 'cache_dir': str(tmp_path / 'cache')}
    (kept,) = prepare.prepare(config.DataConfig(**knobs)).sources
    return kept

  return make


@pytest.fixture
def texts(tmp_path):
  """A spec of two documents and an empty one."""
  for name, text in (('a', 'one'), ('b', ''), ('c', 'zwei é')):
    (tmp_path / f'{name}.txt').write_text(text)
  return f'text:{tmp_path}/*.txt'


@pytest.fixture
def parquet(tmp_path):
  """The spec of a folder with two splits, as Hugging Face has them."""
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  for split, texts in (('train', ['abc', 'd']), ('test', ['ef'])):
    table = pyarrow.table({'words': texts})
    parquet.write_table(table, tmp_path / f'{split}-00000-of-00001.parquet')
  return f'parquet:{tmp_path}'


@pytest.mark.parametrize(('kind', 'specials'), [('byte', ''), ('byte', 'bos'), ('char', 'eos')])
def test_the_tokens_are_those_of_training(texts, store_of, kind, specials):
  kept = store_of(texts, kind, special_tokens=specials)
  wanted = kept.tokens.read(0, len(kept.tokens)).tolist()
  assert _ids(texts, kept.tokenizer()) == _ids(kept.directory, kept.tokenizer()) == wanted


def test_a_store_of_another_tokenizer_is_refused(texts, store_of, tmp_path):
  _fails('data', store_of(texts, 'char').directory, char.CharTokenizer('abc'))
  _fails('data', tmp_path)


def test_token_files_are_read_as_they_are(tmp_path):
  np.array([1, 2, EOS], np.uint16).tofile(tmp_path / 'train.bin')
  np.array([3, 4, EOS], np.uint16).tofile(tmp_path / 'val.bin')
  assert _ids(f'tokens:{tmp_path}') == [1, 2, EOS, 3, 4, EOS]
  assert _ids(f'tokens:{tmp_path}', split='validation') == [3, 4, EOS]
  for limit in range(1, 8):
    assert _ids(f'tokens:{tmp_path}', limit=limit) == [1, 2, EOS, 3, 4, EOS][:limit]


def test_a_split_and_a_field_are_chosen(parquet, store_of):
  test, train = [*b'ef', EOS], [*b'abc', EOS, *b'd', EOS]
  assert _ids(parquet, text_field='words', split='test') == test
  assert _ids(parquet, text_field='words') == [*train, *test]
  assert _ids(store_of(parquet, text_field='words').directory, split='test') == test
  _fails('split', parquet, text_field='words', split='val')


@pytest.mark.parametrize(('limit', 'parts'), [(5, 1), (6, 1), (7, 2), (None, 2)])
def test_no_more_parts_are_encoded_than_the_limit_needs(parquet, monkeypatch, limit, parts):
  write, progress = mock.Mock(wraps=encoding.write_shard), mock.Mock()
  monkeypatch.setattr(encoding, 'write_shard', write)
  whole = [*b'abc', EOS, *b'd', EOS, *b'ef', EOS]
  assert _ids(parquet, text_field='words', limit=limit, progress=progress) == whole[:limit]
  assert write.call_count == parts
  reported = [call.args[1:] for call in progress.call_args_list]
  assert all(0 <= done <= total for done, total in reported) and reported[-1][0] > 0


def test_nothing_stays_behind(texts, tmp_path, monkeypatch):
  folder = tmp_path / 'temporary'
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))
  with _open(texts) as tokens:
    assert len(tokens) == 12
    assert list(folder.rglob('*.bin'))
  with pytest.raises(ZeroDivisionError), _open(texts):
    _ = 1 / 0
  assert not list(folder.iterdir())


def test_text_that_is_invalid_or_unknown_is_found_at_its_place(texts, tmp_path):
  _fails(tmp_path / 'c.txt', texts, char.CharTokenizer('onezwi '))
  path = tmp_path / 'x'
  path.write_text('{"text": "abba"}\n{"text": "xaxb"}')
  _fails(f'{path} at byte 17', f'jsonl:{path}', char.CharTokenizer('ab'))
  path.write_bytes(b'a\xe9b')
  _fails(path, f'text:{path}')
  assert _ids(f'text:{path}', invalid_utf8='replace') == [*'a\ufffdb'.encode(), EOS]
  path.write_bytes(b'')
  assert _ids(f'text:{path}') == []
  for mixture in ('0.5*text:a', 'text:a + text:b'):
    _fails('data.source', mixture)


def test_a_full_disk_is_reported(texts, monkeypatch):
  fill = mock.Mock(side_effect=OSError(28, 'No space left on device'))
  monkeypatch.setattr(encoding.atomic, 'write_bytes', fill)
  assert 'No space left' in raised.user_error(_ids, texts).problem
