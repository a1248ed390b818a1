"""The README's commands are what the project does: each parses, and the short ones are run."""

import ast
import importlib
import pathlib
import re
import shlex
import subprocess
import sys

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
      found.append(words[2:])
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
  cli.parse(values, words, takes_config=words[0] in ('gpt_jax.train', 'gpt_jax.prepare'))


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


def test_train_and_sample_as_the_readme_shows(tmp_path: pathlib.Path) -> None:
  """The training command on one's own text, made short, then the sampling command and API."""
  (train,) = (words for words in python_commands() if any('data.source' in word for word in words))
  run = tmp_path / 'run'
  small = ['--config.train.steps=4', '--config.train.eval_every=4', '--config.model.n_layer=1']
  cache = f'--config.data.cache_dir={tmp_path / "cache"}'
  python = [sys.executable, '-m']
  result = run_command([*python, *train, *small, cache, f'--workdir={run}'])
  assert (run / 'loss.png').exists(), result
  (sample,) = (words for words in python_commands() if words[0] == 'gpt_jax.sample')
  text = run_command([*python, *sample, f'--model={run}', '--max_new_tokens=5'])
  assert text.count('The ') >= 3
  for module in ('convert', 'evaluate'):
    (other,) = (words for words in python_commands() if words[0] == f'gpt_jax.{module}')
    output = tmp_path / module
    run_command(
      [
        *python,
        *other,
        f'--model={run}',
        f'--{"output" if module == "convert" else "json"}={output}',
      ]
    )
    assert output.exists()
  (block,) = re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL)
  code = block.replace('runs/quickstart', str(run)).replace(
    'max_new_tokens=100', 'max_new_tokens=3'
  )
  ast.parse(code)
  assert run_command([sys.executable, '-c', code])


def test_the_mesh_command_fits_eight_devices(tmp_path: pathlib.Path) -> None:
  (mesh,) = (words for words in python_commands() if any('mesh.' in word for word in words))
  short = ['--config.train.steps=2', '--config.train.eval_batches=1', '--config.model.n_layer=1']
  places = [f'--workdir={tmp_path / "run"}', f'--config.data.cache_dir={tmp_path / "cache"}']
  printed = run_command([sys.executable, '-m', *mesh, *short, *places])
  assert 'fsdp 2 × tensor 2' in printed


def run_command(command: list[str]) -> str:
  result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
  assert result.returncode == 0, result.stderr
  return result.stdout
