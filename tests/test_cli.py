"""The command line is typed, its mistakes are told at once, and neither needs JAX."""

import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from gpt_jax import cli, errors, prepare, sample, tokenize, train
from gpt_jax import config as config_lib

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CONFIG = """
from gpt_jax import config as config_lib

def get_config():
  return config_lib.Config(model=config_lib.ModelConfig(n_layer=3))
"""
_COMMANDS = {'train': train, 'prepare': prepare, 'sample': sample, 'tokenize': tokenize}
_WITH_CONFIG = {'train', 'prepare'}


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_CONFIG)
  return path


def _parse(path, *args):
  """The config that a command line with `path` and `args` gives."""
  values = train.define_flags()
  cli.parse(values, ['train', f'--config={path}', *args], takes_config=True)
  return values.config


def _refusal(path, *args):
  with pytest.raises(errors.UserError) as e:
    _parse(path, *args)
  return str(e.value)


def _imports(module, *args):
  """The finished command, its messages, and the modules that it imported."""
  command = [sys.executable, '-X', 'importtime', '-m', module, *args]
  done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
  lines = done.stderr.splitlines(keepends=True)
  imported = {line.split('|')[-1].strip() for line in lines if line.startswith('import time:')}
  messages = ''.join(line for line in lines if not line.startswith('import time:'))
  return done, messages, imported


def _packages(modules):
  return {name.partition('.')[0] for name in modules}


def test_the_config_file_gives_the_values(config_file):
  expected = config_lib.Config()
  expected.model.n_layer = 3
  assert _parse(config_file) == expected


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
    ('--config.data.tokenizer=char', 'data.tokenizer', 'char'),
    ('--config.model.bias=false', 'model.bias', False),
    ('--noconfig.model.bias', 'model.bias', False),
    ('--config.model.remat=true', 'model.remat', True),
    ('--config.model.remat', 'model.remat', True),
  ],
)
def test_an_override_has_the_type_of_its_key(config_file, arg, key, value):
  found = {knob.key: knob.value for knob in config_lib.knobs(_parse(config_file, arg))}
  others = {knob.key: knob.value for knob in config_lib.knobs(_parse(config_file))}
  assert type(found[key]) is type(value) and found[key] == value
  del found[key], others[key]
  assert found == others


def test_the_last_of_several_overrides_counts(config_file):
  args = ('--config.model.n_layer=5', '--config.model.n_layer=6')
  assert _parse(config_file, *args).model.n_layer == 6


def test_a_command_keeps_its_own_flags(config_file):
  values = train.define_flags()
  cli.parse(
    values, ['train', '--workdir', 'there', f'--config={config_file}', '-config.train.steps=200'],
    takes_config=True,
  )  # fmt: skip
  assert (values.workdir, values.config.train.steps) == ('there', 200)


@pytest.mark.parametrize(
  ('arg', 'words'),
  [
    ('--config.model.n_layer=four', ['model.n_layer: ', "'four'", 'whole number']),
    ('--config.model.n_layer=4.5', ['model.n_layer: ', "'4.5'", 'whole number']),
    ('--config.model.n_layer', ['model.n_layer: ', '--config.model.n_layer=VALUE']),
    ('--config.optimizer.b1=x', ['optimizer.b1: ', "'x'", 'a number']),
    ('--config.optimizer.b1=nan', ['optimizer.b1: ', 'nan', 'finite']),
    ('--config.model.bias=maybe', ['model.bias: ', "'maybe'", 'true or false']),
    ('--config.model.n_layers=4', ['model.n_layers: ', 'did you mean model.n_layer?']),
    ('--noconfig.model.bais', ['model.bais: ', 'did you mean model.bias?']),
    ('--config.model=4', ['model: ', 'no such key']),
    ('--config.=4', ['no such']),
    ('--config.model.n_head=5', ['model.n_embd: 768', 'divisible by model.n_head (5)']),
    ('--workdri=there', ['--workdri=there: ', 'did you mean --workdir?']),
    ('--workdir', ['--workdir', 'alue']),
    ('--zzz', ['--zzz: ', '--help']),
    ('stray', ['stray: ', '--name=value']),
  ],
)
def test_a_mistake_is_named_with_the_remedy(config_file, arg, words):
  message = _refusal(config_file, arg)
  assert all(word in message for word in words), message


