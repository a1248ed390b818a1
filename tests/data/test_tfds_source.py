"""TFDS data sets are read without TensorFlow, in parts, and prepared or refused in plain words."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import tensorflow_datasets as tfds_lib

from gpt_jax.data import sources
from gpt_jax.data.sources import corpus, tfds
from tests import raised
from tests.data import documents

_SPLITS = {
  name: [f'{name} é {i}' for i in range(130)]
  for name in ('train', 'validation', 'test', 'apple', 'zebra')
}


@pytest.fixture(scope='module')
def poems(tmp_path_factory):
  """A class of small TFDS data sets, and the folder in which one is prepared."""

  class TinyPoems(tfds_lib.core.GeneratorBasedBuilder):
    VERSION = tfds_lib.core.Version('1.0.0')
    features = {
      **dict.fromkeys(['text', 'title'], tfds_lib.features.Text()),
      'mood': tfds_lib.features.ClassLabel(names=['sad', 'glad']),
    }

    def _info(self):
      features = tfds_lib.features.FeaturesDict(self.features)
      return tfds_lib.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
      return {name: self._generate_examples(name) for name in sorted(_SPLITS)}

    def _generate_examples(self, name):
      for i, text in enumerate(_SPLITS[name]):
        yield i, {'text': text, 'title': 'a title', 'mood': i % 3 - 1}

  folder = tmp_path_factory.mktemp('tfds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TFDS_DATA_DIR', str(folder))
    sources.open_source('tfds:tiny_poems', text_field='text')
  return TinyPoems, folder


class TestTfds:
  @pytest.fixture(autouse=True)
  def folder(self, poems, monkeypatch):
    self.builder, self.home = poems
    monkeypatch.setenv('TFDS_DATA_DIR', str(self.home))

  def test_splits_come_in_order_and_in_silence(self, capfd, monkeypatch):
    tfds._reopen.cache_clear()
    monkeypatch.setattr(self.builder, 'download_and_prepare', None)  # it is prepared
    splits = documents.read('tfds:tiny_poems:1.0.0')
    assert splits == _SPLITS and list(splits) == list(_SPLITS)
    assert documents.read('tfds:tiny_poems', 'title')['train'] == ['a title'] * 130
    fingerprint = sources.open_source('tfds:tiny_poems', text_field='text').fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint['name'] == 'tiny_poems/1.0.0' and fingerprint['fields'] == ['text']
    assert all(length == 130 and size > 0 for length, size in fingerprint['splits'].values())
    assert capfd.readouterr() == ('', '')

  @pytest.mark.parametrize(('full', 'at_once'), [(300, 200), (1000, 1 << 20), (9999, 1)])
  def test_ranges_join_to_the_whole(self, monkeypatch, full, at_once):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    monkeypatch.setattr(tfds, '_READ_BYTES', at_once)
    assert documents.read('tfds:tiny_poems') == _SPLITS
    source = sources.open_source('tfds:tiny_poems', text_field='text')
    total = sum(size for _, size in source.fingerprint['splits'].values())
    assert total - len(source.parts) <= sum(part.size for part in source.parts) <= total
    assert all(part.size <= full for part in source.parts)
    places = [piece.place for piece in source.parts[0].read()]
    assert places == [f'tiny_poems/1.0.0 train example {i}' for i in range(len(places))]

  @pytest.mark.parametrize('damage', ['short', 'half', 'rot', 'missing'])
  def test_damage_is_named(self, damage, tmp_path, monkeypatch):
    shutil.copytree(self.home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    (path,) = tmp_path.glob('tiny_poems/1.0.0/*-test.*')
    data = path.read_bytes()
    path.unlink()
    if damage != 'missing':  # cut at half, the records read as empty ones
      half, rot = data[: len(data) // 2], data[:500] + bytes(64) + data[564:]
      path.write_bytes({'short': data[:500], 'half': half, 'rot': rot}[damage])
    error = documents.error('tfds:tiny_poems')
    assert error.key == str(path.parent) and 'split test' in error.problem

  @pytest.mark.parametrize(
    ('names', 'field', 'read'),
    [
      (('title',), 'text', 'title'),
      (('title', 'text'), 'title', 'title'),
      (('title', 'number'), 'number', None),
      (('title', 'body'), 'text', None),
      (('number',), 'text', None),
    ],
  )
  def test_the_text_is_one_feature(self, names, field, read, tmp_path, monkeypatch):
    kinds = {'number': tfds_lib.features.ClassLabel(num_classes=2)}
    features = {name: kinds.get(name, tfds_lib.features.Text()) for name in names}
    if read:
      assert tfds._text_feature('tiny_poems', features, field) == read
      return
    monkeypatch.setattr(self.builder, 'features', features)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    error = documents.error('tfds:tiny_poems', field)
    assert error.key == 'data.text_field'
    assert ', '.join(name for name in names if name != 'number') in error.fix
    assert not list(tmp_path.iterdir())  # nothing was prepared for that

  @pytest.mark.parametrize(
    ('raised', 'fix'),
    [
      (ConnectionError('no network'), 'TFDS_DATA_DIR'),
      (ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow'), 'gpt_jax[prepare]'),
      (ModuleNotFoundError("No module named 'conllu'", name='conllu'), 'TFDS_DATA_DIR'),
      (ValueError('two\nlines'), 'TFDS_DATA_DIR'),
      *(
        (kind('x'), '') for kind in (AssertionError, RuntimeError, tfds_lib.download.DownloadError)
      ),
    ],
  )
  def test_a_failed_preparation_is_a_user_error(self, raised, fix, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(self.builder, '_split_generators', mock.Mock(side_effect=raised))
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    error = documents.error('tfds:tiny_poems')
    assert error.key == 'data.source' and 'tiny_poems' in error.problem and fix in error.fix
    assert capfd.readouterr().out == ''

  def test_a_form_that_needs_tensorflow_is_refused(self, monkeypatch):
    formats = {tfds_lib.core.FileFormat.TFRECORD}
    monkeypatch.setattr(tfds_lib.core.DatasetInfo, 'available_file_formats', lambda self: formats)
    assert documents.error('tfds:tiny_poems').key == 'data.source'

  @pytest.mark.parametrize('name', ['no_such_thing', 'imdb_reviews/other', 'not a name'])
  def test_an_unknown_name_is_refused(self, name):
    error = documents.error(f'tfds:{name}')
    assert error.key == 'data.source' and name in error.problem

  def test_classes_have_their_names(self):
    found = documents.labels('tfds:tiny_poems[test]', 'mood')
    assert found == [(text, ('', 'sad', 'glad')[i % 3]) for i, text in enumerate(_SPLITS['test'])]
    error = raised.user_error(documents.labels, 'tfds:tiny_poems', 'label')
    assert error.key == 'data.label_field' and 'mood' in error.fix

  def test_some_splits_are_read_alone(self):
    read = documents.read('tfds:tiny_poems[validation+train]')
    assert read == {split: _SPLITS[split] for split in ('train', 'validation')}
    one, other = (documents.fingerprint(f'tfds:tiny_poems{which}') for which in ('', '[train]'))
    assert one != other
    error = documents.error('tfds:tiny_poems[train+later]')
    assert error.key == 'data.source' and 'later' in error.problem

  def test_parts_are_read_in_a_process_that_knows_no_builder(self):
    source = sources.open_source('tfds:tiny_poems', text_field='text')
    program = (
      'import pickle, sys; part = pickle.load(sys.stdin.buffer); '
      'text = b"|".join(piece.text for piece in part.read()); sys.stdout.buffer.write(text); '
      'assert not {"tensorflow", "torch"} & set(sys.modules)'
    )
    done = subprocess.run(
      [sys.executable, '-c', program],
      input=pickle.dumps(source.parts[1]),
      env={name: value for name, value in os.environ.items() if name != 'TFDS_DATA_DIR'},
      cwd=pathlib.Path(__file__).resolve().parents[2],
      capture_output=True,
    )
    assert done.stdout.decode().split('|') == _SPLITS['validation'], done.stderr
    assert done.stderr == b''
