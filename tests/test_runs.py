"""The list says of each run how it stands, and in which keys of their configs runs differ."""

import functools
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from gpt_jax import cli, runs
from tests import raised, run_folders


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """A function that runs the command in `tmp_path`: its rows by run, its differences by key."""
  monkeypatch.chdir(tmp_path)

  def run(*args):
    values = runs.define_flags()
    cli.parse(values, ['runs', *args], takes_config=False)
    runs.main(values)
    out, _ = capsys.readouterr()
    table, _, differences = out.partition('\nnext_token: they differ in\n')
    return tuple(
      {line.split()[0]: line.split(maxsplit=1)[1] for line in part.splitlines()}
      for part in (table, differences)
    )

  return run


def test_each_run_has_a_row(command, tmp_path):
  run_folders.write(
    tmp_path / 'runs' / 'done', step=20, lines=run_folders.evaluated({0: 9.0, 10: 1.5, 20: 1.25})
  )
  run_folders.write(
    tmp_path / 'runs' / 'going', step=10, lines=run_folders.evaluated({0: 9.0, 10: 2.5})
  )
  run_folders.write(
    tmp_path / 'runs' / 'not-evaluated', step=20, lines=run_folders.evaluated({10: 2.5})
  )
  run_folders.write(tmp_path / 'runs' / 'begun')
  error = {'val/error': 0.125, 'val/accuracy': 0.875}
  run_folders.write(
    tmp_path / 'runs' / 'sorts', step=20, lines=run_folders.evaluated({20: 0.3}, **error)
  )
  for name, file in (
    ('config', 'config.json'),
    ('lines', 'metrics.jsonl'),
    ('tok', 'tokenizer.json'),
  ):
    run_folders.write(tmp_path / 'runs' / name, step=20)
    (tmp_path / 'runs' / name / file).write_text('{\n')
  (tmp_path / 'runs' / 'model').mkdir()
  (tmp_path / 'runs' / 'model' / 'config.json').write_text('{"model_type": "gpt2"}')
  (tmp_path / 'runs' / 'file').touch()
  (tmp_path / 'runs' / 'done' / 'checkpoints' / '20' / 'params').write_bytes(bytes(2_500_000))
  old = time.time() - 3 * 3600 - 60
  for folder, _, names in os.walk(tmp_path / 'runs' / 'going'):
    for name in ('', *names):
      os.utime(os.path.join(folder, name), (old, old))

  rows, _ = command()
  assert list(rows) == [
    'run',
    'begun',
    'config',
    'done',
    'going',
    'lines',
    'not-evaluated',
    'sorts',
    'tok',
  ]
  assert rows['done'].split()[:5] == ['20', '20', '1.2500', '20', '2.5']
  assert rows['going'].split() == ['10', '20', '2.5000', '10', '0.0', '3', 'h', 'unfinished']
  assert rows['sorts'].split()[:4] == ['20', '20', '87.5%', '20']
  assert rows['done'].endswith(' finished') and rows['sorts'].endswith(' finished')
  assert rows['not-evaluated'].endswith(' unfinished') and rows['begun'].endswith('no checkpoint')
  for name, file in (
    ('config', 'config.json'),
    ('lines', 'metrics.jsonl'),
    ('tok', 'tokenizer.json'),
  ):
    assert 'damaged' in rows[name] and f'runs/{name}/{file}' in rows[name]


def test_json_has_a_line_for_each_run(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  lines: list[Any] = run_folders.evaluated({10: 1.5, 20: 1.25, 30: 2.0})
  infinite = [line | {'val/perplexity': None} for line in lines]  # as it is written
  for name in ('done', 'damaged'):
    run_folders.write(tmp_path / 'runs' / name, step=20, lines=infinite)
  (tmp_path / 'runs' / 'damaged' / 'config.json').write_text('{')
  values = runs.define_flags()
  cli.parse(values, ['runs', '--json'], takes_config=False)
  runs.main(values)
  damaged, done = map(json.loads, capsys.readouterr().out.splitlines())
  assert (done['run'], done['step'], done['steps']) == ('runs/done', 20, 20)
  assert done['best'] == lines[1] and done['state'] == 'finished' and done['bytes'] > 0
  assert abs(done['changed'] - time.time()) < 600
  assert damaged['state'] == 'damaged' and 'config.json' in damaged['problem']


def test_runs_differ_in_what_decides_their_results(command, tmp_path):
  run_folders.write(tmp_path / 'runs' / 'a', optimizer__learning_rate=1e-3, data__cache_dir='x')
  run_folders.write(tmp_path / 'runs' / 'b', optimizer__learning_rate=1e-3, data__processes=3)
  noise: dict[str, Any] = {'model__vocab_size': 8, 'train__log_every': 5, 'model__attention': 'xla'}
  run_folders.write(tmp_path / 'runs' / 'c', data__source='text:a b', processes__count=2, **noise)
  run_folders.write(tmp_path / 'runs' / 'd', task='classify', train__steps=7)
  _, differences = command('--folder=runs')
  assert differences == {
    'data.source': 'builtin:python-reference: a, b; text:a b: c',
    'optimizer.learning_rate': '0.001: a, b; 0.0006: c',
  }
  rows, differences = command('--folder=runs/a')
  assert list(rows) == ['run', 'a'] and differences == {}


def test_runs_are_listed_without_jax(tmp_path):
  run_folders.write(tmp_path / 'runs' / 'a', step=20)
  code = (
    'import sys\nfrom gpt_jax import cli, runs\nvalues = runs.define_flags()\n'
    'runs.main(*cli.parse(values, ["runs"], takes_config=False))\n'
    'print(sorted({"jax", "matplotlib", "tensorflow_datasets"} & set(sys.modules)))\n'
  )
  run = functools.partial(subprocess.run, capture_output=True, check=True, text=True)
  assert run([sys.executable, '-c', code], cwd=tmp_path).stdout.endswith('unfinished\n[]\n')


def test_a_folder_without_runs_is_named(command, tmp_path):
  assert raised.user_error(command).key == 'folder'
  (tmp_path / 'runs' / 'empty').mkdir(parents=True)
  assert raised.user_error(command).key == 'folder'
  (tmp_path / 'file').touch()
  assert raised.user_error(command, '--folder=file').key == 'folder'
