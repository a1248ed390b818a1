"""The command classifies texts and prints what it found, or names what is invalid."""

import dataclasses
import io
import json
import types

import pytest

from gpt_jax import classify, cli
from tests import raised, random_params, screen
from tests.weights import saved


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A folder with a classifier and a language model, which read 8 bytes."""
  folder = tmp_path_factory.mktemp('runs')
  for name, classes in (('classifier', 'bad,good'), ('language', '')):
    model = dataclasses.replace(saved.MODEL, classes=classes)
    run = saved.save_run(folder / name, model, {3: random_params.make(model)})
    if classes:
      values = json.loads(run.config.read_text()) | {'task': 'classify'}
      values['data']['label_field'] = 'label'
      run.config.write_text(json.dumps(values))
  return folder


@pytest.fixture
def command(runs, tmp_path, monkeypatch, capsys):
  """A function that runs the command beside some files, and returns what it prints."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'texts.txt').write_text('a film\nthe longest of all films\nbad\n')
  (tmp_path / 'latin.txt').write_bytes(b'some \xe9')
  (tmp_path / 'gap.txt').write_bytes(b'some\n\ntexts\n')
  (tmp_path / 'none.txt').touch()

  def run(*args, model='classifier'):
    values = classify.define_flags()
    model_flag = [f'--model={runs / model}'] if model else []
    cli.parse(values, ['classify', *model_flag, *args], takes_config=False)
    classify.main(values)
    return capsys.readouterr()

  return run


def test_texts_come_from_a_flag_a_file_or_standard_input(command, tmp_path, monkeypatch):
  texts = (tmp_path / 'texts.txt').read_text().splitlines()
  out, messages = command('--texts=texts.txt', '--json')
  found = [json.loads(line) for line in out.splitlines()]
  assert [record['text'] for record in found] == texts
  for record in found:
    assert list(record['probabilities']) == ['bad', 'good']
    assert sum(record['probabilities'].values()) == pytest.approx(1)
    assert record['probabilities'][record['label']] >= 0.5
  assert '1 of 3 texts' in messages and '4' in messages  # of 24 letters and eos, in windows of 8

  for text, record in zip(texts, found, strict=True):
    alone, _ = command(f'--text={text}', '--json')
    assert json.loads(alone)['probabilities'] == pytest.approx(record['probabilities'], abs=1e-5)
  file = types.SimpleNamespace(buffer=io.BytesIO(b'bad'), isatty=lambda: False)
  monkeypatch.setattr('sys.stdin', file)
  out, messages = command('--texts=-')
  assert out.startswith(found[2]['label']) and 'good' in out and messages == ''


def test_nothing_but_the_classes_is_left_on_a_terminal(command, monkeypatch):
  expected, _ = command('--texts=texts.txt')
  terminal = screen.Terminal()
  monkeypatch.setattr('sys.stdout', terminal)
  monkeypatch.setattr('sys.stderr', terminal)
  command('--texts=texts.txt')
  note, *shown = (line for line in screen.lines(terminal.getvalue()) if line)
  assert 'windows' in note and shown == [line.rstrip() for line in expected.splitlines()]
  assert 'loading' in terminal.getvalue() and 'reading:' in terminal.getvalue()


@pytest.mark.parametrize(
  ('args', 'model', 'keys'),
  [
    (['--text=x'], '', ['model']),
    ([], '', ['model', 'text']),
    (['--text=x', '--texts=texts.txt'], 'classifier', ['text']),
    (['--text= '], 'none', ['text']),
    (['--text=\udce9'], 'none', ['text']),
    (['--texts=gap.txt'], 'none', ['gap.txt:2']),
    (['--texts=latin.txt'], 'none', ['latin.txt:1']),
    (['--texts=none.txt'], 'none', ['texts']),
    (['--texts=missing.txt'], 'none', ['texts']),
    (['--text=x'], 'language', ['model']),
  ],
)
def test_what_is_invalid_is_named(command, args, model, keys):
  error = raised.user_error(command, *args, model=model)
  assert [each.key for each in error.all] == keys
  message = cli.render(error, classify.define_flags())
  assert 'prompts' not in message
