"""Text comes back from its ids, ids are stable, and a damaged description is refused.

GPT-2's vocabulary, words and Hugging Face's tokenizers have files of their own.
"""

import json
import string
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import base
from tests import raised

SPECIAL = base.SPECIAL_TOKENS
ALPHABET = string.ascii_letters + '\n é日😀'
LETTERS = st.sampled_from(string.ascii_letters)
texts = st.text(st.characters(exclude_categories=['Cs']))


def build(kind, *corpus, **knobs):
  data = config.DataConfig(tokenizer=kind, **knobs)
  return tokenizers.build(data, tokenizers.counts(data, corpus))


@pytest.fixture(params=['char', 'byte', 'gpt2', 'char bos eos pad unk', 'byte pad bos'])
def tokenizer(request):
  if request.param == 'gpt2':
    return request.getfixturevalue('gpt2')
  kind, _, special_tokens = request.param.partition(' ')
  return build(kind, ALPHABET, special_tokens=special_tokens)


@hypothesis.given(text=st.text(ALPHABET))
def test_text_of_the_alphabet_comes_back(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.ndim == 1 and ids.dtype == np.uint32
  assert (ids < tokenizer.vocab_size).all()
  assert tokenizer.eos_id not in ids.tolist()
  assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
  assert b''.join(map(tokenizer.token_bytes, ids.tolist())) == text.encode()


@hypothesis.given(text=texts)
def test_any_text_comes_back_from_bytes_and_from_gpt2(gpt2, text):
  for tokenizer in (build('byte'), gpt2):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@hypothesis.given(st.lists(texts, min_size=1), st.integers(0, 10))
def test_any_corpus_comes_back_from_its_own_characters(corpus, cut):
  char = build('char', *corpus)
  assert char.vocab_size == len(set(''.join(corpus)))
  assert all(char.decode(char.encode(text)) == text for text in corpus)
  # Counted in two parts or at once.
  data = config.DataConfig(tokenizer='char')
  whole = tokenizers.counts(data, [''.join(corpus)])
  assert whole == tokenizers.counts(data, corpus[:cut]) + tokenizers.counts(data, corpus[cut:])
  assert all(times == ''.join(corpus).count(c) for c, times in whole.items())


def test_characters_are_numbered_in_their_order():
  assert build('char', 'hello', ' world').encode(' dehlorw').tolist() == list(range(8))
  data = config.DataConfig(tokenizer='char')
  assert tokenizers.build(data, {'b': 1, 'a': 2}).encode('ab').tolist() == [0, 1]


@pytest.mark.parametrize('kind', ['byte', 'gpt2', 'gpt2:x', 'hf:x'])
def test_text_that_decides_nothing_is_not_read(kind):
  data, unread = config.DataConfig(tokenizer=kind), iter(['text'])
  assert not tokenizers.needs_counts(data) and not tokenizers.counts(data, unread)
  assert next(unread) == 'text'


class TestSpecialTokens:
  @hypothesis.given(asked=st.lists(st.sampled_from(SPECIAL)))
  def test_they_come_behind_the_characters_in_their_order(self, asked):
    char = build('char', 'ab', special_tokens=' '.join(asked))
    names = [name for name in SPECIAL if name in asked]
    assert char.vocab_size == 2 + len(names)
    for name in SPECIAL:
      number = 2 + names.index(name) if name in names else None
      assert getattr(char, f'{name}_id') == number
      if number is None:
        assert raised.user_error(char.token_id, name).key == 'token'
      else:
        assert char.token_id(name) == number

  def test_bytes_have_eos_before_the_others(self):
    byte = build('byte', special_tokens='pad eos bos')
    assert (byte.eos_id, byte.bos_id, byte.pad_id, byte.vocab_size) == (256, 257, 258, 259)
    assert build('byte', special_tokens='pad').pad_id == 257
    assert (build('byte').eos_id, build('byte').vocab_size) == (256, 257)

  def test_they_stand_for_no_text_and_unk_for_any_other_character(self):
    char = build('char', 'ab', special_tokens='bos eos pad unk')
    assert char.decode([2, 0, 3, 4, 1, 5, 4]) == 'ab\ufffd'
    assert char.encode('axb日').tolist() == [0, 5, 1, 5]
    byte = build('byte', special_tokens='bos pad mask')
    assert byte.decode([257, *'é'.encode(), 256, 259, 258]) == 'é'
    assert (byte.token_bytes(0xC3), byte.token_bytes(258)) == (b'\xc3', b'')


@hypothesis.given(a=st.text(ALPHABET + "'0. "), x=LETTERS, y=LETTERS, b=st.text(ALPHABET + "'0. "))
def test_tokens_do_not_cross_from_a_letter_to_a_space(tokenizer, a, x, y, b):
  a, b = a + x, ' ' + y + b
  if tokenizer.kind == 'char':
    a, b = (''.join(c for c in text if c in ALPHABET) for text in (a, b))
  assert tokenizer.cuts
  apart = [*tokenizer.encode(a).tolist(), *tokenizer.encode(b).tolist()]
  assert apart == tokenizer.encode(a + b).tolist()


def test_a_token_is_known_by_its_text(tokenizer):
  assert tokenizer.token_id('a') == tokenizer.encode('a').tolist()[0]
  for text in ('ab ab', '', '☃'):
    error = raised.user_error(tokenizer.token_id, text)
    assert error.key == 'token' and repr(text) in error.problem


@pytest.mark.parametrize('bad', [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer, bad):
  for use, argument in ((tokenizer.decode, [0, bad]), (tokenizer.token_bytes, bad)):
    error = raised.user_error(use, argument)
    assert error.key == 'ids' and str(bad) in error.problem


def test_lone_surrogates_do_not_break_encoding(tokenizer):
  if tokenizer.unk_id is not None:
    assert tokenizer.decode(tokenizer.encode('a\ud800')) == 'a\ufffd'
  elif tokenizer.kind == 'char':
    assert 'position 1' in raised.user_error(tokenizer.encode, 'a\ud800').problem
  else:
    assert tokenizer.decode(tokenizer.encode('a\ud800')) == 'a?'


class TestDescription:
  def test_a_tokenizer_comes_back_from_it(self, tokenizer):
    again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.hash == tokenizer.hash
    assert again.encode('a é').tolist() == tokenizer.encode('a é').tolist()

  def test_the_hash_distinguishes_tokenizers(self):
    specs = [('byte', s) for s in ('', 'bos', 'pad', 'bos pad')]
    specs += [('char', s) for s in ('', 'unk', 'eos')]
    hashes = [build(kind, 'ab', special_tokens=s).hash for kind, s in specs]
    assert len({*hashes, build('char', 'abc').hash}) == len(specs) + 1
    assert build('char', 'ba').hash == hashes[4]
    assert build('byte', special_tokens='eos pad bos').hash == hashes[3]

  def test_hashes_of_older_runs_still_hold(self):
    """They were written before there were special tokens."""
    for digest, description in (
      ('7da8b59d384076438bab9ae10dee36e1ed40155053c42c319918fb1eb47b641e', {'kind': 'byte'}),
      (
        '96f7a5dbc43d8bc66fa8564d94b367af4f11bbea04bd7d4574ac27cd578bfa55',
        {'kind': 'char', 'characters': '\n aé☃'},
      ),
    ):
      tokenizer = tokenizers.from_dict(description)
      assert tokenizer.to_dict() == description and tokenizer.hash == digest
      assert build(description['kind'], '☃é', 'a \n').hash == digest

  def test_what_the_config_decides_distinguishes_tokenizers(self, gpt2):
    def describe(kind, special_tokens='', **knobs):
      data = config.DataConfig(tokenizer=kind, special_tokens=special_tokens, **knobs)
      return json.dumps(tokenizers.description(data), sort_keys=True)

    specs = [(kind, special) for kind in ('char', 'byte', 'word') for special in ('', 'bos')]
    described = [describe(*spec) for spec in [*specs, ('char', 'eos unk'), ('gpt2', '')]]
    described.append(describe('word', min_frequency=3))
    assert len(set(described)) == len(described)
    assert describe('char', 'unk eos unk', min_frequency=9) == described[6]


_JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
  max_leaves=5,
)
_NO_NAMES: list[Any] = [5, 'eos', ['end'], [[]]]
_NO_TOKENS: list[Any] = [[], {'x': 'a'}, {'eos': ['a']}]
_VALID: list[dict[str, Any]] = [
  {'kind': 'char', 'characters': 'ab', 'special_tokens': ['eos']},
  {'kind': 'byte', 'special_tokens': ['pad']},
  {'kind': 'word', 'words': 'a b', 'special_tokens': ['eos', 'unk']},
  {'kind': 'gpt2', 'vocab_bpe_sha256': tokenizers.bpe.SHA256},
  {'kind': 'hf', 'json': '{}', 'special_tokens': {'eos': '</s>'}},
]


@pytest.mark.parametrize(
  'description',
  [
    *(None, [], 'byte', {}, {'kind': ['char']}, {'kind': 'word'}, {'kind': 'char'}),
    *({**valid, 'special_tokens': s} for valid in _VALID[:3] for s in _NO_NAMES),
    *({**_VALID[4], 'special_tokens': s} for s in _NO_TOKENS),
    {'kind': 'char', 'characters': ['a', 'b']},
    {'kind': 'word', 'words': ['a', 'b'], 'special_tokens': []},
    {'kind': 'gpt2', 'vocab_bpe_sha256': 'another'},
    {'kind': 'hf', 'json': {}, 'special_tokens': {}},
  ],
)
def test_a_damaged_description_is_refused(description):
  assert raised.user_error(tokenizers.from_dict, description).key == 'data.tokenizer'


@hypothesis.settings(max_examples=50)
@hypothesis.given(st.sampled_from(_VALID), st.data(), _JSON)
def test_any_description_gives_a_tokenizer_or_a_user_error(gpt2, valid, data, value):
  key = data.draw(st.sampled_from(sorted(valid)))
  for description in (value, {**valid, key: value}):
    try:
      tokenizers.from_dict(description).encode('')
    except errors.UserError as e:
      assert e.key == 'data.tokenizer'
