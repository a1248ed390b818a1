"""A model learns to answer, is measured by its answers, and can be talked with."""

import dataclasses
import io
import json
import sys

import pytest

import gpt_jax
from gpt_jax import cli, evaluate
from gpt_jax.data.sources import turns
from gpt_jax.generation import interactive, options
from tests import raised
from tests.training import runs

_TEMPLATE = 'Q: {prompt}\nA: '


def _config(folder, **changes):
  path = folder / 'talk.jsonl'
  if not path.exists():
    lines = [
      {'instruction': f'Say {c}.', 'output': 2 * c, 'kind': 'vowel' if c in 'ae' else 'other'}
      for c in 'abcdef' * 12
    ]
    path.write_text('\n'.join(map(json.dumps, lines)))
  values = {
    'data__source': f'jsonl:{path}',
    'data__split': 'position',
    'model__block_size': 32,
    'model__dropout': 0.0,
  }
  return runs.change(runs.make_config(folder), **values | changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A language model of the same text, and `run`, which starts from it."""
  folder = tmp_path_factory.mktemp('instruct')
  runs.run(_config(folder, data__text_field='instruction'), folder / 'language')
  answers = {'task': 'instruct', 'data__template': _TEMPLATE, 'train__steps': 150}
  start = {'init_from': str(folder / 'language'), 'train__eval_every': 150}
  runs.run(_config(folder, **answers, **start), folder / 'run')
  return folder


def _refuse(error):
  raise error


@pytest.fixture
def measure(folder, capsys):
  def run(name):
    values = evaluate.define_flags()
    data = f'--data=examples:{folder / "talk.jsonl"}'
    args = [f'--model={folder / name}', data, '--json']
    cli.parse(values, ['evaluate', *args, '--limit=12'], takes_config=False)
    evaluate.main(values)
    out, messages = capsys.readouterr()
    return messages, json.loads(out)

  return run


def test_it_follows_instructions_that_it_ignored(measure):
  out, before = measure('language')
  assert before['exact'] == [0.0] and before['task'] == 'examples'
  out, after = measure('run')
  assert after['exact'] == [1.0] and after['by_kind'] == {'vowel': [1.0], 'other': [1.0]}
  assert 'vowel             100.0%' in out and 'step 150' in out


def test_a_chat_shows_the_model_all_turns_as_it_was_trained(folder, monkeypatch, capsys):
  model, seen = gpt_jax.load(folder / 'run'), list[list[int]]()
  assert model.template == _TEMPLATE

  def stream(self, prompt, **arguments):
    seen.append(prompt)
    return original(self, prompt, **arguments)

  original = type(model).stream
  monkeypatch.setattr(type(model), 'stream', stream)
  lines = 'Say a.\nSay b.\nSay c.\nSay d.\n'
  monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(lines.encode())))
  request = options.make(temperature=0.0, max_new_tokens=3)
  interactive.run(model, request, chat=True, report=_refuse)
  texts = capsys.readouterr().out.splitlines()
  assert texts[0] == 'aa' and len(texts) == 4
  talks = [['Say a.']]  # later ones are the two prompts that leave room for a response
  talks += [[f'Say {"abcd"[i]}.', texts[i], f'Say {"abcd"[i + 1]}.'] for i in range(3)]
  assert model.tokenizer
  assert seen == [turns.encode(model.tokenizer, _TEMPLATE, talk) for talk in talks]


def test_only_a_model_that_was_trained_to_can_be_talked_with(folder):
  model, request = gpt_jax.load(folder / 'run'), options.make()
  for other in (
    dataclasses.replace(model, template=''),
    dataclasses.replace(model, config=dataclasses.replace(model.config, kind='encoder_decoder')),
  ):
    error = raised.user_error(interactive.run, other, request, chat=True, report=_refuse)
    assert error.key == 'model' and 'instruct' in error.fix
  assert gpt_jax.load(folder / 'language').template == ''


def test_the_result_says_how_to_talk(folder, capsys):
  answers = {'task': 'instruct', 'data__template': _TEMPLATE, 'train__steps': 150}
  start = {'init_from': str(folder / 'language'), 'train__eval_every': 150}
  runs.run(_config(folder, **answers, **start), folder / 'run')
  assert 'sample' in (out := capsys.readouterr().out) and '--chat' in out
