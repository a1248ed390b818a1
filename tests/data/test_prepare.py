"""Text is prepared once, again when it changes, and never half."""

import multiprocessing
import os

import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, store_writer


@pytest.fixture
def corpus(tmp_path):
  """A file of text and a function that prepares it in a cache of its own."""

  class Corpus:
    path = tmp_path / 'text.txt'
    cache = tmp_path / 'cache'

    def data(self, tokenizer='byte'):
      return config.DataConfig(
        source=f'text:{self.path}', tokenizer=tokenizer, cache_dir=str(self.cache)
      )

    def prepare(self, tokenizer='byte', *, progress=None, check=None):
      return prepare.prepare(self.data(tokenizer), progress=progress, check=check)

  Corpus.path.write_text('hello\nworld\n')
  return Corpus()


@pytest.mark.parametrize('kind', ['char', 'byte', 'gpt2'])
def test_text_is_prepared_once(corpus, kind, request, monkeypatch):
  if kind == 'gpt2':
    request.getfixturevalue('vocabulary')
  tokenizer, first = corpus.prepare(kind)
  assert tokenizer.kind == kind
  assert tokenizer.decode(first.tokens).removesuffix('<|endoftext|>') == 'hello\nworld\n'
  monkeypatch.setattr(store_writer, 'write', None)
  again, second = corpus.prepare(kind)
  assert again.hash == tokenizer.hash
  assert second.tokens.tolist() == first.tokens.tolist()


def test_text_that_changed_gets_a_store_of_its_own(corpus):
  _, old = corpus.prepare()
  corpus.path.write_text('other words\n')
  tokenizer, new = corpus.prepare()
  assert tokenizer.decode(new.tokens) == 'other words\n'
  assert new.directory != old.directory
  old.verify()


def test_each_tokenizer_has_a_store_of_its_own(corpus):
  assert corpus.prepare('char')[1].directory != corpus.prepare('byte')[1].directory
  assert len(list(corpus.cache.iterdir())) == 2


def test_a_damaged_store_is_not_used(corpus):
  _, kept = corpus.prepare()
  (kept.directory / 'tokens-00000.bin').write_bytes(b'')
  with pytest.raises(errors.UserError, match=f'Delete {kept.directory}'):
    corpus.prepare()


@pytest.mark.parametrize('kind', ['char', 'byte'])
@pytest.mark.parametrize('calls', [1, 3, 5])
def test_a_stop_leaves_nothing_behind(corpus, kind, calls):
  for i in range(3):
    corpus.path.with_name(f'{i}.txt').write_text('text')
  data = corpus.data(kind)
  data.source = f'text:{corpus.path.parent}/*.txt'
  left = calls if kind == 'char' else min(calls, 4)  # char reads the four documents twice

  def check():
    nonlocal left
    left -= 1
    if not left:
      raise errors.Stopped

  with pytest.raises(errors.Stopped):
    prepare.prepare(data, progress=None, check=check)
  assert not corpus.cache.exists() or not list(corpus.cache.iterdir())


def test_progress_ends_with_the_totals(corpus):
  seen = []
  _, kept = corpus.prepare(progress=lambda *counts: seen.append(counts))
  assert seen[-1] == (1, 12, 13) == (1, kept.manifest.characters, len(kept.tokens))


def test_a_cache_that_cannot_be_written_is_named(corpus):
  corpus.cache.write_text('a file where the folder would be')
  with pytest.raises(errors.UserError) as e:
    corpus.prepare()
  assert str(corpus.cache) in str(e.value) and '--config.data.cache_dir' in str(e.value)


def test_a_full_disk_is_named_and_leaves_nothing(corpus, monkeypatch):
  def full(file):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(store_writer, '_sync', full)
  with pytest.raises(errors.UserError, match='No space left on device.*cache_dir'):
    corpus.prepare()
  assert not list(corpus.cache.iterdir())


def _prepare_together(data, barrier, results):
  barrier.wait()
  _, kept = prepare.prepare(data, progress=None, check=None)
  kept.verify()
  results.put(kept.tokens.tolist())


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


def test_the_cache_is_where_caches_are(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert prepare.cache_folder('') == tmp_path / '.cache' / 'gpt_jax' / 'tokens'
  assert prepare.cache_folder('~/mine') == tmp_path / 'mine'
  monkeypatch.setenv('XDG_CACHE_HOME', os.path.join(tmp_path, 'xdg'))
  assert prepare.cache_folder('') == tmp_path / 'xdg' / 'gpt_jax' / 'tokens'


@pytest.mark.parametrize(
  ('num_train', 'num_val', 'enough'), [(9, 9, True), (8, 9, False), (9, 8, False)]
)
def test_each_side_needs_a_window(num_train, num_val, enough):
  def check():
    prepare.check_length(num_train=num_train, num_val=num_val, block_size=8)

  if enough:
    check()
  else:
    with pytest.raises(errors.UserError) as e:
      check()
    for word in (str(num_train), str(num_val), 'at least 9', 'model.block_size', 'val_fraction'):
      assert word in str(e.value)


def test_the_split_of_tiny_shakespeare_is_the_known_one(shared_data, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(shared_data / 'tfds'))
  data = config.DataConfig(
    source='tfds:tiny_shakespeare', tokenizer='char', cache_dir=str(tmp_path)
  )
  tokenizer, kept = prepare.prepare(data, progress=None, check=None)
  train, val = kept.split(data.val_fraction)
  assert (tokenizer.vocab_size, len(train), len(val)) == (65, 1_003_854, 111_540)
  assert tokenizer.decode(train[:14]) == 'First Citizen:'
