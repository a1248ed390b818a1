"""The README's commands are what the project does: each parses, and the short ones are run."""

import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
from unittest import mock

import pytest
from absl import flags

from gpt_jax import cli

REPOSITORY = pathlib.Path(__file__).parents[1]
README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')


def commands() -> list[list[str]]:
  """Every shell command in a bash block, split into words."""
  blocks = re.findall(r'```bash\n(.*?)```', README, flags=re.DOTALL)
  text = '\n'.join(blocks).replace('\\\n', ' ')
  lines = (shlex.split(line, comments=True) for line in text.splitlines())
  return [words for words in lines if words]


def python_commands() -> list[list[str]]:
  """The arguments of each `python -m gpt_jax.…`, module first."""
  found = []
  for words in commands():
    words = [word for word in words if not re.match('[A-Z_]+=', word)]
    if words[:2] == ['python', '-m']:
      found.append(words[2 : words.index('>') if '>' in words else None])
  return found


def test_there_are_commands_for_training_and_sampling() -> None:
  modules = {words[0] for words in python_commands()}
  assert {'gpt_jax.train', 'gpt_jax.sample'} <= modules


@pytest.mark.parametrize('words', python_commands(), ids=' '.join)
def test_a_command_of_the_readme_is_understood(
  words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.chdir(REPOSITORY)
  command = importlib.import_module(words[0])
  values: flags.FlagValues = command.define_flags()
  takes_config = words[0].removeprefix('gpt_jax.') in ('train', 'prepare', 'bench', 'scaling')
  takes_words = words[0] in ('gpt_jax.plot', 'gpt_jax.bench', 'gpt_jax.checkpoints')
  cli.parse(values, words, takes_config=takes_config, takes_words=takes_words)


def test_scripts_that_the_readme_names_are_there_and_may_be_run() -> None:
  scripts = [words[0] for words in commands() if words[0].startswith('launch/')]
  assert scripts
  for script in scripts:
    assert (REPOSITORY / script).stat().st_mode & 0o111, script


def test_links_and_the_tree_lead_to_files_that_exist() -> None:
  links = [link for link in re.findall(r'\]\(([^)#]+)\)', README) if '://' not in link]
  headings = {heading.lower().replace(' ', '-') for heading in re.findall('^#+ (.+)', README, re.M)}
  assert set(re.findall(r'\]\(#([^)]+)\)', README)) <= headings
  tree = re.findall(r'^gpt_jax/\n(.*?)^configs/', README, flags=re.DOTALL | re.MULTILINE)[0]
  names = [name for line in tree.splitlines() for name in re.findall(r'[a-z_/]+(?:\.py|/)', line)]
  assert len(names) > 8
  for path in (
    links + [f'gpt_jax/{name}' for name in names] + re.findall(r'`(configs/\S+)`', README)
  ):
    assert (REPOSITORY / path).exists(), path


def run(words: list[str], *args: str) -> None:
  """Runs a command of the README in this process, with more arguments."""
  with mock.patch.object(sys, 'argv', [*words, *args]):
    runpy.run_module(words[0], run_name='__main__')


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
def test_train_sample_convert_evaluate_and_python_as_the_readme_shows(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  """The training command on your own text, made short, then what uses the model."""
  monkeypatch.chdir(REPOSITORY)
  workdir, cache = tmp_path / 'run', f'--config.data.cache_dir={tmp_path / "cache"}'
  (train,) = (words for words in python_commands() if any('data.source' in word for word in words))
  small = ['--config.train.steps=2', '--config.train.eval_batches=1', '--config.model.n_layer=1']
  run(train, *small, cache, f'--workdir={workdir}')
  assert (workdir / 'loss.png').exists()
  one = {words[0]: words for words in reversed(python_commands())}  # the first of each
  capsys.readouterr()
  run(one['gpt_jax.sample'], f'--model={workdir}', '--max_new_tokens=5')
  assert capsys.readouterr().out.count('The ') >= 3
  run(one['gpt_jax.convert'], f'--model={workdir}', f'--output={tmp_path / "exported"}')
  capsys.readouterr()
  run(one['gpt_jax.evaluate'], f'--model={workdir}', '--json', '--limit=99')
  assert (tmp_path / 'exported').is_dir() and json.loads(capsys.readouterr().out)['loss'] > 0
  (block,) = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
  code = block.replace('runs/quickstart', str(workdir)).replace(
    'max_new_tokens=100', 'max_new_tokens=3'
  )
  capsys.readouterr()
  exec(code, {})
  assert capsys.readouterr().out


def test_the_mesh_command_fits_eight_devices(tmp_path: pathlib.Path) -> None:
  (mesh,) = (words for words in python_commands() if any('mesh.' in word for word in words))
  short = ['--config.train.steps=1', '--config.train.eval_batches=1', '--config.model.n_layer=1']
  places = [f'--workdir={tmp_path / "run"}', f'--config.data.cache_dir={tmp_path / "cache"}']
  flags = '--xla_force_host_platform_device_count=8'
  assert f'XLA_FLAGS={flags}' in README
  done = subprocess.run(
    [sys.executable, '-m', *mesh, *short, *places],
    cwd=REPOSITORY,
    env={**os.environ, 'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert 'fsdp 2 × tensor 2' in done.stdout
