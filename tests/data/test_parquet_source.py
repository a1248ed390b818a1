"""Parquet files: the same documents in every grouping, splits by name, every fault named."""

import concurrent.futures
import json
import multiprocessing
import pathlib
import tempfile

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_jax import errors
from gpt_jax.data import sources
from gpt_jax.data.sources import corpus, parquet
from tests.data import documents


def save(path, texts, rows=None, kind=None, **columns):
  """A file with the column `text`, `rows` to a row group."""
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.table(
    {'id': list(range(len(texts))), 'text': pa.array(texts, kind or pa.string()), **columns}
  )
  pq.write_table(table, path, row_group_size=rows)


@hypothesis.settings(
  deadline=None,
  max_examples=50,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.lists(st.lists(st.text(max_size=30), max_size=12), min_size=1, max_size=3),
  st.integers(1, 5),
  st.integers(1, 400),
  st.integers(1, 60),
)
def test_documents_come_back_for_every_part_size(monkeypatch, texts, rows, full, at_once):
  monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
  monkeypatch.setattr(parquet, '_BATCH_BYTES', at_once)
  with tempfile.TemporaryDirectory() as name:
    for i, column in enumerate(texts):
      save(pathlib.Path(name, f'{i}.parquet'), column, rows)
    whole = [text for column in texts for text in column]
    assert documents.read(f'parquet:{name}').get('', []) == whole
    parts = sources.open_source(f'parquet:{name}', text_field='text').parts
    pieces = [piece for part in parts for piece in part.read()]
    assert [piece.place for piece in pieces] == [
      f'{name}/{i}.parquet row {row}'
      for i, column in enumerate(texts)
      for row in range(len(column))
    ]
    assert len(parts) <= sum(part.size for part in parts) // full + 1


