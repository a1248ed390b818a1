"""The command line is typed, its mistakes are reported together, and neither needs JAX."""

import errno
import pathlib
import subprocess
import sys
from unittest import mock

import jax
import pytest
from absl import flags

from gpt_jax import (
  bench,
  checkpoints,
  classify,
  cli,
  convert,
  errors,
  evaluate,
  inspect,
  knobs,
  plot,
  prepare,
  runs,
  sample,
  scaling,
  search,
  show_tokens,
  train,
  validation,
)
from gpt_jax import config as config_lib
from gpt_jax.parallel import mesh
from tests import raised

_ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """
from gpt_jax import config as config_lib
from tests import raised

def get_config():
  return config_lib.Config(model=config_lib.ModelConfig(n_layer=3))
"""
_MODULES = [train, prepare, sample, evaluate, convert, show_tokens]
_MODULES += [classify, search, inspect, plot, runs, bench, scaling, checkpoints]
COMMANDS = {module.__name__.removeprefix('gpt_jax.'): module for module in _MODULES}
WITH_CONFIG = {'train', 'prepare', 'bench', 'scaling'}


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(CONFIG)
  return path


def _parse(path, *args):
  """Returns the config that a command line with `path` and `args` gives."""
  argv = ['train', f'--config={path}', *args]
  return cli.parse(train.define_flags(), argv, takes_config=True)[1]


def _keys(path, *args):
  """Returns the keys of the errors that a command line gives."""
  return [error.key for error in raised.user_error(_parse, path, *args).all]


def run_without_jax(module, *args):
  """Returns the finished command and its messages; asserts that it imported nothing slow."""
  command = [sys.executable, '-X', 'importtime', '-m', module, *args]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  lines = done.stderr.splitlines(keepends=True)
  imported = [line.split('|')[-1].strip() for line in lines if line.startswith('import time:')]
  slow = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'tqdm'}
  assert imported and not slow & {name.partition('.')[0] for name in imported}
  return done, ''.join(line for line in lines if not line.startswith('import time:'))


def test_the_config_file_is_executed_once_whatever_the_overrides(config_file, capsys):
  config_file.write_text('print("executed")' + CONFIG)
  expected = config_lib.Config(model=config_lib.ModelConfig(n_layer=3))
  assert _parse(config_file) == expected
  assert capsys.readouterr().out.count('executed') == 1
  many = [f'--config.train.{key}=7' for key in ('steps', 'seed', 'log_every', 'eval_every')]
  assert _parse(config_file, *many).train.seed == 7
  assert capsys.readouterr().out.count('executed') == 1


@pytest.mark.parametrize(
  ('arg', 'key', 'value'),
  [
    ('--config.model.n_layer=5', 'model.n_layer', 5),
    ('-config.model.n_layer=5', 'model.n_layer', 5),
    ('--config.optimizer.learning_rate=3e-4', 'optimizer.learning_rate', 3e-4),
    ('--config.optimizer.learning_rate=1', 'optimizer.learning_rate', 1.0),
    ('--config.mesh.data=-1', 'mesh.data', -1),
    ('--config.data.source=text:a=b', 'data.source', 'text:a=b'),
    ('--config.data.cache_dir=', 'data.cache_dir', ''),
    ('--config.model.bias=false', 'model.bias', False),
    ('--noconfig.model.bias', 'model.bias', False),
    ('--config.model.remat=true', 'model.remat', True),
    ('--config.model.remat', 'model.remat', True),
    ('--config.init_from=runs/x', 'init_from', 'runs/x'),
  ],
)
def test_an_override_has_the_type_of_its_key_and_changes_no_other(config_file, arg, key, value):
  found = {knob.key: knob.value for knob in knobs.knobs(_parse(config_file, arg))}
  others = {knob.key: knob.value for knob in knobs.knobs(_parse(config_file))}
  assert type(found[key]) is type(value) and found[key] == value
  del found[key], others[key]
  assert found == others


def test_the_last_of_several_overrides_and_config_files_counts(config_file, tmp_path):
  args = ('--config.model.n_layer=5', '--config.model.n_layer=6')
  assert _parse(tmp_path / 'none.py', f'--config={config_file}', *args).model.n_layer == 6


def test_a_command_keeps_its_own_flags(config_file):
  argv = ['train', '--workdir', 'there', f'--config={config_file}', '-config.train.steps=200']
  values, config = cli.parse(train.define_flags(), argv, takes_config=True)
  assert (values.workdir, config.train.steps) == ('there', 200)
  assert values.config == str(config_file)


@pytest.mark.parametrize(
  ('arg', 'key'),
  [
    ('--config.model.n_layer=four', 'model.n_layer'),
    ('--config.model.n_layer=4.5', 'model.n_layer'),
    ('--config.optimizer.b1=x', 'optimizer.b1'),
    ('--config.optimizer.b1=nan', 'optimizer.b1'),
    ('--config.model.bias=maybe', 'model.bias'),
    ('--config.model.n_head=5', 'model.n_embd'),
    # What no flag has is named as it was typed.
    *((arg, arg) for arg in ('--config.model.n_layers=4', '--config.model=4', '--zzz', 'stray')),
    *((arg, arg) for arg in ('--noconfig.model.bais', '--noconfig.model.n_layer', '--workdri=x')),
    *((arg, 'command line') for arg in ('--config.model.n_layer', '--noconfig.model.bias=3')),
    *((arg, 'command line') for arg in ('--workdir', '--flagfile=nonesuch')),
  ],
)
def test_a_mistake_is_named(config_file, arg, key):
  assert _keys(config_file, arg) == [key]


