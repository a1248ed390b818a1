"""Exact match: the last prompt of each conversation is answered, and counted by kind."""

import types
from typing import Any

import pytest

from gpt_jax.data.sources import turns
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import exact_match
from tests import raised

_LINES: list[Any] = [
  {'instruction': 'ab', 'output': 'c', 'kind': 'x'},
  {'instruction': 'cd', 'input': 'a', 'output': 'dd', 'kind': 'y'},
  {
    'messages': [
      {'role': 'user', 'content': 'a'},
      {'role': 'assistant', 'content': 'b'},
      {'role': 'user', 'content': 'c'},
      {'role': 'assistant', 'content': 'd'},
    ],
    'kind': 'x',
  },
]
_PROMPTS = [['ab'], ['cd\n\na'], ['a', 'b', 'c']]


def _measure(path, texts, *, template='<{prompt}>', limit=None, batch_size=2):
  """What is measured of a model that answers with these texts, and what it is asked with."""
  calls = []

  def generate(prompts, **options):
    calls.append((prompts, options))
    return [types.SimpleNamespace(text=next(answers)) for _ in prompts]

  answers = iter(texts)
  tokenizer = char.CharTokenizer('\nabcd<>', ['eos'])
  model: Any = types.SimpleNamespace(tokenizer=tokenizer, template=template, generate=generate)
  found = exact_match.measure(
    model, path, limit=limit, batch_size=batch_size, progress=lambda *_: None
  )
  return found, calls, tokenizer


def test_a_model_is_asked_as_it_was_trained_and_counts_by_kind(lines):
  found, calls, tokenizer = _measure(lines(*_LINES), ['c', 'd', 'dd'])
  assert (found.examples, found.exact) == (3, 1 / 3)
  assert found.by_kind == {'x': (1, 2), 'y': (0, 1)}
  table = dict(found.table())
  assert table['x'] == '50.0% of 2' and table['exact match'].startswith('33.33%')
  asked = [prompt for prompts, _ in calls for prompt in prompts]
  assert asked == [turns.encode(tokenizer, '<{prompt}>', talk) for talk in _PROMPTS]
  assert [len(prompts) for prompts, _ in calls] == [2, 1]
  assert all(options == {'max_new_tokens': 3, 'temperature': 0.0} for _, options in calls)


def test_a_model_without_a_template_is_asked_in_lines(lines):
  found, calls, _ = _measure(lines(*_LINES), ['c'], template='', limit=1)
  assert (found.examples, found.exact) == (1, 1.0)
  assert calls[0][0] == ['ab\n'] and calls[0][1]['stop'] == ['\n']
  assert 'x' not in dict(found.table())


@pytest.mark.parametrize('line', [{'instruction': 'ab'}, ['ab'], 3])
def test_a_line_that_is_no_conversation_is_named(lines, line):
  path = lines(_LINES[0], line)
  assert raised.user_error(_measure, path, []).key == f'{path}, line 2'
