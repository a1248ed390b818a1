"""Words are split as a reader would, numbered by frequency, and come back up to their spaces."""

import json
import re
import string

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import base
from tests import raised

prose = st.text(string.ascii_letters[:4] + "0'’_ \n.,!?;:()-é")
letters = st.sampled_from(string.ascii_letters)


def build(*corpus, **knobs):
  data = config.DataConfig(tokenizer='word', **{'min_frequency': 1, **knobs})
  return tokenizers.build(data, tokenizers.counts(data, corpus))


def words(text):
  """How `text` is split."""
  word = build(text)
  return [word.decode([i]) for i in word.encode(text).tolist()]


@pytest.mark.parametrize(
  ('text', 'split'),
  [
    ("I don't know, 007!", ['I', "don't", 'know', ',', '007', '!']),
    ("the boys' 'best' film", ['the', 'boys', "'", "'", 'best', "'", 'film']),
    ('rock’n’roll...', ['rock’n’roll', '.', '.', '.']),
    ('well-made\t(a_b)\n', ['well', '-', 'made', '(', 'a', '_', 'b', ')']),
    ('Größe 映画<br />in<br>a<i>', ['Größe', '映画', 'in', 'a', '<', 'i', '>']),
    (' \n\u2003\x1f', []),
    ('a\ud800', ['a', '?']),
  ],
)
def test_text_is_split_into_words_and_punctuation(text, split):
  assert words(text) == split


def test_case_can_be_ignored():
  data = config.DataConfig(tokenizer='word', lowercase=True, min_frequency=2)
  tokenizer = tokenizers.build(data, tokenizers.counts(data, ['The cat', 'the CAT Ä', 'ä dog']))
  assert tokenizer.encode('THE Cat Ä dog').tolist() == [1, 0, 2, tokenizer.unk_id]
  assert tokenizer.decode([0, 1, 2]) == 'cat the ä'
  again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
  assert again.encode('THE').tolist() == [1] and again.hash == tokenizer.hash
  assert tokenizers.description(data) != tokenizers.description(config.DataConfig(tokenizer='word'))


@hypothesis.given(prose | st.text(st.characters()))
def test_words_come_back_and_only_space_is_lost(text):
  expected = re.sub(r'\s|<br ?/?>', '', text.encode('utf-8', 'replace').decode())
  assert ''.join(words(text)) == expected
  word = build(text)
  ids = word.encode(text).tolist()
  assert word.encode(word.decode(ids)).tolist() == ids


def test_decoded_text_is_spaced_as_prose():
  text = 'Well (he said), is it? No; it was: bad! The end.'
  word = build(text)
  assert word.decode(word.encode('\n' + text.replace(' ', '  \n'))) == text


def test_frequent_words_have_low_ids_and_ties_are_by_text():
  word = build('b a c b', 'c B b')
  assert [word.decode([i]) for i in range(word.vocab_size)] == ['b', 'c', 'B', 'a', '', '<unk>']


@hypothesis.given(st.lists(prose), st.randoms())
def test_the_vocabulary_does_not_depend_on_the_order_of_counting(corpus, random):
  data = config.DataConfig(tokenizer='word')
  shuffled = random.sample(corpus, len(corpus))
  part, rest = (tokenizers.counts(data, half) for half in (shuffled[::2], shuffled[1::2]))
  rest.update(part)
  assert rest == tokenizers.counts(data, corpus)
  assert tokenizers.build(data, rest).to_dict() == build(*corpus, min_frequency=2).to_dict()


@pytest.mark.parametrize('least', [1, 2, 3, 4])
def test_rare_words_are_unknown(least):
  word = build('a a a b', 'b c', min_frequency=least)
  kept = [times >= least for times in (3, 2, 1)]
  assert word.vocab_size == sum(kept) + 2
  assert [i != word.unk_id for i in word.encode('a b c').tolist()] == kept
  assert word.decode([word.unk_id, word.unk_id]) == '<unk> <unk>'
  assert set(word.encode('d').tolist()) == {word.unk_id}


@hypothesis.given(st.sets(st.sampled_from(base.SPECIAL_TOKENS)), st.sampled_from(['x y', '']))
def test_special_tokens_come_behind_the_words(asked, text):
  word = build(text, special_tokens=' '.join(asked))
  names = [n for n in base.SPECIAL_TOKENS if n in {*asked, 'eos', 'unk'}]
  count = len(text.split())
  assert word.vocab_size == count + len(names)
  assert [word.token_id(name) for name in names] == list(range(count, count + len(names)))
  silent = [word.token_id(name) for name in names if name != 'unk']
  assert word.decode([*silent, *word.encode(text).tolist(), *silent]) == text
  again = tokenizers.from_dict(json.loads(json.dumps(word.to_dict())))
  assert again.to_dict() == word.to_dict() and again.hash == word.hash
  assert again.encode('y x z').tolist() == word.encode('y x z').tolist()
  for unknown in ('X', 'x y'):
    assert raised.user_error(word.token_id, unknown).key == 'token'


@hypothesis.given(prose, letters, letters, prose)
def test_words_do_not_cross_from_a_letter_to_a_space(a, x, y, b):
  a, b = a + x, ' ' + y + b
  word = build(a, b)
  assert word.cuts
  assert word.encode(a + b).tolist() == [*word.encode(a).tolist(), *word.encode(b).tolist()]
  assert words(a + b) == words(a) + words(b)
