"""HellaSwag's questions: what is read of a line, what is scored, and which ending is chosen."""

import json
import math

import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import hellaswag, scoring

LETTERS = '\n abcdefghij'
ID = {letter: i for i, letter in enumerate(LETTERS)}


def _question(ctx='ab', endings=('a', 'bb', 'cc', 'dd'), label=0, **more):
  return {'ind': 4, 'activity_label': 'X', 'ctx': ctx, 'endings': list(endings), 'label': label} | (
    more
  )


def _measure(scorer, path, **options):
  questions = hellaswag.read(path, scorer.model, **{'limit': None, **options})
  return hellaswag.measure(scorer, questions, progress=None)


def test_an_ending_is_scored_behind_its_context_and_a_space(model, lines):
  path = lines(_question(ctx='ab', endings=['c', 'de'], label='1'))
  (question,) = hellaswag.read(path, model(), limit=None)
  decoded = [(LETTERS[i] for i in row.tokens) for row in question.rows]
  assert [''.join(letters) for letters in decoded] == ['ab c', 'ab de']
  assert [row.first for row in question.rows] == [2, 2]
  assert question.label == 1 and not question.shortened


def test_accuracy_of_totals_and_of_means(oracle, lines):
  log_probs = {ID[' ']: -1.0, ID['a']: -3.0, ID['b']: -1.5, ID['c']: -1.0, ID['d']: -9.0}
  # ' a': -4, -2 a token; ' bbb': -5.5, -1.375 a token; ' d': -10, -5 a token.
  endings = ['a', 'bbb', 'd']
  path = lines(*(_question(endings=endings, label=label) for label in (0, 0, 0, 1, 2)))
  found = _measure(oracle(log_probs), path)
  assert (found.examples, found.acc, found.acc_norm) == (5, 3 / 5, 1 / 5)
  assert found.acc_stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
  assert found.acc_norm_stderr == pytest.approx(math.sqrt(0.2 * 0.8 / 5))
  table = dict(found.table())
  assert table['acc'].startswith('60.00% ± 21.91%')
  assert table['acc_norm'].startswith('20.00% ± 17.89%')
  assert table['questions'] == '5 (0 with a shortened context)'


def test_of_equal_endings_the_first_is_chosen(oracle, lines):
  path = lines(*(_question(endings=['a', 'a'], label=label) for label in (0, 1, 1)))
  assert _measure(oracle({}), path).acc == 1 / 3


def test_the_result_does_not_depend_on_batches_or_on_other_questions(scorer, lines):
  draw = np.random.default_rng(3)

  def words(low, high):
    return ''.join(draw.choice(list(LETTERS[1:]), draw.integers(low, high)))

  records = [
    _question(ctx=words(1, 8), endings=[words(1, 7) for _ in range(4)], label=int(draw.integers(4)))
    for _ in range(12)
  ]
  each = [_measure(scorer(8, 3), lines(record)) for record in records]
  for order in (records, records[::-1]):
    for batch_size in (1, 3):
      found = _measure(scorer(8, batch_size), lines(*order))
      assert found.acc == sum(one.acc for one in each) / 12
      assert found.acc_norm == sum(one.acc_norm for one in each) / 12
  assert 0 < found.acc < 1
  assert found.shortened == sum(one.shortened for one in each) > 0


def test_of_a_long_context_the_end_is_kept_and_told(model, oracle, lines):
  path = lines(
    _question(ctx='abcdefghij', endings=['a', 'bbb']),
    _question(ctx='abcdefg', endings=['a', 'a']),
    _question(ctx='abcdefg', endings=['a', 'bbb']),
  )
  long, short, half = hellaswag.read(path, model(8), limit=None)
  assert [len(row.tokens) for row in long.rows] == [9, 9]
  assert ''.join(LETTERS[i] for i in long.rows[1].tokens) == 'fghij bbb'
  assert (long.shortened, short.shortened, half.shortened) == (True, False, True)
  found = _measure(oracle({}), path)
  assert found.shortened == 2
  assert '2 with a shortened' in dict(found.table())['questions']


