"""Text is prepared once, again when it changes, whole or not at all, and on where it was."""

import contextlib
import fcntl
import gzip
import itertools
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, store
from gpt_jax.data.store import encoding, workers, writer


@pytest.fixture
def corpus(tmp_path):
  """A file of text and a function that prepares it in a cache of its own."""

  class Corpus:
    path = tmp_path / 'text.txt'
    cache = tmp_path / 'cache'

    def data(self, tokenizer='byte', **knobs):
      knobs = {'source': f'text:{self.path}', 'processes': 1, **knobs}
      return config.DataConfig(tokenizer=tokenizer, cache_dir=str(self.cache), **knobs)

    def prepare(self, tokenizer='byte', *, progress=None, check=None, **knobs):
      return prepare.prepare(self.data(tokenizer, **knobs), progress=progress, check=check)

  Corpus.path.write_text('hello\nworld\n')
  return Corpus()


def _tokens(prepared):
  return [source.tokens.read(0, len(source.tokens)).tolist() for source in prepared.sources]


def _text(prepared):
  return [prepared.tokenizer.decode(tokens) for tokens in _tokens(prepared)]


@pytest.mark.parametrize('kind', ['char', 'byte', 'word', 'gpt2'])
def test_text_is_prepared_once(corpus, kind, request, monkeypatch):
  if kind == 'gpt2':
    request.getfixturevalue('vocabulary')
  first = corpus.prepare(kind, min_frequency=1)
  assert first.tokenizer.kind == kind
  (text,) = _text(first)
  assert text.removesuffix('<|endoftext|>').split() == ['hello', 'world']
  monkeypatch.setattr(workers, 'run', None)
  again = corpus.prepare(kind, min_frequency=1)
  assert again.tokenizer.hash == first.tokenizer.hash
  assert _tokens(again) == _tokens(first)


def test_text_that_changed_gets_a_store_of_its_own(corpus):
  old = corpus.prepare()
  corpus.path.write_text('other words\n')
  new = corpus.prepare()
  assert _text(new) == ['other words\n']
  assert new.sources[0].directory != old.sources[0].directory
  old.verify(None)


@pytest.mark.parametrize(
  'knobs',
  [
    {'tokenizer': 'char'},
    {'special_tokens': 'bos'},
    {'invalid_utf8': 'replace'},
    {'tokenizer': 'word', 'min_frequency': 1},
  ],
)
def test_what_decides_the_tokens_decides_the_store(corpus, knobs):
  assert corpus.prepare(**knobs).sources[0].directory != corpus.prepare().sources[0].directory
  assert len(list(corpus.cache.iterdir())) == 2


@pytest.mark.parametrize('knobs', [{'chunks': 'packed'}, {'split': 'document'}, {'seed': 1}])
def test_what_does_not_decide_the_tokens_does_not_decide_the_store(corpus, knobs):
  assert corpus.prepare(**knobs).sources[0].directory == corpus.prepare().sources[0].directory


def test_another_format_gets_a_store_of_its_own(corpus, monkeypatch):
  old = corpus.prepare().sources[0].directory
  monkeypatch.setattr(store, 'FORMAT_VERSION', store.FORMAT_VERSION + 1)
  assert corpus.prepare().sources[0].directory != old


def test_a_damaged_store_is_not_used(corpus):
  (kept,) = corpus.prepare().sources
  (kept.directory / 'tokens-00000.bin').write_bytes(b'')
  with pytest.raises(errors.UserError, match=f'Delete {kept.directory}'):
    corpus.prepare()


@pytest.mark.parametrize(('kind', 'processes'), [('word', 2), ('byte', 3)])
def test_any_number_of_processes_writes_the_same(
  prepare_parts, tmp_path, monkeypatch, kind, processes
):
  monkeypatch.setattr(prepare, '_PROCESS_BYTES', 1)
  parts = [[f'document {i} of part {part}' for i in range(part)] for part in range(6)]
  one = prepare_parts(parts, tmp_path / '1', tokenizer=kind)
  more = prepare_parts(parts, tmp_path / 'n', tokenizer=kind, processes=processes)
  files = [
    {path.name: path.read_bytes() for path in prepared.sources[0].directory.iterdir()}
    for prepared in (one, more)
  ]
  assert files[0] == files[1]


def test_threads_in_a_process_write_the_same(prepare_parts, tmp_path):
  parts = [[f'document {i}' for i in range(9)]]
  one, more = (prepare_parts(parts, tmp_path / str(n), processes=n) for n in (1, 3))
  assert _tokens(one) == _tokens(more)


