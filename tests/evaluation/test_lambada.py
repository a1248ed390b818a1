"""LAMBADA: the last word is predicted, all of it."""

import math

import pytest

from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import lambada
from tests import raised

LETTERS = '\n abcdefghij'
ID = {letter: i for i, letter in enumerate(LETTERS)}


def _measure(scorer, path):
  return lambada.measure(scorer, path, limit=None, progress=lambda *_: None)


def test_the_last_word_is_scored_with_the_space_before_it(oracle):
  scorer = oracle()
  row, _ = lambada.parse(scorer, {'text': 'ab\n c de'})
  assert scorer.tokenizer.decode(row.tokens[: row.first]) == 'ab\n c'
  assert scorer.tokenizer.decode(row.tokens[row.first :]) == ' de'


def test_a_word_counts_only_as_a_whole(oracle, lines):
  # In the oracle, what has a log-probability is greedy.
  log_probs = {ID[' ']: -0.5, ID['a']: -1.0, ID['b']: -2.0}
  texts = ('c ab', 'c d', 'c da', 'c ad', 'cccccccc d')
  found = _measure(oracle(log_probs), lines(*({'text': text} for text in texts)))
  assert (found.examples, found.acc, found.shortened) == (5, 1 / 5, 1)
  assert found.loss == (3.5 + 1.5 + 2.5 + 2.5 + 1.5) / 5, 'a mean over words'
  assert found.perplexity == pytest.approx(math.exp(2.3))
  assert dict(found.table())['acc'].startswith('20.00% ± 17.89%')
  assert math.isfinite(_measure(oracle({ID['b']: -1e4}), lines({'text': 'a b'})).perplexity)


@pytest.mark.parametrize('text', ['word', ' word', 'a ', 'a \n', '', ' ', 3])
def test_a_passage_ends_with_a_word_after_others(oracle, text):
  scorer = oracle({}, char.CharTokenizer(f'{LETTERS}word', ['bos']))
  raised.user_error(lambada.parse, scorer, {'text': text})
