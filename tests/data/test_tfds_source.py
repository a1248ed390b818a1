"""TFDS data sets are read without TensorFlow, in parts, and prepared or refused in plain words."""

import json
import os
import pathlib
import pickle
import shutil
import socket
import subprocess
import sys
import threading

import pytest

from gpt_jax.data import sources
from gpt_jax.data.sources import corpus, tfds
from tests.data import documents


@pytest.fixture(scope='module')
def poems(tmp_path_factory):
  """A class of small TFDS data sets, and the folder in which they are prepared."""
  import tensorflow_datasets as tfds

  class TinyPoems(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    features = {'text': tfds.features.Text(), 'title': tfds.features.Text()}
    url = ''

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(self.features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      if self.url:
        dl_manager.download(self.url)
      names = ('zebra', 'test', 'apple', 'train', 'validation')
      return {name: self._generate_examples(name) for name in names}

    def _generate_examples(self, name):
      for i in range(130):
        example = {'text': f'{name} é {i}', 'title': 'a title', 'number': 1}
        yield i, {key: example[key] for key in self.features}

  return TinyPoems, tmp_path_factory.mktemp('tfds')


_SPLITS = {
  name: [f'{name} é {i}' for i in range(130)]
  for name in ('train', 'validation', 'test', 'apple', 'zebra')
}


class TestTfds:
  @pytest.fixture(autouse=True)
  def folder(self, poems, monkeypatch):
    self.builder, self.home = poems
    monkeypatch.setenv('TFDS_DATA_DIR', str(self.home))

  def test_splits_come_in_order(self, capfd, caplog):
    splits = documents.read('tfds:tiny_poems')  # prepares it
    assert splits == _SPLITS and list(splits) == list(_SPLITS)
    fingerprint = sources.open_source('tfds:tiny_poems', text_field='text').fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint['name'] == 'tiny_poems/1.0.0' and fingerprint['feature'] == 'text'
    assert list(fingerprint['splits']) == list(_SPLITS)
    assert all(length == 130 and size > 0 for length, size in fingerprint['splits'].values())
    assert capfd.readouterr().out == '' and not caplog.records

  @pytest.mark.parametrize(('full', 'at_once'), [(1, 1), (300, 200), (1000, 1 << 20), (9999, 1)])
  def test_ranges_join_to_the_whole(self, monkeypatch, full, at_once):
    documents.read('tfds:tiny_poems')
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    monkeypatch.setattr(tfds, '_READ_BYTES', at_once)
    assert documents.read('tfds:tiny_poems') == _SPLITS
    source = sources.open_source('tfds:tiny_poems', text_field='text')
    total = sum(size for _, size in source.fingerprint['splits'].values())
    assert total - len(source.parts) <= sum(part.size for part in source.parts) <= total
    assert all(part.size <= max(full, 100) for part in source.parts)
    places = [piece.place for part in source.parts for piece in part.read()]
    assert places[:2] == [f'tiny_poems/1.0.0 train example {i}' for i in (0, 1)]
    assert len(set(places)) == len(places)

  def test_a_prepared_set_is_read_in_silence(self, capfd):
    documents.read('tfds:tiny_poems')
    capfd.readouterr()
    tfds._reopen.cache_clear()
    assert documents.read('tfds:tiny_poems:1.0.0') == _SPLITS
    assert capfd.readouterr() == ('', '')

  def test_parts_are_read_in_a_process_that_knows_no_builder(self):
    source = sources.open_source('tfds:tiny_poems', text_field='text')
    program = (
      'import pickle, sys; part = pickle.load(sys.stdin.buffer); '
      'sys.stdout.buffer.write(pickle.dumps([piece.text for piece in part.read()]))'
    )
    done = subprocess.run(
      [sys.executable, '-c', program],
      input=pickle.dumps(source.parts[1]),
      env={name: value for name, value in os.environ.items() if name != 'TFDS_DATA_DIR'},
      cwd=pathlib.Path(__file__).resolve().parents[2],
      capture_output=True,
      check=True,
    )
    assert [text.decode() for text in pickle.loads(done.stdout)] == _SPLITS['validation']
    assert done.stderr == b''

  @pytest.mark.parametrize('damage', ['short', 'half', 'rot', 'missing'])
  def test_damage_is_named(self, damage, tmp_path, monkeypatch):
    documents.read('tfds:tiny_poems')
    shutil.copytree(self.home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    (path,) = tmp_path.glob('tiny_poems/1.0.0/*-test.*')
    data = path.read_bytes()
    if damage == 'missing':
      path.unlink()
    elif damage == 'rot':
      path.write_bytes(data[:500] + bytes(64) + data[564:])
    else:  # cut at half, the records read as empty ones
      path.write_bytes(data[: {'short': 500, 'half': len(data) // 2}[damage]])
    documents.fails('tfds:tiny_poems', 'split test', str(path.parent), 'prepare it again')

  @pytest.mark.parametrize(
    ('names', 'field', 'message'),
    [
      (('title',), 'text', None),
      (('title', 'body'), 'title', None),
      (('title', 'text'), 'title', None),
      (('text', 'title'), 'title', None),
      (('title', 'number'), 'number', 'no text feature called number, only title'),
      (('title',), 'body', 'features: title'),
      (('title', 'body'), 'text', 'features: title, body'),
      (('number',), 'text', 'no text feature'),
    ],
  )
  def test_the_text_is_one_feature(self, names, field, message, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    kinds = {'number': tfds.features.ClassLabel(num_classes=2)}
    features = {name: kinds.get(name, tfds.features.Text()) for name in names}
    monkeypatch.setattr(self.builder, 'features', features)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    if message:
      fix = 'another data set' if names == ('number',) else '--config.data.text_field'
      documents.fails('tfds:tiny_poems', message, fix, field=field)
    else:
      monkeypatch.setattr(
        self.builder,
        '_generate_examples',
        lambda self, name: ((i, {k: f'a {k}' for k in names}) for i in range(3)),
      )
      assert documents.read('tfds:tiny_poems', field)['train'] == ['a title'] * 3

  def test_no_network_is_named_with_the_way_out(self, tmp_path, monkeypatch):
    monkeypatch.setattr(self.builder, 'url', 'http://127.0.0.1:9/poems')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    documents.fails(
      'tfds:tiny_poems', 'connect to the network', 'TFDS_DATA_DIR', "tfds.builder('tiny_poems'"
    )

  @pytest.mark.parametrize('answer', [b'', b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'])
  def test_a_silent_server_is_not_waited_for(self, answer, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, '_SILENT_SECONDS', 0.05)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    held = []

    def serve():
      while True:
        try:
          held.append(server.accept()[0])
        except OSError:  # closed
          return
        held[-1].sendall(answer)

    with socket.create_server(('127.0.0.1', 0)) as server:
      thread = threading.Thread(target=serve)
      thread.start()
      monkeypatch.setattr(self.builder, 'url', f'http://127.0.0.1:{server.getsockname()[1]}/poems')
      try:
        documents.fails('tfds:tiny_poems', 'downloading it failed', 'timed out')
      finally:
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
      connection.close()

  def test_no_tensorflow_is_named_with_the_way_out(self, tmp_path, monkeypatch):
    def needs_tensorflow(self, dl_manager):
      raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')

    monkeypatch.setattr(self.builder, '_split_generators', needs_tensorflow)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    documents.fails('tfds:tiny_poems', 'pip install -e .[prepare]', "tfds.builder('tiny_poems'")

  def test_unknown_names_get_a_suggestion(self):
    documents.fails('tfds:tiny_shakespear', 'did you mean tfds:tiny_shakespeare?')
    documents.fails('tfds:no_such_thing', 'https://www.tensorflow.org/datasets')
    documents.fails('tfds:imdb_reviews/other', 'imdb_reviews/other', 'cannot open')
    documents.fails('tfds:not a name', 'not a name', 'cannot open')


def test_real_data_is_read_without_tensorflow(shared_data):
  program = """
import json, sys
from gpt_jax.data import sources
pieces = [p for part in sources.open_source('tfds:tiny_shakespeare', text_field='text').parts
          for p in part.read()]
reviews = sources.open_source('tfds:imdb_reviews', text_field='text').parts
print(json.dumps([[len(p.text) for p in pieces], [[part.split, part.size] for part in reviews],
                  len(next(reviews[-1].read()).text),
                  sorted({'tensorflow', 'torch'} & set(sys.modules))]))
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'TFDS_DATA_DIR': str(shared_data / 'tfds')},
    cwd=pathlib.Path(__file__).resolve().parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  lengths, reviews, review, imported = json.loads(done.stdout)
  assert lengths == [1_003_854, 55_770, 55_770]
  splits = [split for split, _ in reviews]
  assert len(splits) > 10 and splits == sorted(splits, reverse=True)
  assert sum(size for _, size in reviews) > 67_000_000
  assert review > 0 and imported == []
  assert done.stderr == ''