def test_only_a_switch_can_be_negated(config_file):
  message = _refusal(config_file, '--noconfig.model.n_layer')
  assert 'model.n_layer: ' in message and '--noconfig.model.n_layer=' not in message
  assert '--noconfig.model.bias=3' in _refusal(config_file, '--noconfig.model.bias=3')


def test_a_file_of_flags_that_is_missing_is_named(config_file):
  assert 'nonesuch' in _refusal(config_file, '--flagfile=nonesuch')


def test_mistakes_of_every_kind_are_told_together(config_file):
  message = _refusal(
    config_file,
    'stray',
    '--wrkdir=x',
    '--config.model.n_layers=4',
    '--config.model.bias=maybe',
    '--config.train.steps',
    '--config.optimizer.b2=1.5',
    '--config.train.gradient_accumulation=7',
    '--config.data.tokenizer=chars',
  )
  for start in (
    'stray: ',
    '--wrkdir=x: ',
    'model.n_layers: ',
    "model.bias: 'maybe'",
    'train.steps: ',
    'optimizer.b2: 1.5',
    'train.batch_size: 64',
    "data.tokenizer: 'chars'",
  ):
    assert len(re.findall(f'^  {re.escape(start)}', message, re.MULTILINE)) == 1, start
  assert message.startswith('8 ')


def test_flags_of_the_wrong_type_are_told_together():
  with pytest.raises(errors.UserError) as e:
    cli.parse(
      sample.define_flags(), ['sample', '--top_k=few', '--seed=x', '--modle=y'], takes_config=False
    )
  for word in ('top_k', 'few', 'seed', '--modle=y: ', 'did you mean --model?'):
    assert word in str(e.value), word


@pytest.mark.parametrize(
  ('arg', 'value'),
  [
    ('--ids', True),
    ('--noids', False),
    ('--ids=true', True),
    ('-ids=0', False),
    ('--ids=maybe', None),
    ('-ids=2', None),
    ('--ids=', None),
  ],
)
def test_a_switch_is_on_or_off(arg, value):
  values = tokenize.define_flags()
  if value is None:
    with pytest.raises(errors.UserError) as e:
      cli.parse(values, ['tokenize', arg], takes_config=False)
    given = arg.partition('=')[2]
    assert f'--ids: {given!r} must be true or false' in str(e.value)
  else:
    cli.parse(values, ['tokenize', arg], takes_config=False)
    assert values.ids is value


def test_without_a_config_those_at_hand_are_listed(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'one.py').write_text(_CONFIG)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError) as e:
    cli.parse(train.define_flags(), ['train'], takes_config=True)
  assert '--config=FILE.py is missing' in str(e.value) and 'configs/one.py' in str(e.value)
  message = _refusal('configs/two.py')
  assert 'configs/two.py does not exist' in message and 'configs/one.py' in message


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('raise RuntimeError("no\\nluck")', ['RuntimeError', 'luck']),
    ('def get_config():\n  return 1 / 0', ['ZeroDivisionError', 'division by zero']),
    ('def get_config(:', ['SyntaxError', 'line 1']),
    ('import nonesuch', ['ModuleNotFoundError', 'nonesuch']),
    ('def get_config():\n  return {"model": 1}', ['get_config()', 'gpt_jax.config.Config']),
    ('def get_config():\n  pass', ['get_config()', 'gpt_jax.config.Config']),
    (_CONFIG.replace('n_layer', 'n_layers'), ['TypeError', 'n_layers']),
    (_CONFIG.replace('=3', '=-3'), ['model.n_layer: -3', 'at least 1']),
    (_CONFIG.replace('=3', '="3"'), ['model.n_layer: ', "'3'", 'int']),
  ],
)
def test_a_config_file_that_fails_is_named(tmp_path, source, words):
  path = tmp_path / 'mine.py'
  path.write_text(source)
  message = _refusal(path)
  assert all(word in message for word in words), message
  assert 'model.n_layer: ' in message or str(path) in message