@pytest.mark.parametrize(('worth_while', 'processes'), [(1, 3), (30, 2), (1 << 20, 1)])
def test_processes_are_as_many_as_are_worth_while(
  prepare_parts, tmp_path, monkeypatch, worth_while, processes
):
  monkeypatch.setattr(prepare, '_PROCESS_BYTES', worth_while)
  seen = []

  def run(work, tasks, *, processes, check):
    seen.append(processes)
    return iter(())

  monkeypatch.setattr(workers, 'run', run)
  with pytest.raises(errors.UserError):
    prepare_parts([['twenty characters...']] * 3, tmp_path, processes=3)
  assert seen == [processes]


def test_a_source_of_which_a_little_is_read_at_a_time_is_counted_once(
  prepare_parts, tmp_path, monkeypatch
):
  parts = [['one two', 'two three', 'three three']]
  whole = prepare_parts(parts, tmp_path / 'a', tokenizer='word')
  monkeypatch.setattr(prepare, '_COUNT_CHARACTERS', 1)
  again = prepare_parts(parts, tmp_path / 'b', tokenizer='word')
  assert again.tokenizer.hash == whole.tokenizer.hash


def test_what_was_written_before_a_stop_is_used_again(prepare_parts, tmp_path, monkeypatch):
  parts = [[f'part {i}' + '.' * i] for i in range(5)]
  calls = itertools.count()

  def stop():
    if next(calls) == 7:
      raise errors.Stopped('enough')

  with pytest.raises(errors.Stopped):
    prepare_parts(parts, tmp_path, check=stop, tokenizer='char')
  (folder,) = tmp_path.iterdir()
  assert folder.name.startswith('.')
  names = [f'{kind}-0000{i}.bin' for kind in ('documents', 'tokens') for i in range(2)]
  assert sorted(path.name for path in folder.iterdir()) == sorted([*names, 'parts'])
  (folder / '.tokens-00002.bin.123').write_bytes(b'left by one that was killed')
  with pytest.raises(errors.UserError):
    store.Store.open(folder)
  written = []
  encode = writer.write_part

  def write_part(task):
    written.append(task.number)
    return encode(task)

  monkeypatch.setattr(writer, 'write_part', write_part)
  progress: list = []
  prepared = prepare_parts(
    parts, tmp_path, tokenizer='char', progress=lambda *args: progress.append(args)
  )
  assert written == [2, 3, 4]
  assert {what for what, *_ in progress} == {'encoding text:made.txt'}, 'counted once'
  assert [done for _, done, _, _ in progress] == [13, 21, 21, 30, 30, 40, 40]
  prepared.verify(None)
  (directory,) = tmp_path.iterdir()
  assert len(list(directory.iterdir())) == 11
  whole = prepare_parts(parts, tmp_path / 'other', tokenizer='char')
  assert _tokens(prepared) == _tokens(whole)
  assert prepared.sources[0].manifest == whole.sources[0].manifest


def test_what_has_a_name_is_on_the_disk(prepare_parts, tmp_path, monkeypatch):
  synced = {}
  monkeypatch.setattr(os, 'fsync', lambda fd: synced.update({os.fstat(fd).st_ino: _named(fd)}))
  (kept,) = prepare_parts([['one'], ['two']], tmp_path).sources
  for path in kept.directory.iterdir():
    name, size = synced[path.stat().st_ino]
    assert name.startswith(f'.{path.name}.') and size == path.stat().st_size
  assert kept.directory.stat().st_ino in synced and tmp_path.stat().st_ino in synced


def _named(descriptor):
  link = os.readlink(f'/proc/self/fd/{descriptor}')
  return pathlib.Path(link).name, os.fstat(descriptor).st_size


def test_a_part_without_text_leaves_no_file(prepare_parts, tmp_path):
  (kept,) = prepare_parts([['one'], ['', ''], [], ['two']], tmp_path).sources
  kept.verify(None)
  files = {f'{kind}-0000{i}.bin' for kind in ('tokens', 'documents') for i in (0, 3)}
  assert {path.name for path in kept.directory.iterdir()} == {*files, store.MANIFEST}


def test_one_that_comes_second_leaves_the_store_of_the_first(corpus):
  (kept,) = corpus.prepare().sources
  before = {path: path.stat().st_mtime_ns for path in corpus.cache.rglob('*')}
  folder = corpus.cache / '.second.part'
  (folder / 'parts').mkdir(parents=True)
  writer.publish(folder, kept.directory, kept.manifest)
  assert {path: path.stat().st_mtime_ns for path in corpus.cache.rglob('*')} == before
  (folder / 'parts').mkdir(parents=True)
  (corpus.cache / 'file').write_text('in the way')
  with pytest.raises(OSError):
    writer.publish(folder, corpus.cache / 'file', kept.manifest)