def test_mistakes_of_every_kind_are_reported_together(config_file):
  wrong = {
    'stray': 'stray',
    '--wrkdir=x': '--wrkdir=x',
    '--config.model.n_layers=4': '--config.model.n_layers=4',
    '--config.model.bias=maybe': 'model.bias',
    '--config.optimizer.b2=1.5': 'optimizer.b2',
    '--config.train.gradient_accumulation=7': 'train.batch_size',
    '--config.data.tokenizer=chars': 'data.tokenizer',
  }
  assert sorted(_keys(config_file, *wrong)) == sorted(wrong.values())


def test_flags_of_the_wrong_type_are_reported_together():
  argv = ['sample', '--top_k=few', '--seed=x', '--modle=y']
  error = raised.user_error(cli.parse, sample.define_flags(), argv, takes_config=False)
  assert [each.key for each in error.all] == ['--modle=y', 'top_k', 'seed']


def test_a_switch_is_on_or_off():
  def parse(arg):
    values = show_tokens.define_flags()
    cli.parse(values, ['show_tokens', arg], takes_config=False)
    return values.ids

  assert parse('--ids') is parse('--ids=true') is True
  assert parse('--noids') is parse('-ids=0') is False
  for arg in ('--ids=maybe', '-ids=2', '--ids='):
    assert raised.user_error(parse, arg).key == 'ids'


def test_missing_config_files_are_named_beside_those_that_exist(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'one.py').write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  for args in ([], ['--config=configs/two.py'], ['--config=configs']):
    error = raised.user_error(cli.parse, train.define_flags(), ['train', *args], takes_config=True)
    assert error.key.startswith('--config=') and 'configs/one.py' in error.fix


def test_a_config_of_gpt_jax_is_found_by_its_name_and_one_here_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)

  def parse():
    return cli.parse(train.define_flags(), ['', '--config=quickstart'], takes_config=True)[1]

  found = parse()
  assert found == validation.load(pathlib.Path(__file__).parents[1] / 'configs' / 'quickstart.py')
  error = raised.user_error(
    cli.parse, train.define_flags(), ['', '--config=qickstart'], takes_config=True
  )
  assert 'quickstart' in error.fix
  (tmp_path / 'quickstart').write_text(CONFIG)
  assert parse() != found


@pytest.mark.parametrize(
  ('source', 'key', 'detail'),
  [
    ('raise RuntimeError("no\\nluck")', 'config', 'RuntimeError: luck'),
    ('def get_config(:', 'config', 'SyntaxError'),
    ('import nonesuch', 'config', 'nonesuch'),
    ('def get_config():\n  return {"model": 1}', 'config', 'get_config()'),
    ('x = 1\n', 'config', 'get_config'),
    (CONFIG.replace('n_layer', 'n_layers'), 'config', 'n_layers'),
    (CONFIG.replace('=3', '=-3'), 'model.n_layer', '-3'),
    (CONFIG.replace('=3', '="3"'), 'model.n_layer', "'3'"),
    (
      'from gpt_jax.config import *\ndef get_config():\n  Config().train.step=5',
      'config',
      'step',
    ),
  ],
)
def test_a_config_file_that_fails_is_named(config_file, source, key, detail):
  config_file.write_text(source)
  error = raised.user_error(_parse, config_file)
  assert error.key == key and detail in str(error)
  assert key != 'config' or str(config_file) in str(error)


_RENDERED = [
  (errors.UserError('data.source', 'bad', 'use `text_field` or `model.n_head=2`'),
   'error: --config.data.source: bad; use `text_field` or --config.model.n_head=2'),
  (errors.UserError('workdir', 'bad'), 'error: --workdir: bad'),
  (errors.UserError('a/b.json', 'is `broken`', 'get it again'),
   'error: a/b.json: is `broken`; get it again'),
  (errors.UserError('prompt', "lacks '`' at position 4", 'set `data.lowercase` or not `'),
   "error: prompt: lacks '`' at position 4; set --config.data.lowercase or not `"),
  (errors.UserErrors([errors.UserError('data', 'bad'), errors.UserError('init_from', 'bad')]),
   'error: 2 problems:\n  data: bad\n  --config.init_from: bad'),
]  # fmt: skip


@pytest.mark.parametrize(('error', 'message'), _RENDERED)
def test_keys_are_spelled_as_flags_of_the_command(config_file, error, message):
  argv = ['train', f'--config={config_file}']
  values, _ = cli.parse(train.define_flags(), argv, takes_config=True)
  assert cli.render(error, values) == message


