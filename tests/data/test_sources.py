"""A spec gives its documents in order, or a message that names the fix."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gpt_jax import errors
from gpt_jax.data import sources


def read(spec):
  return list(sources.open_source(spec).documents())


def fails(spec, *words):
  """Asserts that reading `spec` fails with one paragraph that has all `words`."""
  with pytest.raises(errors.UserError) as e:
    read(spec)
  message = str(e.value)
  assert '\n' not in message
  for word in words:
    assert word in message


class TestBuiltin:
  def test_is_prose_in_a_fixed_order(self):
    source = sources.open_source('builtin:python-reference')
    documents = list(source.documents())
    assert len(documents) > 50 and sum(map(len, documents)) > 300_000
    assert documents == list(source.documents())
    assert documents[0].startswith('The "assert" statement')

  def test_another_name_is_refused(self):
    fails('builtin:python', 'builtin:python-reference')


class TestFiles:
  def test_files_come_in_the_order_of_their_paths(self, tmp_path):
    (tmp_path / 'b' / 'c').mkdir(parents=True)
    for name in ('z.txt', 'a.txt', 'b/y.txt', 'b/c/x.txt', 'b/no.md'):
      (tmp_path / name).write_text(name)
    assert read(f'text:{tmp_path}/*.txt') == ['a.txt', 'z.txt']
    assert read(f'text:{tmp_path}/**/*.txt') == ['a.txt', 'b/c/x.txt', 'b/y.txt', 'z.txt']
    assert read(f'text:{tmp_path}/b/**') == ['b/c/x.txt', 'b/no.md', 'b/y.txt']

  def test_text_is_kept_as_it_is_but_for_the_mark(self, tmp_path):
    (tmp_path / 'a').write_bytes('one\r\ntwo\rthree\né\x0c\u2028'.encode())
    (tmp_path / 'b').write_bytes('\ufefftext'.encode())
    assert read(f'text:{tmp_path}/?') == ['one\r\ntwo\rthree\né\x0c\u2028', 'text']

  def test_home_and_the_working_directory_are_understood(self, tmp_path, monkeypatch):
    (tmp_path / 'a.txt').write_text('at home')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read('text:~/*.txt') == read('text:a.txt') == ['at home']

  def test_a_name_with_brackets_is_a_name(self, tmp_path):
    (tmp_path / '[x].txt').write_text('brackets')
    assert read(f'text:{tmp_path}/[x].txt') == ['brackets']

  def test_empty_files_are_left_out_unless_all_are(self, tmp_path):
    for name, text in {'a': '', 'b': 'text', 'c': ''}.items():
      (tmp_path / name).write_text(text)
    assert read(f'text:{tmp_path}/*') == ['text']
    (tmp_path / 'b').write_bytes('\ufeff'.encode())
    fails(f'text:{tmp_path}/*', 'is empty')

  @pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
  def test_what_is_not_utf8_is_named_with_its_place(self, tmp_path, mark):
    (tmp_path / 'latin').write_bytes(mark + 'é'.encode() + b'caf\xe9')
    fails(f'text:{tmp_path}/latin', 'latin', f'0xe9 at offset {len(mark) + 5}')

  def test_missing_things_are_named(self, tmp_path):
    fails(f'text:{tmp_path}/none.txt', f'{tmp_path}/none.txt', 'no such file')
    fails(f'text:{tmp_path}/*.txt', f'{tmp_path}/*.txt', 'matches no file')
    fails(f'text:{tmp_path}', 'is a directory', f'text:{tmp_path}/**/*.txt')
    fails(f'text:{os.devnull}', os.devnull, 'no regular file')

  def test_a_file_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
    (tmp_path / 'secret').write_text('text')

    def denied(path):
      raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'read_bytes', denied)
    fails(f'text:{tmp_path}/secret', 'secret', 'Permission denied')

  def test_a_file_that_vanishes_is_named(self, tmp_path):
    (tmp_path / 'a').write_text('text')
    source = sources.open_source(f'text:{tmp_path}/a')
    (tmp_path / 'a').unlink()
    for use in (source.fingerprint, lambda: list(source.documents())):
      with pytest.raises(errors.UserError, match='No such file'):
        use()

  def test_the_fingerprint_changes_with_the_files(self, tmp_path):
    def fingerprint():
      return json.dumps(sources.open_source(f'text:{tmp_path}/*').fingerprint())

    (tmp_path / 'a').write_text('text')
    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    os.utime(tmp_path / 'a', ns=(1, 1))
    seen.append(fingerprint())
    (tmp_path / 'a').write_text('texts')
    os.utime(tmp_path / 'a', ns=(1, 1))
    seen.append(fingerprint())
    (tmp_path / 'a').rename(tmp_path / 'b')
    seen.append(fingerprint())
    (tmp_path / 'c').write_text('text')
    seen.append(fingerprint())
    assert len(set(seen)) == 5


class TestUnknown:
  @pytest.mark.parametrize(
    ('spec', 'hint'),
    [
      ('txt:a.txt', 'did you mean text:a.txt?'),
      ('TFDS:pg19', 'did you mean tfds:pg19?'),
      ('python-reference', 'did you mean builtin:python-reference?'),
      ('shakespeare', 'tfds:NAME'),
      ('', 'text:GLOB'),
      ('text:', 'text:GLOB'),
    ],
  )
  def test_the_nearest_source_is_named(self, spec, hint):
    fails(spec, hint)

  def test_a_bare_path_is_understood(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.txt').write_text('text')
    fails('a.txt', 'did you mean text:a.txt?')
    fails('*.txt', 'did you mean text:*.txt?')


@pytest.fixture(scope='class')
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
        example = {'text': f'{name} é {i}', 'title': 'a title'}
        yield i, {key: example[key] for key in self.features}

  return TinyPoems, tmp_path_factory.mktemp('tfds')


class TestTfds:
  @pytest.fixture(autouse=True)
  def folder(self, poems, monkeypatch):
    self.builder, self.home = poems
    monkeypatch.setenv('TFDS_DATA_DIR', str(self.home))

  def test_splits_are_joined_in_order(self, capfd, caplog):
    source = sources.open_source('tfds:tiny_poems')  # prepares it
    documents = list(source.documents())
    order = ('train', 'validation', 'test', 'apple', 'zebra')
    assert documents == [f'{name} é {i}' for name in order for i in range(130)]
    assert documents == list(source.documents())
    assert 'tiny_poems/1.0.0' in json.dumps(source.fingerprint())
    assert capfd.readouterr().out == '' and not caplog.records

  def test_a_prepared_set_is_read_in_silence(self, capfd):
    read('tfds:tiny_poems')
    capfd.readouterr()
    assert len(read('tfds:tiny_poems:1.0.0')) == 5 * 130
    assert capfd.readouterr() == ('', '')

  @pytest.mark.parametrize('damage', ['short', 'half', 'rot', 'missing'])
  def test_damage_is_named(self, damage, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    read('tfds:tiny_poems')
    (path,) = tmp_path.glob('tiny_poems/1.0.0/*-test.*')
    data = path.read_bytes()
    if damage == 'missing':
      path.unlink()
    elif damage == 'rot':
      path.write_bytes(data[:500] + bytes(64) + data[564:])
    else:  # cut at half, the records read as empty ones
      path.write_bytes(data[: {'short': 500, 'half': len(data) // 2}[damage]])
    fails('tfds:tiny_poems', 'split test', str(path.parent), 'prepare it again')

  @pytest.mark.parametrize(
    ('names', 'message'),
    [(('title',), None), (('title', 'body'), 'features: title, body'), ((), 'no text feature')],
  )
  def test_the_text_is_one_feature(self, names, message, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    number = {'number': tfds.features.ClassLabel(num_classes=2)}
    features = {name: tfds.features.Text() for name in names} or number
    monkeypatch.setattr(self.builder, 'features', features)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    if message:
      fails('tfds:tiny_poems', message)
    else:
      assert set(read('tfds:tiny_poems')) == {'a title'}

  def test_no_network_is_named_with_the_way_out(self, tmp_path, monkeypatch):
    monkeypatch.setattr(self.builder, 'url', 'http://127.0.0.1:9/poems')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    fails('tfds:tiny_poems', 'connect to the network', 'TFDS_DATA_DIR', "tfds.builder('tiny_poems'")

  def test_no_tensorflow_is_named_with_the_way_out(self, tmp_path, monkeypatch):
    def needs_tensorflow(self, dl_manager):
      raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')

    monkeypatch.setattr(self.builder, '_split_generators', needs_tensorflow)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    fails('tfds:tiny_poems', 'pip install -e .[prepare]', "tfds.builder('tiny_poems'")

  def test_unknown_names_get_a_suggestion(self):
    fails('tfds:tiny_shakespear', 'did you mean tfds:tiny_shakespeare?')
    fails('tfds:no_such_thing', 'https://www.tensorflow.org/datasets')
    fails('tfds:imdb_reviews/other', 'imdb_reviews/other', 'cannot open')
    fails('tfds:not a name', 'not a name', 'cannot open')


def test_real_data_is_read_without_tensorflow(shared_data):
  program = """
import json, sys
from gpt_jax.data import sources
lengths = [len(text) for text in sources.open_source('tfds:tiny_shakespeare').documents()]
reviews = sources.open_source('tfds:imdb_reviews').documents()
print(json.dumps([lengths, len(next(reviews)), sorted({'tensorflow', 'torch'} & set(sys.modules))]))
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, 'TFDS_DATA_DIR': str(shared_data / 'tfds')},
    cwd=pathlib.Path(__file__).resolve().parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  lengths, review, imported = json.loads(done.stdout)
  assert lengths == [1_003_854, 55_770, 55_770]
  assert review > 0 and imported == []
  assert done.stderr == ''