def test_one_that_finds_the_store_when_it_has_counted_takes_it(corpus):
  def other(*_):
    if not corpus.cache.exists():
      corpus.prepare('char')

  prepared = corpus.prepare('char', progress=other)
  assert _text(prepared) == ['hello\nworld\n']
  assert list(corpus.cache.iterdir()) == [prepared.sources[0].directory]
  assert len(list(prepared.sources[0].directory.iterdir())) == 3


@pytest.fixture
def other_writer(corpus):
  """The folder of another process that is encoding the corpus, and what it holds to tell so."""
  with pytest.raises(errors.Stopped):
    corpus.prepare(check=_stop)
  (folder,) = corpus.cache.iterdir()
  descriptor = os.open(folder, os.O_RDONLY)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  yield folder, descriptor
  with contextlib.suppress(OSError):
    os.close(descriptor)


def _stop():
  raise errors.Stopped('enough')


def test_one_that_waits_for_another_says_so_and_can_be_stopped(corpus, other_writer, capsys):
  calls = itertools.count()
  with pytest.raises(errors.Stopped):
    corpus.prepare(check=lambda: next(calls) == 2 and _stop())
  assert capsys.readouterr().err.count('waiting for it') == 1


def test_one_that_waited_for_another_that_gave_up_goes_on(corpus, other_writer):
  folder, descriptor = other_writer

  def give_up():
    if next(calls) == 1:
      shutil.rmtree(folder)
      os.close(descriptor)

  calls = itertools.count()
  prepared = corpus.prepare(check=give_up)
  assert next(calls) > 2 and _text(prepared) == ['hello\nworld\n']


_KILLED = """
import sys
from gpt_jax import config
from gpt_jax.data import prepare
data = config.DataConfig(source=sys.argv[1], tokenizer='byte', cache_dir=sys.argv[2], processes=2)
prepare.prepare(data, progress=lambda *_: print('going', flush=True), check=None)
"""


