"""Text is prepared once, again when it changes, and appears whole or not at all."""

import concurrent.futures
import gzip
import itertools
import os
import shutil
import time
from unittest import mock

import pytest

from gpt_jax import config, errors
from gpt_jax.data import encoding, prepare, splits, store, workers
from tests import raised


class Corpus:
  """A file of text, prepared in a cache of its own."""

  def __init__(self, folder):
    self.path = folder / 'text.txt'
    self.spec = f'text:{self.path}'
    self.cache = folder / 'cache'
    self.path.write_text('hello\nworld\n')

  def prepare(self, tokenizer='byte', *, progress=None, **knobs):
    knobs = {'source': self.spec, 'processes': 1, 'cache_dir': str(self.cache), **knobs}
    data = config.DataConfig(tokenizer=tokenizer, **knobs)
    return prepare.prepare(data, progress=progress)


@pytest.fixture
def corpus(tmp_path):
  return Corpus(tmp_path)


def _tokens(prepared):
  return [source.tokens.read(0, len(source.tokens)).tolist() for source in prepared.sources]


def _text(prepared):
  return [prepared.tokenizer.decode(tokens) for tokens in _tokens(prepared)]


@pytest.mark.parametrize('kind', ['char', 'byte', 'word', 'gpt2'])
def test_text_is_prepared_once(corpus, kind, request, monkeypatch):
  if kind == 'gpt2':
    request.getfixturevalue('vocabulary')
  first = corpus.prepare(kind, min_frequency=1)
  assert first.tokenizer.kind == kind and first.new_stores == first.sources
  (text,) = _text(first)
  assert text.removesuffix('<|endoftext|>').split() == ['hello', 'world']
  monkeypatch.setattr(workers.Job, 'map', None)
  again = corpus.prepare(kind, min_frequency=1)
  assert again.tokenizer.hash == first.tokenizer.hash and not again.new_stores
  assert _tokens(again) == _tokens(first)


def test_text_that_changed_gets_a_store_of_its_own(corpus):
  old = corpus.prepare()
  corpus.path.write_text('other words\n')
  new = corpus.prepare()
  assert _text(new) == ['other words\n']
  assert new.sources[0].directory != old.sources[0].directory
  old.verify()


@pytest.mark.parametrize(
  ('knobs', 'stores'),
  [
    ({'tokenizer': 'char'}, 2),
    ({'special_tokens': 'bos'}, 2),
    ({'invalid_utf8': 'replace'}, 2),
    ({'tokenizer': 'word', 'min_frequency': 1}, 2),
    ({'chunks': 'packed'}, 1),
    ({'split': 'document'}, 1),
    ({'seed': 1}, 1),
  ],
)
def test_what_decides_the_tokens_decides_the_store(corpus, knobs, stores):
  folders = {
    prepared.sources[0].directory for prepared in (corpus.prepare(**knobs), corpus.prepare())
  }
  assert len(folders) == len(list(corpus.cache.iterdir())) == stores


def test_another_format_gets_a_store_of_its_own(corpus, monkeypatch):
  old = corpus.prepare().sources[0].directory
  monkeypatch.setattr(store, 'FORMAT_VERSION', store.FORMAT_VERSION + 1)
  assert corpus.prepare().sources[0].directory != old


def test_a_damaged_store_is_not_used(corpus):
  (kept,) = corpus.prepare().sources
  (kept.directory / 'tokens-00000.bin').write_bytes(b'')
  assert raised.user_error(corpus.prepare).key == str(kept.directory / 'tokens-00000.bin')


