"""The command measures a run and prints and writes what it found, or names the mistake."""

import json
import math
import sys
from typing import Any

import numpy as np
import pytest

from gpt_jax import cli, config, evaluate, loading, progress
from tests import tiny_run

TEXT = 'some text to learn from\n' * 4


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The workdir of a run of two steps, which knows the letters of TEXT."""
  return tiny_run.train(tmp_path_factory.mktemp('trained'), TEXT * 10, block_size=8, steps=2)


@pytest.fixture
def command(trained, tmp_path, monkeypatch, capsys):
  """A function that runs the command in a folder with a text: its exit code, stdout, stderr."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'text.txt').write_text(TEXT)
  question = {'ctx': 'some text', 'endings': ['to', 'from', 'learn', 'so'], 'label': 1}
  (tmp_path / 'h.jsonl').write_text(json.dumps(question))
  (tmp_path / 'l.jsonl').write_text('{"text": "some text to learn"}\n' * 3)

  def run(*args):
    args = args if any('--model' in arg for arg in args) else (f'--model={trained}', *args)
    monkeypatch.setattr(sys, 'argv', ['evaluate', *args])
    capsys.readouterr()
    code: Any = 0
    try:
      cli.run(evaluate.main, evaluate.define_flags(), doc='', takes_config=False)
    except SystemExit as e:
      code = e.code
    return code, *capsys.readouterr()

  return run


def _json(path):
  def refuse(name):
    raise AssertionError(f'{name} is no JSON')

  return json.loads(path.read_text(), parse_constant=refuse)


def test_perplexity_of_a_text(command, trained, tmp_path):
  code, out, messages = command('--data=text:text.txt', '--json=results.json')
  assert code == 0 and messages == '', 'no bar unless on a terminal'
  found = _json(tmp_path / 'results.json')
  model = loading.load(trained).model
  assert model.tokenizer
  ids = model.tokenizer.encode(TEXT)
  assert (found['model'], found['data']) == (str(trained), 'text:text.txt')
  assert (found['task'], found['step']) == ('perplexity', 2)
  assert (found['block_size'], found['stride']) == (8, 4)
  assert found['tokens'] == found['bytes'] == len(ids) - 1
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))
  assert found['bits_per_byte'] == pytest.approx(found['loss'] / math.log(2))
  first, *rows = out.splitlines()
  assert first == f'{trained}, step 2, on text:text.txt'
  assert f'loss            {found["loss"]:.4f} nats a token' in rows
  assert f'bits per byte   {found["bits_per_byte"]:.4f} ({len(ids) - 1} bytes)' in rows
  assert 'context         5 to 8 tokens (stride 4)' in rows
  logits_LV = np.asarray(model.logits([ids[:8].tolist()])[0], np.float64)
  nats = np.log(np.exp(logits_LV).sum(-1)) - logits_LV[np.arange(8), ids[1:9]]
  command('--data=text:text.txt', '--json=results.json', '--limit=9', '--batch_size=1')
  assert _json(tmp_path / 'results.json')['loss'] == pytest.approx(np.mean(nats), abs=1e-5)


def test_the_store_of_the_run_gives_the_same_with_any_batch_size(command, trained, tmp_path):
  (folder,) = (trained.parent / 'cache').iterdir()
  results = []
  for data, batch_size in ((folder, 3), (f'text:{trained.parent}/text.txt', 8)):
    code, _, messages = command(
      f'--data={data}', f'--batch_size={batch_size}', '--stride=8', '--json=x'
    )
    assert code == 0, messages
    results.append(_json(tmp_path / 'x'))
  one, two = results
  assert one['tokens'] == two['tokens'] == len(TEXT) * 10 - 1 and one['stride'] == 8
  assert one['loss'] == pytest.approx(two['loss'], abs=1e-5)


def test_questions(command, tmp_path):
  code, out, messages = command('--data=hellaswag:h.jsonl', '--json=h.json')
  assert code == 0, messages
  found = _json(tmp_path / 'h.json')
  assert found['task'] == 'hellaswag' and found['examples'] == found['shortened'] == 1
  assert found['acc'] in (0, 1) and f'acc             {found["acc"]:.2%}' in out
  code, out, messages = command('--data=lambada:l.jsonl', '--json=l.json', '--limit=2')
  assert code == 0, messages
  found = _json(tmp_path / 'l.json')
  assert found['task'] == 'lambada' and found['examples'] == 2
  assert found['perplexity'] == pytest.approx(math.exp(found['loss']))
  assert 'passages        2 (2 with' in out


