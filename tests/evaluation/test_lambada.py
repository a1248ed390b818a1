"""LAMBADA's passages: the last word is predicted, all of it."""

import math

import pytest

from gpt_jax import errors
from gpt_jax.evaluation import lambada

LETTERS = '\n abcdefghij'
ID = {letter: i for i, letter in enumerate(LETTERS)}


def _measure(scorer, path, limit=None):
  passages = lambada.read(path, scorer.model, limit=limit)
  return lambada.measure(scorer, passages, progress=None)


def test_the_last_word_is_scored_with_the_space_before_it(model, lines):
  path = lines({'text': 'ab\nc de'}, {'text': 'abcdefghij a'})
  short, long = lambada.read(path, model(8), limit=None)
  assert ''.join(LETTERS[i] for i in short.row.tokens[short.row.first :]) == ' de'
  assert ''.join(LETTERS[i] for i in short.row.tokens[: short.row.first]) == 'ab\nc'
  assert ''.join(LETTERS[i] for i in long.row.tokens) == 'defghij a'
  assert (short.shortened, long.shortened) == (False, True)


def test_a_word_counts_only_as_a_whole(oracle, lines):
  # The oracle finds greedy what has a log-probability here.
  log_probs = {ID[' ']: -0.5, ID['a']: -1.0, ID['b']: -2.0}
  path = lines(*({'text': text} for text in ('c ab', 'c d', 'c da', 'c ad', 'c d')))
  found = _measure(oracle(log_probs), path)
  assert (found.examples, found.acc) == (5, 1 / 5)
  assert found.acc_stderr == pytest.approx(math.sqrt(0.2 * 0.8 / 5))
  assert found.loss == (3.5 + 1.5 + 2.5 + 2.5 + 1.5) / 5, 'a mean over words'
  assert found.perplexity == pytest.approx(math.exp(2.3))
  assert found.shortened == 0
  table = dict(found.table())
  assert table['acc'].startswith('20.00% ± 17.89%') and table['perplexity'].startswith('9.974')
  assert table['passages'].startswith('5 (0 ') and table['loss'].startswith('2.3000')


def test_greedy_decoding_and_this_agree(model, scorer, lines):
  prompts = ['ab', 'cab ', 'j', 'fade', 'hi hi']
  texts = [model(8).generate(p, max_new_tokens=2, temperature=0)[0].text for p in prompts]
  right = [f'{p}{text}' for p, text in zip(prompts, texts, strict=True)]
  rows = [t for t in right if ' ' in t[:-1] and t[-1] != ' ' and '\n' not in t[t.rindex(' ') :]]
  for text in {*rows, 'ab cd', 'hi hi', 'a b'}:
    context, _, word = text.rpartition(' ')
    (sample,) = model(8).generate(context, max_new_tokens=len(word) + 1, temperature=0)
    path = lines({'text': text})
    assert _measure(scorer(8), path).acc == (sample.text == f' {word}')


def test_the_result_does_not_depend_on_the_batch_size_or_the_order(scorer, lines):
  texts = ['a b', 'ab cd', 'abc defg', 'j i', 'abcdefghi abc', 'a\nb c']
  results = [
    _measure(scorer(8, batch_size), lines(*({'text': text} for text in order)))
    for order in (texts, texts[::-1])
    for batch_size in (1, 2, 3)
  ]
  for found in results:
    assert found.acc == results[0].acc and found.shortened == 1
    assert found.loss == pytest.approx(results[0].loss, abs=1e-5)


def test_limit_and_progress(oracle, lines):
  told = []
  passages = lambada.read(lines(*[{'text': 'a b'}] * 5), oracle({}).model, limit=3)
  lambada.measure(oracle({}), passages, progress=lambda *args: told.append(args))
  assert told == [('scoring last words', done, 3) for done in range(4)]


@pytest.mark.parametrize('text', ['word', ' word', 'some words ', 'some \n', '', ' '])
def test_a_passage_has_a_last_word(model, lines, text):
  with pytest.raises(errors.UserError, match='line 2: field text must be several words'):
    lambada.read(lines({'text': 'a b'}, {'text': text}), model(8), limit=None)


def test_a_line_without_text_is_named(model, lines):
  with pytest.raises(errors.UserError, match='line 1: there is no field text .fields: txt'):
    lambada.read(lines({'txt': 'a b'}), model(8), limit=None)
