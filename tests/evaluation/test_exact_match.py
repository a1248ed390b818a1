"""Exact match: the last prompt of each conversation is answered, and counted by kind."""

import types
from typing import Any

import pytest

from gpt_jax import config as config_lib
from gpt_jax.data.sources import rules, turns
from gpt_jax.data.tokenizers import char
from gpt_jax.downstream import pictures
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


def _measure(
  path, texts, *, template='<{prompt}>', shots=(0,), limit=None, batch_size=2, kind='gpt'
):
  """What is measured of a model that answers with these texts, and what it is asked with."""
  calls = []

  def generate(prompts, **options):
    calls.append((prompts, options))
    return [types.SimpleNamespace(text=next(answers)) for _ in prompts]

  answers = iter(texts)
  tokenizer = char.CharTokenizer('\nabcd<>', ['eos'])
  model: Any = types.SimpleNamespace(tokenizer=tokenizer, template=template, generate=generate)
  model.config = config_lib.ModelConfig(kind=kind)
  found = exact_match.measure(
    model, path, shots=shots, limit=limit, batch_size=batch_size, progress=lambda *_: None
  )
  return found, calls, tokenizer


def test_a_model_is_asked_as_it_was_trained_and_counts_by_kind(lines):
  found, calls, tokenizer = _measure(lines(*_LINES), ['c', 'd', 'dd'])
  assert (found.examples, found.exact) == (3, [1 / 3])
  assert found.by_kind == {'x': [0.5], 'y': [0.0]}
  table = dict(found.table())
  assert table['x'].strip() == '50.0%' and table['exact match'].strip() == '33.3%'
  asked = [prompt for prompts, _ in calls for prompt in prompts]
  assert asked == [turns.encode(tokenizer, '<{prompt}>', talk) for talk in _PROMPTS]
  assert [len(prompts) for prompts, _ in calls] == [2, 1]
  assert all(options == {'max_new_tokens': 3, 'temperature': 0.0} for _, options in calls)


def test_a_model_without_a_template_is_asked_in_lines(lines):
  found, calls, _ = _measure(lines(*_LINES), ['c'], template='', limit=1)
  assert (found.examples, found.exact) == (1, [1.0])
  assert calls[0][0] == ['ab\n'] and calls[0][1]['stop'] == ['\n']
  assert 'x' not in dict(found.table())


@pytest.mark.parametrize('template', ['{prompt}', ''])
def test_a_model_that_translates_is_asked_the_last_prompt_alone(lines, template):
  pair: Any = {'kind': 'encoder_decoder', 'template': template}
  found, calls, _ = _measure(lines(*_LINES), ['c', 'd', 'd'], **pair)
  assert found.exact == [2 / 3] and found.by_kind == {'x': [1.0], 'y': [0.0]}
  assert [prompt for prompts, _ in calls for prompt in prompts] == ['ab', 'cd\n\na', 'c']
  assert all(options == {'max_new_tokens': 3, 'temperature': 0.0} for _, options in calls)
  error = raised.user_error(_measure, lines(*_LINES), [], shots=(0, 2), **pair)
  assert error.key == 'shots' and error.problem.startswith('2 must be 0')


@pytest.mark.parametrize('line', [{'instruction': 'ab'}, ['ab'], 3])
def test_a_line_that_is_no_conversation_is_named(lines, line):
  path = lines(_LINES[0], line)
  assert raised.user_error(_measure, path, []).key == f'{path}, line 2'


def test_shots_are_others_of_the_kind_with_their_responses(lines):
  texts = [{'instruction': c, 'output': c, 'kind': 'ab'[i % 2]} for i, c in enumerate('abcdab')]
  found, calls, tokenizer = _measure(lines(*texts), 'abcdab' * 2, shots=(0, 2), batch_size=6)
  assert found.shots == (0, 2) and found.exact == [1.0, 1.0]
  (without, _), (shown, _) = calls
  assert without == [turns.encode(tokenizer, '<{prompt}>', [c]) for c in 'abcdab']
  # The two after it, of three of a kind.
  others = {0: 'ca', 1: 'db', 2: 'aa', 3: 'bb', 4: 'ac', 5: 'bd'}
  for i, c in enumerate('abcdab'):
    before = [text for shot in others[i] for text in (shot, shot)]
    assert shown[i] == turns.encode(tokenizer, '<{prompt}>', [*before, c])
  assert dict(found.table())['shots'].split() == ['0', '2']
  assert pictures.png(pictures.shots(found)).startswith(b'\x89PNG')
  assert raised.user_error(_measure, lines(*texts), [], shots=(3,)).key == 'shots'


def test_what_is_shown_of_a_made_source_is_of_those_to_train_on():
  asked, shown = exact_match._read('builtin:instructions', 12)
  assert shown and len(asked) == 12 and len(shown) == rules.NUMBERS['train']
  assert not {talk[-2] for talk, _ in asked} & {talk[-2] for talk, _ in shown}
  for before, talk in exact_match._with_shots(asked, shown, 3):
    assert len(before) == 6 and len(talk) == 2


def test_what_is_shown_of_a_hidden_rule_is_the_conversation_itself():
  asked, shown = exact_match._read('builtin:analogies', 12)
  assert len(asked) == 12 and shown is None
  for k in (0, 1, 32):
    found = list(exact_match._with_shots(asked, shown, k))
    assert [[*before, *talk] for before, talk in found] == [talk[-2 * k - 2 :] for talk, _ in asked]
    assert all(len(talk) == 2 for _, talk in found)
  error = raised.user_error(list, exact_match._with_shots(asked, shown, 33))
  assert error.key == 'shots' and '33' in error.problem