@pytest.mark.parametrize(
  'kind', [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_is_read(tmp_path, kind):
  texts = ['one', 'é', '', 'one']
  column = [text.encode() for text in texts] if kind == pa.binary() else texts
  save(tmp_path / 'a.parquet', column, kind=kind)
  assert documents.read(f'parquet:{tmp_path}/a.parquet') == {'': texts}


def test_splits_are_those_of_hugging_face(tmp_path):
  names = [
    'b/train-00001-of-00002.parquet',
    'a/train-00000-of-00002-0123456789abcdef.parquet',
    'a/val-00000-of-00001.parquet',
    'dev.parquet',
    'test/0000.parquet',
    'valid/x/0000.parquet',
    'unsupervised-00000-of-00001.parquet',
    'extra-00000-of-00001.parquet',
    'train/0000.parquet',
    'train/val/0000.parquet',
    'train/test-00000-of-00001.parquet',
    'other.parquet',
  ]
  for name in names:
    save(tmp_path / 'dev' / name, [name])
  splits = documents.read(f'parquet:{tmp_path}/dev')
  # The folder that the user names is not a split.
  assert list(splits) == ['train', 'validation', 'test', '', 'extra', 'unsupervised']
  assert splits['train'] == [names[1], names[0], names[8]]
  assert splits['validation'] == [names[2], names[3], names[9], names[5]]
  assert splits['test'] == [names[4], names[10]]
  assert splits[''] == ['other.parquet']
  assert documents.read(f'parquet:{tmp_path}/dev/{names[8]}') == {'': [names[8]]}
  assert documents.read(f'parquet:{tmp_path}/dev/train/0*') == {'': [names[8]]}
  assert documents.read(f'parquet:{tmp_path}/dev/*/0*') == {'train': [names[8]], 'test': [names[4]]}
  assert documents.read(f'parquet:{tmp_path}/dev/dev.parquet') == {'validation': ['dev.parquet']}


def test_a_folder_with_brackets_is_a_folder(tmp_path):
  save(tmp_path / '[x]' / 'deep' / 'a.parquet', ['text'])
  assert documents.read(f'parquet:{tmp_path}/[x]') == {'': ['text']}


def test_the_column_is_named_by_the_user(tmp_path):
  save(tmp_path / 'a.parquet', ['no'], body=['yes'], **{'a.b': ['dot']})
  assert documents.read(f'parquet:{tmp_path}', field='body') == {'': ['yes']}
  assert documents.read(f'parquet:{tmp_path}', field='a.b') == {'': ['dot']}


def test_a_part_is_read_in_another_process(tmp_path):
  save(tmp_path / 'a.parquet', ['one', 'two'])
  (part,) = sources.open_source(f'parquet:{tmp_path}', text_field='text').parts
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    assert pool.submit(_texts, part).result() == [b'one', b'two']


def _texts(part):
  return [piece.text for piece in part.read()]


def test_the_fingerprint_changes_with_files_and_column(tmp_path):
  def fingerprint(field='text'):
    found = sources.open_source(f'parquet:{tmp_path}', text_field=field).fingerprint
    assert json.loads(json.dumps(found)) == found
    return json.dumps(found)

  save(tmp_path / 'a.parquet', ['one'], body=['x'])
  seen = {fingerprint(), fingerprint('body')}
  save(tmp_path / 'b.parquet', ['two'], body=['x'])
  assert len(seen | {fingerprint(), fingerprint('body')}) == 4


class TestBadFiles:
  def test_a_missing_column_is_named(self, tmp_path):
    save(tmp_path / 'a.parquet', ['one'])
    words = ('a.parquet', 'no column body', 'id (int64), text (string)', '--config.data.text_field')
    documents.fails(f'parquet:{tmp_path}', *words, field='body')

  @pytest.mark.parametrize('column', [[1], [['a']], [{'x': 'a'}], [None]])
  def test_a_column_of_another_type_is_named(self, tmp_path, column):
    save(tmp_path / 'a.parquet', ['one'], other=column)
    words = ('a.parquet', 'column other has', 'not text', '--config.data.text_field')
    documents.fails(f'parquet:{tmp_path}', *words, field='other')

  def test_null_is_named_with_its_row(self, tmp_path):
    save(tmp_path / 'a.parquet', ['one', 'two', 'three', None, 'five'], rows=2)
    documents.fails(f'parquet:{tmp_path}', 'a.parquet row 3', 'null', '--config.data.text_field')

  def test_what_is_not_utf8_is_named_with_its_row(self, tmp_path):
    bad = pa.array([b'good', b'caf\xe9'])
    for kind in (pa.binary(), pa.string()):
      column = pa.Array.from_buffers(kind, 2, bad.buffers())
      pq.write_table(pa.table({'text': column}), tmp_path / 'a.parquet')
      documents.fails(f'parquet:{tmp_path}', 'a.parquet row 1', 'byte 0xe9 at offset 3')

  @pytest.mark.parametrize('damage', ['cut', 'text', 'empty', 'rot'])
  def test_damage_is_named(self, tmp_path, damage):
    path = tmp_path / 'a.parquet'
    save(path, [f'text {i}' for i in range(1000)])
    data = path.read_bytes()
    middle = len(data) // 4
    path.write_bytes(
      {
        'cut': data[: len(data) // 2],
        'text': b'some text, and not Parquet',
        'empty': b'',
        'rot': data[:middle] + b'\xff' * (2 * middle) + data[3 * middle :],
      }[damage]
    )
    documents.fails(f'parquet:{tmp_path}', 'a.parquet', 'damaged', '--config.data.source')

  def test_a_file_that_vanishes_or_shrinks_is_named(self, tmp_path):
    save(tmp_path / 'a.parquet', ['one', 'two'], rows=1)
    (part,) = sources.open_source(f'parquet:{tmp_path}', text_field='text').parts
    save(tmp_path / 'a.parquet', ['one'])
    with pytest.raises(errors.UserError, match='changed while it was read'):
      list(part.read())
    (tmp_path / 'a.parquet').unlink()
    with pytest.raises(errors.UserError, match='cannot be read'):
      list(part.read())

  def test_missing_things_are_named(self, tmp_path):
    (tmp_path / 'a.txt').write_text('')
    documents.fails(f'parquet:{tmp_path}', f'{tmp_path}/**/*.parquet', 'matches no file')
    documents.fails(f'parquet:{tmp_path}/none.parquet', 'no such file')
