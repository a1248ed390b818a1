"""Parquet files: the same documents in every grouping, splits by name, every fault named."""

import pathlib
import sys
import tempfile
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import pytest

from gpt_jax.data import sources
from gpt_jax.data.sources import corpus
from tests import raised
from tests.data import documents

pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
pq = pytest.importorskip('pyarrow.parquet')


def save(path, texts, rows=None, kind=None, **columns):
  """Writes a file with the column `text`, `rows` to a row group."""
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.table(
    {'id': list(range(len(texts))), 'text': pa.array(texts, kind or pa.string()), **columns}
  )
  pq.write_table(table, path, row_group_size=rows)


@hypothesis.given(
  st.lists(st.lists(st.text(max_size=30), max_size=12), min_size=1, max_size=3),
  st.integers(1, 5),
  st.integers(1, 400),
  st.integers(1, 60),
)
def test_documents_come_back_for_every_part_size(monkeypatch, texts, rows, full, at_once):
  from gpt_jax.data.sources import parquet

  monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
  monkeypatch.setattr(parquet, '_BATCH_BYTES', at_once)
  with tempfile.TemporaryDirectory() as name:
    for i, column in enumerate(texts):
      save(pathlib.Path(name, f'{i}.parquet'), column, rows)
    whole = [text for column in texts for text in column]
    assert documents.read(f'parquet:{name}').get('', []) == whole
    parts = sources.open_source(f'parquet:{name}', text_field='text').parts
    places = [piece.place for part in parts for piece in part.read()]
    expected = [f'{name}/{i}.parquet row {j}' for i, c in enumerate(texts) for j in range(len(c))]
    assert places == expected
    assert len(parts) <= sum(part.size for part in parts) // full + 1


def test_documents_have_their_classes(tmp_path):
  save(tmp_path / 'train.parquet', ['a', 'b', 'c'], 2, label=[0, 1, None], name=['x', 'y', 'z'])
  spec = f'parquet:{tmp_path}'
  assert documents.labels(spec, 'label') == [('a', '0'), ('b', '1'), ('c', '')]
  assert documents.labels(spec, 'name') == [('a', 'x'), ('b', 'y'), ('c', 'z')]
  error = raised.user_error(documents.labels, spec, 'labels')
  assert error.key == 'data.label_field'


def test_a_long_row_group_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
  from gpt_jax.data.sources import parquet

  save(tmp_path / 'a.parquet', [f'{i} {"x" * 1000}' for i in range(100)])
  monkeypatch.setattr(parquet, '_BATCH_BYTES', 5000)
  read = mock.Mock(wraps=pq.ParquetFile.iter_batches)
  monkeypatch.setattr(pq.ParquetFile, 'iter_batches', lambda *args, **rest: read(*args, **rest))
  assert len(documents.read(f'parquet:{tmp_path}')['']) == 100
  assert 1 <= read.call_args.args[1] <= 5


@pytest.mark.parametrize(
  'kind', ['string', 'large_string', 'string_view', 'binary', 'large_binary', 'dictionary']
)
def test_every_kind_of_text_is_read(tmp_path, kind):
  texts = ['one', 'é', '', 'one'] * 1000  # encoded in less than a byte each
  column = [text.encode() for text in texts] if 'binary' in kind else texts
  arguments = (pa.int32(), pa.string()) if kind == 'dictionary' else ()
  save(tmp_path / 'a.parquet', column, kind=getattr(pa, kind)(*arguments))
  assert documents.read(f'parquet:{tmp_path}/a.parquet') == {'': texts}


