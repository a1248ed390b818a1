"""The command measures a model, prints the results, or names what is invalid."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest

from gpt_jax import cli, config, evaluate, progress
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import scoring
from gpt_jax.generation import language_model
from gpt_jax.weights import huggingface
from tests import raised, random_params

TEXT = 'some text to learn from\n' * 4


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A model directory; the model reads 8 tokens and knows the letters of TEXT."""
  tokenizer = char.CharTokenizer(''.join(sorted(set(TEXT))))
  model = config.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=tokenizer.vocab_size
  )
  path = tmp_path_factory.mktemp('saved') / 'model'
  huggingface.write_model(path, model, random_params.make(model), tokenizer)
  return path


@pytest.fixture
def command(saved, tmp_path, monkeypatch, capsys):
  """A function that runs the command beside some texts, and returns the table and the JSON."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'text.txt').write_text(TEXT)
  (tmp_path / 'latin.txt').write_bytes(b'some \xe9')
  question = {'ctx': 'some text', 'endings': ['to', 'from', 'learn', 'so'], 'label': 1}
  (tmp_path / 'h.jsonl').write_text(json.dumps(question))
  (tmp_path / 'e.jsonl').write_text('{"instruction": "some text", "output": "to"}\n' * 3)
  (tmp_path / 'l.jsonl').write_text('{"text": "some text to learn"}\n' * 3)

  def run(*args):
    values = evaluate.define_flags()
    args = ('evaluate', f'--model={saved}', '--json', *args)
    cli.parse(values, list(args), takes_config=False)
    evaluate.main(values)
    out, messages = capsys.readouterr()
    assert '\r' not in messages, 'no progress bar unless on a terminal'
    cli.parse(values, ['evaluate', '--nojson'], takes_config=False)
    evaluate.main(values)
    assert capsys.readouterr() == (messages, '')
    return messages, json.loads(out, parse_constant=pytest.fail)

  return run


def test_only_a_run_has_held_something_out(command):
  assert raised.user_error(command, '--data=run:test').key == 'data'


def test_perplexity_of_a_text(command, saved, monkeypatch):
  out, found = command('--data=text:text.txt')
  about = {'model': str(saved), 'step': None, 'data': 'text:text.txt', 'task': 'perplexity'}
  counted = {'block_size': 8, 'stride': 4, 'tokens': len(TEXT) - 1, 'bytes': len(TEXT) - 1}
  assert (about | counted).items() <= found.items()
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))
  assert found['bits_per_byte'] == pytest.approx(found['loss'] / math.log(2))
  assert str(saved) in out and f'{found["loss"]:.4f} nats per token' in out

  forward = mock.Mock(wraps=scoring._forward)
  monkeypatch.setattr(scoring, '_forward', forward)
  _, other = command('--data=text:text.txt', '--stride=1', '--batch_size=3')
  assert {len(call.args[2]) for call in forward.call_args_list} == {3}
  assert other['stride'] == 1 and abs(other['loss'] - found['loss']) > 1e-3
  assert command('--data=text:text.txt', '--limit=9')[1]['tokens'] == 8


def test_weights_of_fewer_bits_give_nearly_the_same_loss(command):
  _, found = command('--data=text:text.txt')
  for dtype in ('bfloat16', 'int8'):
    _, other = command('--data=text:text.txt', f'--dtype={dtype}')
    assert 0 < abs(other['loss'] - found['loss']) < 0.02 * found['loss']


def test_a_model_that_reads_one_token_is_measured(command, saved, monkeypatch):
  model = language_model.load(saved)
  params = model.params | {'wpe': {'embedding': model.params['wpe']['embedding'][:1]}}
  shorter = dataclasses.replace(model.config, block_size=1)
  model = dataclasses.replace(model, config=shorter, params=params)
  monkeypatch.setattr(language_model, 'load', lambda path, **_: model)
  assert command('--data=text:text.txt')[1]['stride'] == 1


def test_questions_and_the_step_of_a_checkpoint(command, saved, monkeypatch):
  model = dataclasses.replace(language_model.load(saved), step=7)
  monkeypatch.setattr(language_model, 'load', lambda path, **_: model)
  out, found = command('--data=hellaswag:h.jsonl')
  assert (found['task'], found['examples'], found['shortened']) == ('hellaswag', 1, 1)
  assert found['acc'] in (0, 1) and f'{found["acc"]:.2%}' in out
  assert found['step'] == 7 and 'step 7' in out
  _, found = command('--data=lambada:l.jsonl', '--limit=2')
  assert (found['task'], found['examples']) == ('lambada', 2)
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))


@pytest.mark.parametrize('data', ['text:text.txt', 'hellaswag:h.jsonl', 'lambada:l.jsonl'])
def test_each_phase_shows_its_progress_to_the_end(command, monkeypatch, data):
  shown: dict[str, Any] = {}
  monkeypatch.setattr(progress.Bar, 'show', lambda bar, *args: shown.update({args[0]: args[1:]}))
  command(f'--data={data}')
  phases = 3 if data.startswith('text:') else 2  # the model, the text, the scores
  assert len(shown) == phases and all(done == total > 0 for done, total in shown.values())


@pytest.mark.parametrize(
  ('args', 'flag'),
  [
    (['--data=text:text.txt', '--model='], '--model'),
    (['--data=', '--model=not read'], '--data'),
    (['--data=nonesuch:x'], '--data'),
    (['--data=text:text.txt', '--limit=1'], '--data'),
    (['--data=text:text.txt', '--limit=0'], '--limit'),
    (['--data=text:text.txt', '--batch_size=0'], '--batch_size'),
    (['--data=text:text.txt', '--stride=0'], '--stride'),
    (['--data=text:none', '--stride=9'], '--stride'),
    (['--data=lambada:l.jsonl', '--stride=2'], '--stride'),
    (['--data=lambada:l.jsonl', '--split=test'], '--split'),
    (['--data=run:test', '--dtype=int8'], '--dtype'),
    (['--data=builtin:dates'], '--data'),
    (['--data=examples:l.jsonl', '--shots=0,x'], '--shots'),
    (['--data=text:text.txt', '--shots=1'], '--shots'),
    (['--data=run:test', '--picture=x.png'], '--picture'),
    (['--data=examples:e.jsonl', '--shots=1'], '--shots'),
    (['--data=text:text.txt', '--dtype=int4'], '--dtype'),
    (['--data=jsonl:l.jsonl', '--text_field=words'], '--text_field'),
    (['--data=text:latin.txt'], '--invalid_utf8'),
    (['--data=text:text.txt', '--invalid_utf8=drop'], '--invalid_utf8'),
  ],
)
def test_errors_name_config_keys_as_flags_of_this_command(command, args, flag):
  error = raised.user_error(command, *args)
  message = cli.render(error, evaluate.define_flags(), aliases=evaluate.ALIASES)
  assert flag in message and 'data.' not in message


def test_compiled_programs_are_kept_for_the_next_time(saved, tmp_path):
  (tmp_path / 'text.txt').write_text(TEXT)
  environment = os.environ | {
    'XDG_CACHE_HOME': str(tmp_path),
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  command = [sys.executable, '-m', 'gpt_jax.evaluate', f'--model={saved}', '--data=text:text.txt']
  done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert any('forward' in path.name for path in (tmp_path / 'gpt_jax' / 'xla').iterdir())
