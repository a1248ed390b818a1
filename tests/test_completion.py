"""A shell offers every flag of a command, and nothing that the command would refuse."""

import pathlib
import subprocess
import sys

import pytest

from gpt_jax import __main__ as main
from gpt_jax import cli, errors
from tests import test_cli

pytestmark = pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
_BREAKS = ' \t\n"\'><=;|&(:'  # bash's own
_REFUSED = ('no such', 'unexpected', 'must be one of', 'must be true', 'must be a ')


@pytest.fixture
def offers(tmp_path, monkeypatch, capsys):
  """A function that returns what is offered for a line in a folder with some files."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'runs' / 'mine').mkdir(parents=True)
  (tmp_path / 'mine.py').write_text(test_cli.CONFIG)
  (tmp_path / 'mine.txt').touch()
  (tmp_path / 'two words.txt').touch()

  def run(line, breaks=''):
    monkeypatch.setattr(sys, 'argv', ['gpt-jax', '--complete', breaks, line])
    main.main()
    return capsys.readouterr().out.splitlines()

  return run


def _leaves(offers, command, word=''):
  """Yields each flag that one gets to from `word`: whole, or with the = before its value."""
  for each in offers(f'gpt-jax {command} {word}'):
    if each.endswith('.'):
      yield from _leaves(offers, command, each)
    elif each.startswith('--'):
      yield each


def test_commands_come_first(offers, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['gpt-jax'])
  main.main()
  assert '--completion' in capsys.readouterr().out
  assert {f'{name} ' for name in main.commands()} < set(offers('gpt-jax '))
  assert offers('gpt-jax sam') == offers('  gpt-jax sam') == ['sample ']
  assert offers('gpt-jax --v') == ['--version ']
  assert offers('gpt-jax sample --mod') == ['--model=']


@pytest.mark.parametrize('command', test_cli.COMMANDS)
def test_every_flag_is_offered_and_nothing_that_is_refused(offers, command):
  found = list(_leaves(offers, command))
  values = test_cli.COMMANDS[command].define_flags()
  takes_config = command in test_cli.WITH_CONFIG
  if takes_config:
    cli.define_config(values)
  assert sorted(each.strip(' =') for each in found) == sorted(
    f'--{name}' for name in ['help', *values]
  )
  lines = [each for each in found if each != '--help ' and not each.endswith('=')]
  for flag in (each for each in found if each.endswith('=')):
    lines += offers(f'gpt-jax {command} {flag}')
  assert any(line.endswith('runs/') for line in lines) or not {'model', 'workdir'} & set(values)
  for line in lines:
    values = test_cli.COMMANDS[command].define_flags()
    needed = ['--config=mine.py'] if takes_config else []
    try:
      cli.parse(values, ['x', *needed, line.strip()], takes_config=takes_config)
    except errors.UserError as e:  # a value that needs others, or the folder of a config
      assert not any(words in str(e) for words in _REFUSED), line
      assert '--config.' in line or line.endswith('/')


def test_long_names_are_offered_part_by_part(offers):
  assert {'--config=', '--config.', '--workdir='} < set(offers('gpt-jax train --'))
  assert {'--config.model.', '--config.task='} < set(offers('gpt-jax train --config.'))


def test_values_are_choices_configs_and_paths(offers):
  assert offers('gpt-jax train --config.model.kind=') == [
    f'--config.model.kind={kind} ' for kind in ('encoder', 'encoder_decoder', 'gpt', 'lstm')
  ]
  assert offers('gpt-jax train --config.model.bias=t') == ['--config.model.bias=true ']
  assert offers('gpt-jax train --config=qu') == ['--config=quickstart ']
  assert {'--config=mine.py ', '--config=runs/'} < set(offers('gpt-jax train --config='))
  assert '--config=mine.txt ' not in offers('gpt-jax train --config=')
  assert offers('gpt-jax sample --model=runs/') == ['--model=runs/mine/']
  assert offers('gpt-jax search --corpus=text:mine.t') == ['--corpus=text:mine.txt ']
  assert offers('gpt-jax sample --top_k=') == offers('gpt-jax sample --nonesuch=') == []
  assert offers('gpt-jax bench tr') == ['train ']
  assert offers('gpt-jax checkpoints list ru') == ['runs/']
  assert not any('two words' in each for each in offers('gpt-jax show_tokens --file='))


def test_bash_is_given_what_follows_its_last_word_break(offers):
  assert offers('gpt-jax train --config=qu', _BREAKS) == ['quickstart ']
  assert offers('gpt-jax search --corpus=text:mine.t', _BREAKS) == ['mine.txt ']
  assert offers('gpt-jax search --corpus=text:mine.t', '=') == ['text:mine.txt ']


def test_a_shell_completes_before_jax_is_imported():
  line = ('--complete', _BREAKS, 'gpt-jax train --config.model.kind=')
  done, messages = test_cli.run_without_jax('gpt_jax', *line)
  assert done.stdout.split() == ['encoder', 'encoder_decoder', 'gpt', 'lstm'] and not messages


@pytest.mark.parametrize('breaks', [_BREAKS, ' \t\n'])
def test_bash_completes_by_the_script(tmp_path, breaks):
  """Asks readline's own way: the function that `complete` names, with the line and the point."""
  (tmp_path / 'gpt-jax').write_text(f'#!/bin/sh\nexec {sys.executable} -m gpt_jax "$@"\n')
  (tmp_path / 'gpt-jax').chmod(0o755)
  program = r"""
set -eu
eval "$(./gpt-jax --completion)"
[[ $(complete -p gpt-jax) == *'-F _gpt_jax gpt-jax' ]]
COMP_WORDBREAKS=$1 COMP_LINE='gpt-jax train --config=qu --workdir=x' COMP_POINT=25
_gpt_jax ./gpt-jax
printf '%s|' "${COMPREPLY[@]}"
COMP_LINE='gpt-jax sam' COMP_POINT=11
_gpt_jax ./gpt-jax
printf '%s|' "${COMPREPLY[@]}"
"""
  root = str(pathlib.Path(main.__file__).parents[1])
  command = ['bash', '--norc', '-c', program, 'bash', breaks]
  environment = {'PATH': '/usr/bin:/bin', 'PYTHONPATH': root}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  shown = 'quickstart ' if '=' in breaks else '--config=quickstart '
  assert (done.stdout, done.stderr) == (f'{shown}|sample |', '')