def test_a_kill_leaves_nothing_that_counts_and_the_rest_goes_on(corpus):
  for i in range(40):
    corpus.path.with_name(f'{i:02}.txt').write_text(f'file {i}\n' * 60_000)
  spec = f'text:{corpus.path.parent}/*.txt'
  process = subprocess.Popen(
    [sys.executable, '-c', _KILLED, spec, str(corpus.cache)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'going\n'
  process.kill()
  process.wait()
  assert [path.name[0] for path in corpus.cache.iterdir()] == ['.']
  prepared = corpus.prepare(source=spec)
  prepared.verify(None)
  expected = ''.join(path.read_text() for path in sorted(corpus.path.parent.glob('*.txt')))
  assert _text(prepared) == [expected]
  (directory,) = corpus.cache.iterdir()
  assert directory.name[0] != '.'
  files = 2 * len(prepared.sources[0].manifest.shards) + 1
  assert len(list(directory.iterdir())) == files, 'what was written at the kill is left'


def test_a_signal_to_the_whole_group_is_for_the_parent_to_tell(corpus):
  """As `timeout` and Ctrl-C send it: the processes that end of it are no accident."""
  for i in range(40):
    corpus.path.with_name(f'{i:02}.txt').write_text(f'file {i}\n' * 60_000)
  config_file = corpus.path.with_name('mine.py')
  config_file.write_text('from gpt_jax import config\nget_config = config.Config\n')
  for wait, number in [(0.0, signal.SIGTERM), (0.2, signal.SIGTERM), (0.0, signal.SIGINT)]:
    shutil.rmtree(corpus.cache, ignore_errors=True)
    process = subprocess.Popen(
      [
        sys.executable,
        *('-m', 'gpt_jax.prepare', f'--config={config_file}', '--config.data.processes=2'),
        f'--config.data.source=text:{corpus.path.parent}/*.txt',
        *('--config.data.tokenizer=byte', f'--config.data.cache_dir={corpus.cache}'),
      ],
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    while not corpus.cache.exists():
      time.sleep(0.01)
    time.sleep(wait)
    os.killpg(process.pid, number)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 75, messages
    assert 'run the same command again' in messages


def test_a_program_without_a_guard_is_told_so(corpus):
  """Each process that it starts runs all of it, and must not wait for its parent."""
  for i in range(2):
    corpus.path.with_name(f'{i:02}.txt').write_text(f'file {i}\n' * 600_000)
  program = corpus.path.with_name('program.py')
  program.write_text(_KILLED)
  done = subprocess.run(
    [sys.executable, str(program), f'text:{corpus.path.parent}/*.txt', str(corpus.cache)],
    env={**os.environ, 'PYTHONPATH': str(pathlib.Path(prepare.__file__).parents[2])},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert 'runs the whole program again' in done.stderr
  assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]


def test_the_processes_of_one_that_was_killed_end_too(corpus):
  for i in range(40):
    corpus.path.with_name(f'{i:02}.txt').write_text(f'file {i}\n' * 60_000)
  process = subprocess.Popen(
    [sys.executable, '-c', _KILLED, f'text:{corpus.path.parent}/*.txt', str(corpus.cache)],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.stdout is not None
  process.stdout.readline()
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  deadline = time.monotonic() + 30
  while _session_members(process.pid):
    assert time.monotonic() < deadline, 'processes are left'
    time.sleep(0.05)


def _session_members(session):
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(fields[3]) == session and fields[0] != 'Z':
      found.append(path)
  return found


@pytest.mark.parametrize('kind', ['char', 'byte'])
def test_a_source_that_changes_while_it_is_read_is_not_kept(corpus, kind):
  def change(*_):
    corpus.path.write_text('hello\nworld\nhello\n')

  with pytest.raises(errors.UserError, match='changed while it was read'):
    corpus.prepare(kind, progress=change)
  assert not list(corpus.cache.iterdir())


def test_text_without_a_token_is_named_and_leaves_nothing(prepare_parts, tmp_path):
  with pytest.raises(errors.UserError, match='text:made.txt is empty'):
    prepare_parts([['', ''], []], tmp_path)
  assert not list(tmp_path.iterdir())


def test_progress_ends_with_the_totals(prepare_parts, tmp_path):
  seen = []
  prepared = prepare_parts(
    [['abc', ''], ['de']], tmp_path, progress=lambda *args: seen.append(args)
  )
  manifest = prepared.sources[0].manifest
  counts = [args[3] for args in seen]
  assert sum(c.documents for c in counts) == manifest.documents == 2
  assert sum(c.tokens for c in counts) == manifest.tokens == 7
  assert sum(c.empty_documents for c in counts) == 1
  assert seen[-1][1] == seen[-1][2] == 5
  assert all(earlier[1] <= later[1] for earlier, later in itertools.pairwise(seen))


def test_progress_never_goes_beyond_the_total(corpus, monkeypatch):
  """A compressed file has more characters than bytes."""
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 100)
  path = corpus.path.with_name('text.jsonl.gz')
  path.write_bytes(gzip.compress(b'{"text": "many words of text"}\n' * 900))
  seen: list = []
  prepared = corpus.prepare(source=f'jsonl:{path}', progress=lambda *args: seen.append(args))
  assert len(seen) > 100 and all(done <= total for _, done, total, _ in seen)
  assert sum(counts.tokens for *_, counts in seen) == prepared.sources[0].manifest.tokens


def test_all_sources_are_verified(corpus):
  other = corpus.path.with_name('other.txt')
  other.write_text('xyz')
  spec = f'text:{corpus.path} + text:{other}'
  prepared = corpus.prepare(source=spec)
  seen: list = []
  prepared.verify(lambda *args: seen.append(args))
  total = sum(source.num_bytes for source in prepared.sources)
  assert [args[1:3] for args in seen] == [(prepared.sources[0].num_bytes, total), (total, total)]
  for source in prepared.sources:
    path = source.directory / 'tokens-00000.bin'
    sound = path.read_bytes()
    path.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    with pytest.raises(errors.UserError, match=f'Delete {source.directory}'):
      corpus.prepare(source=spec).verify(None)
    path.write_bytes(sound)


def test_what_is_not_utf8_is_refused_or_counted(prepare_parts, tmp_path):
  parts = [[b'good', b'b\xffd\xfe'], [b'\xc3']]
  with pytest.raises(errors.UserError, match='part 0 document 1.*invalid_utf8=replace'):
    prepare_parts(parts, tmp_path)
  prepared = prepare_parts(parts, tmp_path, invalid_utf8='replace')
  assert prepared.sources[0].manifest.invalid_utf8 == 3
  assert '3 places that are not UTF-8' in prepared.sources[0].summary()
  assert _text(prepared) == ['goodb\ufffdd\ufffd\ufffd']


def test_a_cache_that_cannot_be_written_is_named(corpus):
  corpus.cache.write_text('a file where the folder would be')
  with pytest.raises(errors.UserError) as e:
    corpus.prepare()
  assert str(corpus.cache) in str(e.value) and '--config.data.cache_dir' in str(e.value)


_FULL = """
import resource, sys
from gpt_jax import config, errors
from gpt_jax.data import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
data = config.DataConfig(
  source=sys.argv[1], tokenizer='byte', cache_dir=sys.argv[2], processes=int(sys.argv[3]))
try:
  prepare.prepare(data, progress=None, check=None)
except errors.UserError as e:
  print(e)
"""


@pytest.mark.parametrize('processes', [1, 2])
def test_a_disk_that_takes_no_more_is_named_and_what_was_written_is_used(corpus, processes):
  """The limit of a file's size stands for a full disk: the write in the middle fails."""
  text = 'text ' * 900_000
  corpus.path.write_text(text)
  corpus.path.with_name('more.txt').write_text(text)
  spec = f'text:{corpus.path.parent}/*.txt'
  done = subprocess.run(
    [sys.executable, '-c', _FULL, spec, str(corpus.cache), str(processes)],
    capture_output=True,
    text=True,
  )
  assert 'File too large' in done.stdout and '--config.data.cache_dir' in done.stdout, done.stderr
  assert [path.name[0] for path in corpus.cache.iterdir()] == ['.']
  prepared = corpus.prepare(source=spec)
  prepared.verify(None)
  assert _text(prepared) == [text * 2]
  assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def _prepare_together(data, barrier, results):
  barrier.wait()
  prepared = prepare.prepare(data, progress=None, check=None)
  prepared.verify(None)
  results.put(_tokens(prepared))


def test_two_processes_at_once_both_get_the_store(corpus):
  context = multiprocessing.get_context('spawn')
  barrier, results = context.Barrier(2), context.Queue()
  processes = [
    context.Process(target=_prepare_together, args=(corpus.data('char'), barrier, results))
    for _ in range(2)
  ]
  for process in processes:
    process.start()
  tokens = [results.get(timeout=60) for _ in processes]
  for process in processes:
    process.join()
  assert [process.exitcode for process in processes] == [0, 0]
  assert tokens[0] == tokens[1]
  assert len(list(corpus.cache.iterdir())) == 1


def test_a_mixture_has_one_vocabulary_and_a_store_a_source(corpus):
  other = corpus.path.with_name('other.txt')
  other.write_text('xyz')
  spec = f'3*text:{corpus.path} + 1*text:{other}'
  mixed = corpus.prepare('char', source=spec)
  assert _text(mixed) == ['hello\nworld\n', 'xyz']
  assert mixed.weights == (3, 1)
  assert mixed.tokenizer.vocab_size == len(set('hello\nworld\nxyz'))
  again = mixed.sources[1].directory
  shutil.rmtree(again)
  remade = corpus.prepare('char', source=spec)
  assert remade.tokenizer.hash == mixed.tokenizer.hash and again.exists()
  assert set(remade.content_hashes()) == {f'text:{corpus.path}', f'text:{other}'}
  alone = corpus.prepare('char')
  assert alone.tokenizer.vocab_size == len(set('hello\nworld\n'))
  assert corpus.prepare(source=f'text:{corpus.path} + text:{other}').weights is None
  shared = corpus.prepare('byte').sources[0].directory
  assert corpus.prepare('byte', source=spec).sources[0].directory == shared


def test_the_cache_is_where_caches_are(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert prepare.cache_folder('') == tmp_path / '.cache' / 'gpt_jax' / 'tokens'
  assert prepare.cache_folder('~/mine') == tmp_path / 'mine'
  monkeypatch.setenv('XDG_CACHE_HOME', os.path.join(tmp_path, 'xdg'))
  assert prepare.cache_folder('') == tmp_path / 'xdg' / 'gpt_jax' / 'tokens'


def test_the_split_of_tiny_shakespeare_is_the_known_one(shared_data, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(shared_data / 'tfds'))
  data = config.DataConfig(
    source='tfds:tiny_shakespeare', tokenizer='char', cache_dir=str(tmp_path), processes=1
  )
  prepared = prepare.prepare(data, progress=None, check=None)
  (corpus,) = prepared.tokenized()
  assert prepared.tokenizer.vocab_size == 65
  for split, val in [('position', 111_540), ('given', 55_770)]:
    data.split = split
    sizes = [int((side.spans[:, 1] - side.spans[:, 0]).sum()) for side in corpus.sides(data)]
    assert sizes == [1_003_854, val]
  assert prepared.tokenizer.decode(corpus.tokens.read(0, 14)) == 'First Citizen:'