@pytest.mark.parametrize(
  ('data', 'phases'),
  [
    ('text:text.txt', ['encoding the text', 'scoring tokens']),
    ('hellaswag:h.jsonl', ['scoring endings']),
    ('lambada:l.jsonl', ['scoring last words']),
  ],
)
def test_each_phase_tells_its_progress(command, monkeypatch, data, phases):
  told = []
  monkeypatch.setattr(progress.Bar, 'show', lambda bar, *args: told.append(args))
  assert command(f'--data={data}')[0] == 0
  assert list(dict.fromkeys(what for what, _, _ in told)) == phases
  assert all(0 <= done <= total for _, done, total in told)
  last = {what: done == total for what, done, total in told}
  assert all(last.values())


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--model='], ['--model=PATH is missing']),
    ([], ['--data=SPEC is missing', 'hellaswag:FILE']),
    (['--model=nonesuch', '--data=text:text.txt'], ['nonesuch has no model']),
    (['--data=text:none'], ['text:none: no such file']),
    (['--data=text.txt'], ['--data=text.txt: no such source; did you mean text:text.txt?']),
    (['--data=hellaswag:none'], ['none cannot be read', 'of --data']),
    (['--data=hellaswag:text.txt'], ['text.txt, line 1: this is not JSON']),
    (['--data=lambada:h.jsonl'], ['h.jsonl, line 1: there is no field text', 'ctx']),
    (['--data=hellaswag:l.jsonl'], ['l.jsonl, line 1: there is no field ctx']),
    (['--data=hellaswag:empty'], ['empty has no examples']),
    (['--data=text:empty'], ['0 tokens, and at least 2']),
    (['--data=text:other.txt'], ['other.txt: the text has characters', "'Q' at position 5"]),
    (['--data=text:latin.txt'], ['latin.txt is not UTF-8', 'with --invalid_utf8=replace']),
    (['--data=jsonl:h.jsonl'], ['no field text', 'with --text_field, ']),
    (['--data=text:text.txt', '--stride=0'], ['--stride: 0 must be at least 1']),
    (['--data=text:none', '--stride=9'], ['--stride=9 must be from 1 to 8', 'block_size']),
    (['--data=text:text.txt', '--stride=x'], ["--stride: 'x' must be a whole number"]),
    (['--data=text:text.txt', '--batch_size=0'], ['--batch_size: 0 must be at least 1']),
    (['--data=text:text.txt', '--limit=0'], ['--limit: 0 must be at least 1']),
    (['--data=text:text.txt', '--limit=1'], ['1 token, and at least 2']),
    (['--data=text:text.txt', '--invalid_utf8=drop'], ["--invalid_utf8: 'drop' must be fail or"]),
    (['--data=text:text.txt', '--split=test'], ['--split=test', 'there are: none']),
    (['--data=hellaswag:h.jsonl', '--stride=4'], ['--stride and --split are for texts']),
    (['--data=lambada:l.jsonl', '--split=test'], ['--stride and --split are for texts']),
    (['--data=text:text.txt', '--json=no/x'], ['--json=no/x: there is no such folder']),
    (['--data=text:text.txt', '--json=.'], ['--json=. cannot be written: Is a directory']),
    (['--data=text:text.txt', '--strid=4'], ['did you mean --stride']),
  ],
)
def test_mistakes_are_told(command, tmp_path, args, words):
  (tmp_path / 'empty').touch()
  (tmp_path / 'other.txt').write_text('some Qs')
  (tmp_path / 'latin.txt').write_bytes(b'some \xe9')
  code, _, messages = command(*args)
  assert code == 2
  assert messages.startswith('error: ') and '\n\n' not in messages.strip()
  assert '--config' not in messages.replace('--config.data.special_tokens', '').replace(
    '--config.data.tokenizer', ''
  )
  for word in words:
    assert word in messages


def test_a_model_without_a_tokenizer_or_a_step(command, trained, monkeypatch):
  loaded = loading.load(trained)

  def published(path, tokenizer=loaded.model.tokenizer):
    model = type(loaded.model)(loaded.model.config, loaded.model.params, tokenizer)
    return loading.Loaded(model, None)

  monkeypatch.setattr(loading, 'load', published)
  code, out, _ = command('--data=text:text.txt')
  assert code == 0 and out.startswith(f'{trained}, on text:text.txt\n')
  monkeypatch.setattr(loading, 'load', lambda path: published(path, None))
  code, _, messages = command('--data=text:text.txt')
  assert code == 2 and f'{trained} has no tokenizer' in messages


def test_a_text_field_and_a_policy_are_used(command, tmp_path):
  (tmp_path / 'x.jsonl').write_bytes(b'{"words": "some te\xffxt"}\n')
  code, _, messages = command('--data=jsonl:x.jsonl', '--text_field=words')
  assert code == 2 and '--invalid_utf8=replace' in messages
  code, _, messages = command(
    '--data=jsonl:x.jsonl', '--text_field=words', '--invalid_utf8=replace'
  )
  assert code == 2 and "'\ufffd' at position 7" in messages, 'the vocabulary lacks it'


def test_the_flags_have_the_defaults_of_the_config():
  values = evaluate.define_flags()
  values(['evaluate'])
  data = config.DataConfig()
  assert (values.text_field, values.invalid_utf8) == (data.text_field, data.invalid_utf8)