def test_any_number_of_processes_and_threads_writes_the_same(prepare_parts, tmp_path, monkeypatch):
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 30)
  parts = [[f'document {i} of part {part}' for i in range(part)] for part in range(6)]
  found = []
  for name, worth, processes in [('one', 1 << 20, 1), ('threads', 1 << 20, 3), ('processes', 1, 2)]:
    monkeypatch.setattr(workers, '_PROCESS_BYTES', worth)
    prepared = prepare_parts(parts, tmp_path / name, tokenizer='word', processes=processes)
    (folder,) = (tmp_path / name).iterdir()
    found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    prepared.verify()
  assert found[0] == found[1] == found[2]
  assert {path for path in found[0] if '00000' in path} == set(), 'part 0 has no text'


@pytest.mark.parametrize('calls', [0, 3, 5])
def test_a_stop_request_leaves_nothing_behind(prepare_parts, tmp_path, calls):
  parts = [[f'part {i}'] for i in range(3)]
  stop = mock.Mock(side_effect=[None] * calls + [errors.Stopped])
  with pytest.raises(errors.Stopped):
    prepare_parts(parts, tmp_path, progress=stop)
  assert not list(tmp_path.iterdir())
  prepare_parts(parts, tmp_path).verify()


def test_a_worker_that_fails_leaves_nothing_behind(prepare_parts, tmp_path, monkeypatch):
  monkeypatch.setattr(workers, '_PROCESS_BYTES', 1)
  error = raised.user_error(prepare_parts, [['good'], [b'b\xffd'], ['good']], tmp_path, processes=2)
  assert error.key == 'part 1 document 0'
  assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_when_it_is_old(corpus):
  (kept,) = corpus.prepare().sources
  left = [kept.directory.with_name(f'.{kept.directory.name}.{age}') for age in ('old', 'new')]
  for folder in left:
    shutil.copytree(kept.directory, folder)
  shutil.rmtree(kept.directory)
  for path in (left[0], *left[0].iterdir()):
    os.utime(path, (time.time() - 7200,) * 2)
  os.utime(left[1], (time.time() - 7200,) * 2)  # but not its files
  assert _text(corpus.prepare()) == ['hello\nworld\n']
  assert set(corpus.cache.iterdir()) == {kept.directory, left[1]}


def test_one_that_comes_second_takes_the_store_of_the_first(corpus):
  def other(*_):
    if not corpus.cache.exists():
      corpus.prepare('char')

  prepared = corpus.prepare('char', progress=other)
  assert _text(prepared) == ['hello\nworld\n']
  assert list(corpus.cache.iterdir()) == [prepared.sources[0].directory]


def test_several_at_once_all_get_the_store(corpus):
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = [future.result() for future in [pool.submit(corpus.prepare, 'char') for _ in range(4)]]
  for prepared in found:
    prepared.verify()
  assert len({repr(_tokens(prepared)) for prepared in found}) == 1
  assert len(list(corpus.cache.iterdir())) == 1


@pytest.mark.parametrize('kind', ['char', 'byte'])
def test_a_source_that_changes_while_it_is_read_is_not_kept(corpus, kind):
  error = raised.user_error(
    corpus.prepare, kind, progress=lambda *_: corpus.path.write_text('hello\nworld\nhello\n')
  )
  assert error.key == 'data.source' and 'changed' in str(error)
  assert not list(corpus.cache.iterdir())


def test_a_source_without_text_is_reported(prepare_parts, tmp_path):
  assert raised.user_error(prepare_parts, [['', ''], []], tmp_path).key == 'data.source'
  assert not list(tmp_path.iterdir())


def test_progress_reaches_the_total_and_never_exceeds_it(corpus, monkeypatch):
  """A compressed file has more characters than bytes."""
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 100)
  path = corpus.path.with_name('text.jsonl.gz')
  path.write_bytes(gzip.compress(b'{"text": "many words of text"}\n' * 900))
  seen: list = []
  corpus.prepare('char', source=f'jsonl:{path}', progress=lambda *args: seen.append(args))
  assert len({phase for phase, _, _ in seen}) == 2 and len(seen) > 100
  for _, reports in itertools.groupby(seen, lambda args: args[0]):
    done = [report[1] for report in reports]
    assert done == sorted(done) and done[0] == 0 and done[-1] == path.stat().st_size


