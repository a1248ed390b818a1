"""A session reads prompts as they are typed, and writes a text for each."""

import io
import sys

import pytest

from gpt_jax import errors
from gpt_jax.generation import interactive, options, parsing
from tests import screen
from tests.generation import tiny


def test_a_session_writes_a_text_for_each_line(monkeypatch, capsys):
  """Whatever its line begins with; errors don't end it, and the seed grows with each text."""
  lines, last = ['bad', 'bad', '', 'Q', '/set top_k 3', 'b\udcff', 's' * 14, 'to'], 2**32 - 1
  data = '\n'.join(lines).encode('utf-8', 'surrogateescape')
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(data), 'ascii'))
  reported: list[errors.UserError] = []
  request = options.make(max_new_tokens=12, seed=last)
  model = tiny.model(letters=tiny.LETTERS + '\ufffd')  # bytes that are not text aren't that letter
  interactive.run(model, request, report=reported.append)
  expected, shifts = '', 0
  for prompt, seed in [('bad', last), ('bad', 0), ('', 1), ('to', 2)]:
    (one,) = model.generate(prompt, max_new_tokens=12, seed=seed)
    expected += f'{prompt}{one.text}\n'
    shifts += one.context_shifts
  out, messages = capsys.readouterr()
  assert out == expected and [error.key for error in reported] == ['prompt'] * 4
  assert messages.count('context of 13 tokens') == shifts > 0


@pytest.mark.parametrize('parts', [[], ['some', ' text']])
def test_until_the_first_part_its_line_says_what_is_being_done(monkeypatch, parts):
  terminal = screen.Terminal()
  monkeypatch.setattr(sys, 'stdout', terminal)
  monkeypatch.setattr(sys, 'stderr', terminal)

  def stream():
    assert terminal.getvalue() == 'compiling …\r'
    yield from parts
    return 'sample'

  assert interactive.write('of ', stream()) == 'sample'
  assert terminal.getvalue() == f'compiling …\r\r\033[Kof {"".join(parts)}\n'


@pytest.mark.parametrize(
  ('given', 'text'), [('\\n', '\n'), ('a\\\\n', 'a\\n'), ('\\t', '\t'), ('☃', '☃')]
)
def test_escapes(given, text):
  assert parsing.unescape('stop', given) == text
