"""Words are split as a reader would, numbered by frequency, and come back up to their spaces."""

import itertools
import json
import re
import string

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import base

texts = st.text(st.characters())
prose = st.text(string.ascii_letters[:4] + "0'’_ \n.,!?;:()-é")


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
    ('Größe 映画<br />', ['Größe', '映画', '<', 'br', '/', '>']),
    ('', []),
    (' \n\u2003\x1f', []),
  ],
)
def test_text_is_split_into_words_and_punctuation(text, split):
  assert words(text) == split


@hypothesis.given(prose | texts)
def test_nothing_but_space_is_lost(text):
  expected = re.sub(r'\s', '', text.encode('utf-8', 'replace').decode())
  assert ''.join(words(text)) == expected


@hypothesis.given(prose | texts)
def test_decoded_words_are_the_same_words(text):
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
  assert [i != word.unknown for i in word.encode('a b c').tolist()] == kept
  assert not kept[2] or word.decode(word.encode('c')) == 'c'
  assert word.decode([word.unknown, word.unknown]) == '<unk> <unk>'
  assert set(word.encode('d').tolist()) == {word.unknown}


@pytest.mark.parametrize(
  'asked', [c for n in range(5) for c in itertools.combinations(base.SPECIAL_TOKENS, n)]
)
def test_special_tokens_come_behind_the_words(asked):
  word = build('x y', special_tokens=' '.join(reversed(asked)))
  names = [n for n in base.SPECIAL_TOKENS if n in {*asked, 'eos', 'unk'}]
  assert word.vocab_size == 2 + len(names)
  assert [word.token_id(name) for name in names] == list(range(2, 2 + len(names)))
  silent = [word.token_id(name) for name in names if name != 'unk']
  assert word.decode([*silent, 0, *silent, 1, *silent]) == 'x y'
  again = tokenizers.from_dict(json.loads(json.dumps(word.to_dict())))
  assert again.to_dict() == word.to_dict() and again.hash == word.hash
  assert again.encode('y x z').tolist() == word.encode('y x z').tolist() == [1, 0, word.unknown]


def test_a_vocabulary_may_be_empty():
  word = tokenizers.from_dict(build().to_dict())
  assert word.vocab_size == 2
  assert word.encode('a').tolist() == [word.unknown] and word.encode('').tolist() == []


def test_lone_surrogates_are_question_marks():
  word = build('a \ud800')
  assert word.decode(word.encode('a\ud800')) == 'a?'
  assert json.dumps(word.to_dict(), ensure_ascii=False).encode()


letters = st.sampled_from(string.ascii_letters)


@hypothesis.given(prose, letters, letters, prose)
def test_words_do_not_cross_from_a_letter_to_a_space(a, x, y, b):
  a, b = a + x, ' ' + y + b
  word = build(a, b)
  assert word.cuts
  assert word.encode(a + b).tolist() == [*word.encode(a).tolist(), *word.encode(b).tolist()]
  assert words(a + b) == words(a) + words(b)


def test_a_token_is_known_by_its_text():
  word = build('the end.', special_tokens='pad')
  assert word.token_id('.') == word.encode('.')[0]
  assert word.token_id('pad') == word.padding
  with pytest.raises(errors.UserError, match="'The' is not in the vocabulary of the word"):
    word.token_id('The')
  with pytest.raises(errors.UserError, match="'the end' is 2 tokens"):
    word.token_id('the end')
  with pytest.raises(errors.UserError, match='5 is outside the vocabulary'):
    build('the end.').decode([5])