def test_a_config_file_without_a_config_is_named(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('x = 1\n')
  done, messages, _ = _imports('gpt_jax.train', f'--config={path}')
  assert done.returncode == 2 and messages.startswith('error: ') and 'Traceback' not in messages
  assert str(path) in messages and 'get_config' in messages


def test_a_key_misspelt_in_a_config_file_is_not_ignored(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from gpt_jax import config as config_lib\n\ndef get_config():\n'
    '  config = config_lib.Config()\n  config.train.step = 5\n  return config\n'
  )
  message = _refusal(path)
  assert "'step'" in message or 'train.step:' in message


@pytest.mark.parametrize(
  ('command', 'wrong'),
  [
    ('train', '--config.model.n_layer=0'),
    ('train', '--config=nonesuch.py'),
    ('train', 'stray'),
    ('prepare', '--config.data.tokenizer=chars'),
    ('prepare', '--verify=maybe'),
    ('tokenize', '--ids=maybe'),
    ('sample', '--top_k=few'),
  ],
)
def test_a_mistake_ends_with_2_and_a_paragraph_before_jax_is_imported(config_file, command, wrong):
  config = [f'--config={config_file}'] if command in _WITH_CONFIG else []
  done, messages, imported = _imports(f'gpt_jax.{command}', *config, wrong)
  assert done.returncode == 2 and done.stdout == ''
  assert messages.startswith('error: ') and 'Traceback' not in messages
  assert 'gpt_jax.config' in imported
  assert not {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'tqdm'} & _packages(imported)


@pytest.mark.parametrize('command', _COMMANDS)
def test_help_tells_every_flag_and_key_before_jax_is_imported(command):
  done, messages, imported = _imports(f'gpt_jax.{command}', '--zzz', '--help')
  assert (done.returncode, messages) == (0, '')
  assert not {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'tqdm'} & _packages(imported)
  words = done.stdout.split()
  assert {f'--{name}' for name in _COMMANDS[command].define_flags()} <= set(words)
  keys = {knob.key for knob in config_lib.knobs(config_lib.Config())}
  assert keys & set(words) == (keys if command in _WITH_CONFIG else set())
  assert ('--config' in words) == (command in _WITH_CONFIG)
  assert all(len(line) <= 100 for line in done.stdout.splitlines())


@pytest.mark.parametrize('flag', ['--help', '-h', '-help', '--helpfull'])
def test_help_has_the_documentation_of_every_key(flag, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['train', flag])
  with pytest.raises(SystemExit) as e:
    cli.run(train.main, train.define_flags(), doc='What it does.', takes_config=True)
  assert e.value.code == 0
  text = ' '.join(capsys.readouterr().out.split())
  assert text.startswith('What it does.')
  for knob in config_lib.knobs(config_lib.Config()):
    assert ' '.join(knob.field.metadata['doc'].split()) in text, knob.key
    assert all(choice in text for choice in knob.field.metadata['choices'] or ())


@pytest.mark.parametrize(
  ('raised', 'code', 'message'),
  [
    (errors.UserError('mend it'), 2, 'error: mend it\n'),
    (errors.Stopped('run it again'), 75, 'run it again\n'),
    (KeyboardInterrupt(), 130, ''),
  ],
)
def test_the_exit_code_tells_how_a_command_ended(raised, code, message, monkeypatch, capsys):
  def main(values):
    raise raised

  monkeypatch.setattr(sys, 'argv', ['command'])
  with pytest.raises(SystemExit) as e:
    cli.run(main, flags.FlagValues(), doc='', takes_config=False)
  assert e.value.code == code
  assert tuple(capsys.readouterr()) == ('', message)


def test_a_finished_command_returns_and_a_defect_is_not_hidden(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['command'])
  seen: list[flags.FlagValues] = []
  cli.run(seen.append, flags.FlagValues(), doc='', takes_config=False)
  assert len(seen) == 1

  def main(values):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    cli.run(main, flags.FlagValues(), doc='', takes_config=False)