def test_all_sources_are_verified(corpus):
  other = corpus.path.with_name('other.txt')
  other.write_text('xyz')
  spec = f'{corpus.spec} + text:{other}'
  prepared = corpus.prepare(source=spec)
  seen: list = []
  prepared.verify(progress=lambda *args: seen.append(args[1:]))
  total = sum(source.tokens.nbytes for source in prepared.sources)
  assert seen == [(prepared.sources[0].tokens.nbytes, total), (total, total)]
  with pytest.raises(errors.Stopped):
    prepared.verify(progress=mock.Mock(side_effect=errors.Stopped))
  for source in prepared.sources:
    path = source.directory / 'tokens-00000.bin'
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert raised.user_error(corpus.prepare(source=spec).verify).key == str(path)
    path.write_bytes(data)


def test_invalid_utf8_is_refused_or_counted(prepare_parts, tmp_path):
  parts = [[b'good', b'b\xffd\xfe'], [b'\xc3']]
  assert raised.user_error(prepare_parts, parts, tmp_path).key == 'part 0 document 1'
  prepared = prepare_parts(parts, tmp_path, invalid_utf8='replace')
  assert prepared.sources[0].manifest.invalid_utf8 == 3
  assert _text(prepared) == ['goodb\ufffdd\ufffd\ufffd']


@pytest.mark.parametrize('cause', ['a file', 'a full disk'])
def test_a_cache_that_cannot_be_written_is_reported(corpus, monkeypatch, cause):
  if cause == 'a file':
    corpus.cache.write_text('where the folder should be')
  else:
    full = mock.Mock(side_effect=OSError(28, 'No space left on device'))
    monkeypatch.setattr(encoding.atomic, 'write_bytes', full)
  error = raised.user_error(corpus.prepare)
  assert error.key == 'data.cache_dir' and str(corpus.cache) in str(error)
  assert corpus.cache.is_file() or not list(corpus.cache.iterdir())


def test_a_mixture_has_one_vocabulary_and_a_store_per_source(corpus):
  other = corpus.path.with_name('other.txt')
  other.write_text('xyz')
  spec = f'3*{corpus.spec} + 1*text:{other}'
  mixed = corpus.prepare('char', source=spec)
  assert _text(mixed) == ['hello\nworld\n', 'xyz']
  assert mixed.weights == (3, 1)
  assert mixed.tokenizer.vocab_size == len(set('hello\nworld\nxyz'))
  shutil.rmtree(mixed.sources[1].directory)
  again = corpus.prepare('char', source=spec)
  assert again.tokenizer.hash == mixed.tokenizer.hash
  assert again.new_stores == (again.sources[1],)
  assert corpus.prepare('char').tokenizer.vocab_size == len(set('hello\nworld\n'))
  assert corpus.prepare(source=f'{corpus.spec} + text:{other}').weights is None
  shared = corpus.prepare('byte').sources[0].directory
  assert corpus.prepare('byte', source=spec).sources[0].directory == shared


def test_the_cache_is_in_the_folder_of_caches(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  for given, folder in (('', 'xdg/gpt_jax/tokens'), ('~/mine', 'mine')):
    assert corpus.prepare(cache_dir=given).sources[0].directory.parent == tmp_path / folder


def test_the_split_of_tiny_shakespeare_is_the_known_one(shared_data, corpus, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(shared_data / 'tfds'))
  prepared = corpus.prepare('char', source='tfds:tiny_shakespeare')
  (source,) = prepared.sources
  assert prepared.tokenizer.vocab_size == 65
  for split, val, test in [('position', 111_540, 0), ('given', 55_770, 55_770)]:
    found = splits.make(source, config.DataConfig(split=split))
    assert [len(each) for each in found] == [1_003_854, val, test]
  assert prepared.tokenizer.decode(source.tokens.read(0, 14)) == 'First Citizen:'
