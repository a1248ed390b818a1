"""HellaSwag: what is read of a line, what is scored, and which ending is chosen."""

import pytest

from gpt_jax.evaluation import hellaswag
from tests import raised

LETTERS = '\n abcdefghij'
ID = {letter: i for i, letter in enumerate(LETTERS)}


def _question(ctx='ab', endings=None, label=0):
  endings = ['a', 'bb', 'cc', 'dd'] if endings is None else endings
  return {'ind': 4, 'activity_label': 'X', 'ctx': ctx, 'endings': endings, 'label': label}


def _measure(scorer, path, limit=None):
  return hellaswag.measure(scorer, path, limit=limit, progress=lambda *_: None)


def test_an_ending_is_scored_after_its_context_and_a_space(oracle):
  scorer = oracle()
  question = hellaswag.parse(scorer, _question('ab', ['c', 'de'], '1'))
  assert [scorer.tokenizer.decode(row.tokens) for row in question.rows] == ['ab c', 'ab de']
  assert [row.first for row in question.rows] == [2, 2]
  assert (question.label, question.shortened) == (1, False)
  for endings in (['a', 'bbb'], ['bbb', 'a']):  # one that does not fit is enough
    assert hellaswag.parse(scorer, _question('abcdefg', endings)).shortened


def test_accuracy_by_totals_and_by_means(oracle, lines):
  log_probs = {ID[' ']: -1.0, ID['a']: -3.0, ID['b']: -1.5, ID['c']: -1.0, ID['d']: -9.0}
  # ' a': -4, -2 per token; ' bbb': -5.5, -1.375 per token; ' d': -10, -5 per token.
  labels = (0, 0, 0, 1, 2)
  path = lines(*(_question('abcdef', ['a', 'bbb', 'd'], label) for label in labels))
  found = _measure(oracle(log_probs), path)
  assert (found.examples, found.acc, found.acc_norm, found.shortened) == (5, 3 / 5, 1 / 5, 5)
  table = dict(found.table())
  assert table['acc'].startswith('60.00% ± 21.91%')
  assert table['acc_norm'].startswith('20.00% ± 17.89%')
  # Of equal endings the first is chosen.
  path = lines(*(_question(endings=['a', 'a'], label=label) for label in (0, 1, 1)))
  found = _measure(oracle(), path)
  assert (found.acc, found.shortened, _measure(oracle(), path, limit=1).examples) == (1 / 3, 0, 1)
  nearly = oracle({ID['a']: -3.0001, ID['b']: -3.0})
  assert _measure(nearly, lines(_question(endings=['a', 'b'], label=1))).acc == 1


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    *(('ctx', value) for value in (None, 3)),
    *(('endings', value) for value in (None, ['a'], 'ab', ['a', 1])),
    *(('label', value) for value in (None, 4, -1, '', True, 1.0)),
  ],
)
def test_a_line_that_is_no_question_is_refused(oracle, field, value):
  hellaswag.parse(oracle(), _question())
  error = raised.user_error(hellaswag.parse, oracle(), _question() | {field: value})
  assert f'field {field}' in error.problem
