"""Questions are read from JSON lines, and a continuation is scored after its context."""

import gzip

import pytest

from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import examples
from tests import raised

LETTERS = '\n abcdefghij'


def _read(path, limit=None):
  return examples.read(path, lambda record: examples.field(record, 'n', int), limit)


def test_lines_are_read_up_to_the_limit_without_blanks_and_compressed(lines, tmp_path, monkeypatch):
  path = lines('\ufeff{"n": 1}', '', '{"n": 2}', '  ', 'not read')
  assert _read(path, limit=2) == [1, 2]
  (tmp_path / 'x.gz').write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}'))
  monkeypatch.setenv('HOME', str(tmp_path))
  assert _read('~/x.gz') == [1, 2]


@pytest.mark.parametrize(
  'line', [b'{"n": ', b'[1]', b'{}', b'{"n": "1"}', b'[' * 100_000, b'{"n": "\xe9"}']
)
def test_an_invalid_line_or_file_is_named(tmp_path, line):
  path = tmp_path / 'x'
  for content, key in (
    (b'{"n": 1}\n' + line, f'{path}, line 2'),
    (b'\n \n', str(path)),
    (None, str(path)),
  ):
    path.unlink() if content is None else path.write_bytes(content)
    assert raised.user_error(_read, str(path)).key == key


@pytest.mark.parametrize(
  ('context', 'continuation', 'scored', 'shortened'),
  [
    ('abcdefg', ' a', ('abcdefg', ' a'), False),
    ('abcdefgh', ' a', ('bcdefgh', ' a'), True),
    ('abc', ' bcdefgh', ('c', ' bcdefgh'), True),
  ],
)
def test_the_end_of_a_long_context_is_kept(oracle, context, continuation, scored, shortened):
  row, cut = examples.row(oracle(), context, continuation)
  decode = oracle().tokenizer.decode
  assert (decode(row.tokens[: row.first]), decode(row.tokens[row.first :])) == scored
  assert cut == shortened


def test_a_row_needs_a_context_or_bos_and_a_continuation_that_fits(oracle):
  tokenizer = char.CharTokenizer(LETTERS, ['bos'])
  for before in ('', 'b'):
    row, _ = examples.row(oracle({}, tokenizer), before, ' a')
    assert row.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode(f'{before} a')]
    assert row.first == 1 + len(before)
  for context, continuation in (('', 'a'), ('a', ''), ('a', 'b' * 9)):
    raised.user_error(examples.row, oracle(), context, continuation)


def test_scores_come_in_the_order_of_the_rows_with_progress(oracle):
  rows = [examples.row(oracle(), 'a', letter)[0] for letter in 'bcd']
  log_probs = {token: -float(token) for token in range(12)}
  reported = []
  found = examples.score(
    oracle(log_probs), rows, phase='x', progress=lambda *args: reported.append(args)
  )
  assert [-scores.log_probs[0] for scores in found] == [row.tokens[1] for row in rows]
  assert reported == [('x', done, 3) for done in range(4)]