def test_a_text_begins_with_the_start_of_text(model, lines):
  tokenizer = char.CharTokenizer(LETTERS, ['bos'])
  (question,) = hellaswag.read(lines(_question(ctx='')), model(8, tokenizer), limit=None)
  assert question.rows[0].tokens.tolist() == [tokenizer.start_of_text, ID[' '], ID['a']]
  assert question.rows[0].first == 1


def test_the_limit_and_blank_lines(scorer, lines):
  records = [_question(), '', _question(), '  ', 'not read']
  assert _measure(scorer(8, 3), lines(*records), limit=2).examples == 2
  with pytest.raises(errors.UserError, match='x.jsonl, line 5: this is not JSON'):
    _measure(scorer(8, 3), lines(*records))


def test_progress_ends_at_the_whole(oracle, lines):
  told = []
  questions = hellaswag.read(lines(_question(), _question()), oracle({}).model, limit=None)
  hellaswag.measure(oracle({}), questions, progress=lambda *args: told.append(args))
  assert told == [('scoring endings', done, 8) for done in range(9)]


@pytest.mark.parametrize(
  ('record', 'complaint'),
  [
    ('{"ctx": ', 'this is not JSON'),
    ('[1]', 'not a JSON object'),
    ({'endings': ['a', 'b'], 'label': 0}, r'there is no field ctx \(fields: endings, label\)'),
    ({}, r'no field ctx \(fields: none\)'),
    (_question(ctx=3), 'field ctx must be text, not 3'),
    (_question(endings=['a']), 'field endings must be a list of texts'),
    (_question(endings='ab') | {'endings': 'ab'}, 'field endings must be a list of texts'),
    (_question(endings=['a', 1]), 'field endings must be a list of texts'),
    ({'ctx': 'a', 'endings': ['a', 'b']}, 'there is no field label .*'),
    (_question(label=4), r'field label is 4, must be one of \[0, 1, 2, 3\].*hellaswag_val'),
    (_question(label=''), "field label is ''"),
    (_question(label=-1), 'field label is -1'),
    (_question(label=True), 'field label is True'),
    (_question(label=None), 'field label is None'),
    (_question(ctx=''), 'the context is empty'),
    (_question(ctx='aXb'), "outside the vocabulary: 'X' at position 1"),
    (_question(endings=['a', 'bbbbbbbb']), "' bbbbbbbb'.* has 9 tokens, .* reads 8"),
  ],
)
def test_a_line_that_is_no_question_is_named(model, lines, record, complaint):
  path = lines(_question(), record)
  with pytest.raises(errors.UserError, match=rf'x\.jsonl, line 2: .*{complaint}'):
    hellaswag.read(path, model(8), limit=None)


@pytest.mark.parametrize('content', [b'', b'\n \n'])
def test_an_empty_file_is_told(model, tmp_path, content):
  (tmp_path / 'x').write_bytes(content)
  with pytest.raises(errors.UserError, match='has no examples'):
    hellaswag.read(str(tmp_path / 'x'), model(8), limit=None)


def test_a_byte_order_mark_is_no_part_of_the_text(model, lines):
  path = lines('\ufeff' + json.dumps(_question()), _question())
  assert len(hellaswag.read(path, model(8), limit=None)) == 2


def test_a_file_that_is_not_there_or_not_utf8_is_told(model, tmp_path):
  with pytest.raises(errors.UserError, match='none.jsonl cannot be read'):
    hellaswag.read(str(tmp_path / 'none.jsonl'), model(8), limit=None)
  (tmp_path / 'x').write_bytes(b'{"ctx": "\xe9"}')
  with pytest.raises(errors.UserError, match="line 1: this is not JSON .'utf-8' codec"):
    hellaswag.read(str(tmp_path / 'x'), model(8), limit=None)


def test_a_row_is_what_the_scorer_takes(scorer, model, lines):
  path = lines(_question(ctx='abcdefghij', endings=['a' * 7, 'b']))
  for question in hellaswag.read(path, model(8), limit=None):
    assert all(isinstance(row, scoring.Row) for row in question.rows)
    assert len(list(scorer(8).score(question.rows))) == 2