def test_a_command_may_have_flags_of_its_own_for_config_keys():
  error = errors.UserError('data.source', 'bad', 'use `data.text_field=x` or `stride`')
  aliases = {'data.source': 'data', 'data.text_field': 'text_field'}
  message = cli.render(error, evaluate.define_flags(), aliases=aliases)
  assert message == 'error: --data: bad; use --text_field=x or --stride'


@pytest.mark.parametrize(
  ('command', 'wrong'),
  [
    ('train', '--config.model.n_layer=0'),
    ('prepare', '--verify=maybe'),
    ('show_tokens', '--ids=maybe'),
    ('sample', '--top_k=few'),
    ('evaluate', '--stride=x'),
    ('convert', 'stray'),
    ('classify', '--json=maybe'),
    ('search', '--top=x'),
    ('inspect', '--top_k=few'),
    ('plot', '--outptu=x.png'),
    ('runs', 'stray'),
  ],
)
def test_a_mistake_ends_with_2_and_a_paragraph_before_jax_is_imported(config_file, command, wrong):
  config = [f'--config={config_file}'] if command in WITH_CONFIG else []
  done, messages = run_without_jax(f'gpt_jax.{command}', *config, wrong)
  assert done.returncode == 2 and done.stdout == ''
  assert messages.startswith('error: ') and messages.count('\n') == 1


def test_json_is_the_same_switch_wherever_it_is():
  defined = {name: module.define_flags() for name, module in COMMANDS.items()}
  having = {name: values['json'] for name, values in defined.items() if 'json' in values}
  reports = {'sample', 'classify', 'evaluate', 'bench', 'runs', 'search', 'show_tokens'}
  assert reports | {'checkpoints'} == set(having)
  assert {(flag.help, flag.default, flag.boolean) for flag in having.values()} == {
    (having['sample'].help, False, True)
  }


@pytest.mark.parametrize('command', COMMANDS)
def test_help_names_every_flag_and_key_before_jax_is_imported(command):
  done, messages = run_without_jax(f'gpt_jax.{command}', '--zzz', '--help')
  assert (done.returncode, messages) == (0, '')
  words = done.stdout.split()
  assert {f'--{name}' for name in COMMANDS[command].define_flags()} <= set(words)
  keys = {knob.key for knob in knobs.knobs(config_lib.Config())}
  used = {'prepare': {key for key in keys if key.startswith('data.')}, 'scaling': set()}
  wanted = used.get(command, keys) if command in WITH_CONFIG else set()
  assert {word for word in keys & set(words) if '.' in word} == {k for k in wanted if '.' in k}
  assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize('flag', ['--help', '-h', '-help', '--helpfull'])
def test_help_has_the_documentation_of_every_key(flag, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['train', flag])
  cli.run(train.main, train.define_flags(), doc='What it does.', takes_config=True)
  text = ' '.join(capsys.readouterr().out.split())
  assert text.startswith('What it does.')
  for knob in knobs.knobs(config_lib.Config()):
    assert ' '.join(knob.field.metadata['doc'].split()) in text, knob.key
    assert all(choice in text for choice in knob.field.metadata['choices'] or ())


@pytest.mark.parametrize(
  ('error', 'code', 'message'),
  [
    (errors.UserError('x', 'bad', 'fix it'), 2, 'error: x: bad; fix it\n'),
    (errors.Stopped('run it again'), 75, 'run it again\n'),
    (KeyboardInterrupt(), 130, ''),
    (BrokenPipeError(), 0, ''),
    (
      OSError(errno.ENOSPC, 'No space', 'a/b'),
      2,
      'error: a/b: cannot be used (No space); free some space, or use another disk\n',
    ),
    (
      OSError(errno.EROFS, 'Read-only', 'a/b'),
      2,
      'error: a/b: cannot be used (Read-only); use another place\n',
    ),
    (
      FileNotFoundError(errno.ENOENT, 'No such file'),
      2,
      'error: the current folder: cannot be used (No such file); is it, or its folder, there?\n',
    ),
  ],
)
def test_the_exit_code_says_how_a_command_ended(error, code, message, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['command'])
  with pytest.raises(SystemExit) as e:
    cli.run(mock.Mock(side_effect=error), flags.FlagValues(), doc='')
  assert e.value.code == code
  assert tuple(capsys.readouterr()) == ('', message)


def test_a_finished_command_returns_and_a_defect_is_not_hidden(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['command'])
  main = mock.Mock(side_effect=[None, ZeroDivisionError, OSError(errno.EBADF, 'no name')])
  cli.run(main, flags.FlagValues(), doc='')
  assert main.call_count == 1
  for defect in (ZeroDivisionError, OSError):
    with pytest.raises(defect):
      cli.run(main, flags.FlagValues(), doc='')


@pytest.mark.parametrize('error', [AssertionError(), RuntimeError('no backend\nof this name')])
def test_a_platform_without_devices_is_a_user_error(monkeypatch, error):
  monkeypatch.setattr(jax, 'devices', mock.Mock(side_effect=error))
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  found = raised.user_error(mesh.find_devices)
  assert found.key == 'devices' and 'JAX_PLATFORMS=cuda' in found.fix