def test_splits_are_those_of_hugging_face(tmp_path, monkeypatch):
  names = [
    'b/train-00001-of-00002.parquet',
    'a/train-00000-of-00002-0123456789abcdef.parquet',
    'a/val-00000-of-00001.parquet',
    'dev.parquet',
    'test/0000.parquet',
    'valid/x/0000.parquet',
    'unsupervised-00000-of-00001.parquet',
    'extra-00000-of-00001.parquet',
    'training/0000.parquet',
    'train/val/0000.parquet',
    'train/test-00000-of-00001.parquet',
    'other.parquet',
  ]
  for name in names:
    save(tmp_path / 'dev' / name, [name])
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  splits = documents.read('parquet:~/dev')
  # The folder that the user names is not a split.
  assert list(splits) == ['train', 'validation', 'test', '', 'extra', 'unsupervised']
  assert splits['train'] == [names[1], names[0], names[8]]
  assert splits['validation'] == [names[2], names[3], names[9], names[5]]
  assert splits['test'] == [names[4], names[10]]
  assert splits[''] == ['other.parquet']
  assert documents.read(f'parquet:{tmp_path}/dev/{names[8]}') == {'': [names[8]]}
  assert documents.read('parquet:dev/*/0*') == {'train': [names[8]], 'test': [names[4]]}
  assert documents.read(f'parquet:{tmp_path}/dev/dev.parquet') == {'validation': ['dev.parquet']}
  assert documents.read('parquet:dev/oth*') == {'': ['other.parquet']}


def test_files_and_column_are_chosen_and_change_the_fingerprint(tmp_path):
  spec = f'parquet:{tmp_path}/[x]'
  save(tmp_path / '[x]' / 'a.parquet', ['no'], body=['yes' * 1000], **{'a.b': ['dot']})
  assert documents.read(spec, field='body') == {'': ['yes' * 1000]}
  assert documents.read(spec, field='a.b') == {'': ['dot']}
  (part,) = sources.open_source(spec, text_field='text').parts
  assert 0 < part.size < 1000, 'the other column counted too'
  seen = {documents.fingerprint(spec, field) for field in ('text', 'body')}
  save(tmp_path / '[x]' / 'b.parquet', ['two'], body=['x'])
  assert len(seen | {documents.fingerprint(spec, field) for field in ('text', 'body')}) == 4


class TestBadFiles:
  @pytest.mark.parametrize('column', [None, [1], [['a']], [{'x': 'a'}], [None]])
  def test_a_column_without_text_is_refused(self, tmp_path, column):
    save(tmp_path / 'a.parquet', ['one'], **({} if column is None else {'body': column}))
    error = documents.error(f'parquet:{tmp_path}', 'body')
    assert error.key == 'data.text_field' and 'a.parquet' in error.problem

  def test_null_and_invalid_utf8_are_named_with_their_row(self, tmp_path):
    path = tmp_path / 'a.parquet'
    save(path, ['one', 'two', 'three', None, 'five'], rows=2)
    error = documents.error(f'parquet:{path}')
    assert error.key == 'data.text_field' and 'a.parquet row 3' in error.problem
    for kind in (pa.binary(), pa.string()):
      column = pa.Array.from_buffers(kind, 2, pa.array([b'good', b'\xe9']).buffers())
      pq.write_table(pa.table({'text': column}), path)
      assert documents.error(f'parquet:{path}').key == f'{path} row 1'

  @pytest.mark.parametrize(
    'damage',
    [
      lambda data: b'',
      lambda data: b'some text, and not Parquet',
      lambda data: data[: len(data) // 2],
      lambda data: data[:2000] + b'\xff' * 4000 + data[6000:],
    ],
  )
  def test_damage_is_named(self, tmp_path, damage):
    path = tmp_path / 'a.parquet'
    save(path, [f'text {i}' for i in range(1000)])
    path.write_bytes(damage(path.read_bytes()))
    assert documents.error(f'parquet:{tmp_path}').key == str(path)

  def test_a_file_that_vanishes_or_changes_is_named(self, tmp_path):
    path = tmp_path / 'a.parquet'
    save(path, ['one', 'two'], rows=1)
    (part,) = sources.open_source(f'parquet:{tmp_path}', text_field='text').parts
    for columns in ({'text': ['one']}, {'text': [1, 2]}, {'x': ['one', 'two']}):
      pq.write_table(pa.table(columns), path, row_group_size=1)
      assert raised.user_error(lambda: list(part.read())).key == str(path)
    path.unlink()
    assert raised.user_error(lambda: list(part.read())).key == str(path)
    assert documents.error(f'parquet:{tmp_path}').key == 'data.source'  # an empty folder


def test_without_the_package_its_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, 'gpt_jax.data.sources.parquet', raising=False)
  monkeypatch.delattr(sources, 'parquet', raising=False)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  error = documents.error(f'parquet:{tmp_path}')
  assert error.key == 'data.source' and 'gpt_jax[parquet]' in error.fix
