"""The command generates texts from prompts of every source, and reports mistakes before loading."""

import io
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import pytest

import gpt_jax
from gpt_jax import cli, config, knobs, oom, sample, user_cache
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import interactive, language_model, options, rows
from gpt_jax.generation import settings as settings_lib
from gpt_jax.weights import huggingface
from tests import random_params

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
LETTERS = '\n /:\\abcdefghijklmnopqrstuvwxyz☃'
SHORT = '--max_new_tokens=6'


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """A model directory with a tokenizer and random parameters."""
  path = tmp_path_factory.mktemp('model') / 'tiny'
  sizes: dict[str, Any] = {'n_layer': 1, 'n_head': 2, 'n_embd': 8, 'block_size': 16}
  tiny = config.ModelConfig(**sizes, vocab_size=len(LETTERS), pad_vocab_to=1)
  huggingface.write_model(path, tiny, random_params.make(tiny), char.CharTokenizer(LETTERS))
  return path


@pytest.fixture(scope='module')
def model(directory):
  loaded = gpt_jax.load(directory)
  return language_model.LanguageModel(loaded.config, loaded.params, loaded.tokenizer, step=1)


@pytest.fixture
def command(model, tmp_path, monkeypatch, capsys):
  """A function that runs the command with a loaded model: exit code, stdout, stderr."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(language_model, 'load', lambda path, **_: model)

  def run(*args, stdin=b''):
    monkeypatch.setattr(sys, 'argv', ['sample', '--model=some/run', *args])
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin), 'utf-8'))
    capsys.readouterr()
    code: Any = 0
    try:
      cli.run(sample.main, sample.define_flags(), doc='')
    except SystemExit as e:
      code = e.code
    return code, *capsys.readouterr()

  return run


def _process(directory, *args, terminal=subprocess.PIPE, **env):
  """Starts the command in its own process."""
  return subprocess.Popen(
    [sys.executable, '-m', 'gpt_jax.sample', f'--model={directory}', *args],
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': '', **env},
    stdin=terminal,
    stdout=terminal,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )


def _keys(messages):
  """What the reported problems begin with; of several, a heading comes first."""
  first, *others = messages.partition('error: ')[2].splitlines()
  return [line.strip().partition(': ')[0] for line in others or [first]]


def test_every_knob_is_a_flag_with_its_type_default_and_documentation():
  values = sample.define_flags()
  for knob in knobs.knobs(settings_lib.Settings()):
    flag = values[knob.key]
    kind: Any = knob.field.type
    assert flag.default == knob.value and flag.parser.flag_type() == kind.__name__
    assert flag.help.startswith(knob.field.metadata['doc'])
    for limit, words, _ in knob.field.metadata['limits']:
      assert f'{words} {limit}' in flag.help.lower()


def test_flags_reach_the_model(command, model, monkeypatch):
  generate = mock.Mock(return_value=model.generate('', max_new_tokens=2))
  monkeypatch.setattr(language_model.LanguageModel, 'generate', generate)
  args = ['--top_p=0.5', '--min_new_tokens=2', '--seed=7', '--stop=\\n', '--stop=x', '--ban=id:3']
  args += ['--ban=e', '--logit_bias=t:-2', '--logit_bias=::1', '--draft=small', '--json']
  assert command(*args)[0] == 0
  plain: dict[str, Any] = {'top_p': 0.5, 'min_new_tokens': 2, 'seed': 7, 'stop': ['\n', 'x']}
  request = options.make(**plain, ban=[3, 'e'], logit_bias={'t': -2, ':': 1}, draft=model)
  given = generate.call_args.kwargs
  assert (given['request'], given['log_probs']) == (request, False)


def test_the_type_of_the_weights_and_of_those_of_a_draft_is_chosen_by_a_flag(
  command, model, monkeypatch
):
  load = mock.Mock(return_value=model)
  monkeypatch.setattr(language_model, 'load', load)
  assert command(SHORT, '--dtype=int8', '--draft=another/run')[0] == 0
  assert [call.kwargs for call in load.call_args_list] == [{'dtype': 'int8', 'mesh': None}] * 2


def test_what_is_streamed_is_what_a_batch_gives(command, model):
  expected = [s.text for s in model.generate(['some ', 'some '], max_new_tokens=30)]
  code, out, messages = command('--prompt=some ', '--max_new_tokens=30')
  assert (code, out) == (0, f'some {expected[0]}\n')
  lines = messages.splitlines()
  assert lines[0] == 'some/run, step 1' and 'context of 16 tokens' in lines[1] and len(lines) == 2
  code, out, _ = command('--prompt=some ', '--max_new_tokens=30', '--num_samples=2')
  assert out == f'some {expected[0]}\n{"-" * 40}\nsome {expected[1]}\n'


def test_a_text_is_printed_while_it_is_generated(command, monkeypatch):
  written: list[str] = []

  class Out(io.StringIO):
    def flush(self):
      written.append(self.getvalue())

  monkeypatch.setattr(sys, 'stdout', Out())
  command('--prompt=some', '--max_new_tokens=40')
  assert len(set(written)) > 3 and written[0].startswith('some')


@pytest.mark.parametrize('source', ['~/p.txt', '-'])
def test_prompts_of_a_file_and_of_standard_input(command, source, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  lines = 'some\r\n\n☃ to'.encode()
  for data in (lines, lines + b'\n'):
    (tmp_path / 'p.txt').write_bytes(data)
    code, out, messages = command(f'--prompts={source}', SHORT, '--json', stdin=data)
    assert code == 0, messages
    assert [json.loads(line)['prompt'] for line in out.splitlines()] == ['some', '', '☃ to']
    assert '☃' in out


def test_json_has_all_samples_of_each_prompt_in_order(command, model):
  args = ['--prompts=-', '--num_samples=2', SHORT, '--json', '--log_probs']
  code, out, _ = command(*args, stdin=b'to\nsome\n')
  prompts = ['to', 'to', 'some', 'some']
  expected = model.generate(prompts, max_new_tokens=6, log_probs=True)
  records = [json.loads(line) for line in out.splitlines()]
  assert code == 0 and [record.pop('index') for record in records] == [0, 1, 0, 1]
  for record, prompt, one in zip(records, prompts, expected, strict=True):
    assert record.pop('prompt') == prompt
    assert record.pop('log_probs') == pytest.approx(one.log_probs)
    assert record == {'text': one.text, 'tokens': one.tokens, 'ended': 'length'}
  assert 'log_probs' not in json.loads(command(SHORT, '--json')[1])


WRONG = ['--model=', '--prompts=none.txt', '--prompts=empty.txt', '--prompt=\udcff', '--log_probs']
WRONG += ['--stop=\\q', '--stop=a\\', '--logit_bias=e', '--logit_bias=e:much']


@pytest.mark.parametrize(
  ('args', 'keys'),
  [
    *(([arg], [arg.partition('=')[0]]) for arg in WRONG),
    (['--prompts=bytes.txt'], ['bytes.txt:2', 'bytes.txt:3']),
    (['--prompts=bytes.txt', '--prompt='], ['--prompt']),
    (['--interactive', '--prompt=x', '--json'], ['--prompt', '--json']),
    (['--num_samples=0', '--top_p=2', '--stop='], ['--num_samples', '--stop', '--top_p']),
    (['--min_new_tokens=9', SHORT], ['--min_new_tokens']),
  ],
)
def test_mistakes_come_before_the_model_is_loaded(command, monkeypatch, tmp_path, args, keys):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'bytes.txt').write_bytes(b'some\n\xff\nto\xff\nto')
  monkeypatch.setattr(language_model, 'load', lambda path, **_: pytest.fail('it was loaded'))
  code, out, messages = command(*args)
  assert (code, out, _keys(messages)) == (2, '', keys) and messages.startswith('error: ')


@pytest.mark.parametrize(
  ('args', 'keys'),
  [
    (['--prompts=p.txt'], ['p.txt:2', 'p.txt:3']),
    (['--prompts=p.txt', '--num_samples=3'], ['p.txt:2', 'p.txt:3']),
    (['--prompts=one.txt'], ['one.txt:1']),
    (['--prompt=Q'], ['--prompt']),
    (['--ban=Q', '--logit_bias=id:99:1'], ['--logit_bias', '--ban']),
    (['--num_beams=2', '--max_new_tokens=17'], ['--max_new_tokens']),
  ],
)
def test_all_that_the_model_refuses_is_reported(command, tmp_path, args, keys):
  (tmp_path / 'p.txt').write_text(f'some\nQ\n{"s" * 17}\n')
  (tmp_path / 'one.txt').write_text('Q')
  code, out, messages = command(SHORT, *args)
  assert (code, out, _keys(messages)) == (2, '', keys)


def test_stats_leave_compiling_out_of_the_rate():
  texts = [rows.Sample('', [1] * 11, None, 'length', 0, accepted) for accepted in (0, 11)]
  table = sample._stats(8.0, [10.0, 15.0, 16.0, 17.0], texts, draft=True)
  figures = {line[:16].strip(): line[16:].split()[0] for line in table.splitlines()}
  expected = {'load': '2.00', 'first token': '5.00', 'other tokens': '2.00', 'tokens': '22'}
  assert figures == expected | {'accepted': '50%', 'rate': '10'}
  assert 'accepted' not in sample._stats(8.0, [10.0, 15.0], texts, draft=False)


@pytest.mark.parametrize(('count', 'tokens'), [(1, '6 in 1 text\n'), (3, '18 in 3 texts\n')])
def test_stats_go_to_standard_error(command, count, tokens):
  code, out, messages = command(SHORT, '--stats', f'--num_samples={count}')
  names = [line[:16].strip() for line in messages.splitlines()[1:]]
  assert code == 0 and names == ['load', 'first token', 'other tokens', 'tokens', 'rate']
  assert 'first token' not in out and tokens in messages


def test_at_a_terminal_ctrl_c_ends_the_text_and_ctrl_d_the_session(directory, tmp_path):
  main, side = pty.openpty()
  args = ['--interactive', '--max_new_tokens=100000000']
  process = _process(directory, *args, terminal=side, XDG_CACHE_HOME=str(tmp_path))
  os.close(side)
  seen = b''

  def wait_for(word, count):
    nonlocal seen
    while seen.count(word) < count:
      assert len(seen) < 1 << 20
      seen += os.read(main, 4096)

  wait_for(b'> ', 1)
  os.write(main, b'some text\n')
  wait_for(b'some text', 2)  # the line as it was typed, and the beginning of the text
  os.read(main, 1)
  process.send_signal(signal.SIGINT)
  wait_for(b'> ', 2)
  os.write(main, b'\x04')
  _, messages = process.communicate(timeout=60)
  os.close(main)
  assert process.returncode == 0 and b'Traceback' not in messages
  assert (tmp_path / 'gpt_jax' / 'history').read_text().splitlines()[-1] == 'some text'


@pytest.mark.parametrize(
  ('args', 'end'), [([], 'signal'), ([], 'close'), (['--num_samples=2'], 'close')]
)
def test_ctrl_c_and_a_closed_pipe_end_it_quietly(directory, args, end):
  process = _process(directory, *args, SHORT if args else '--max_new_tokens=100000000')
  assert process.stdout and process.stderr
  if not args:
    process.stdout.read(20)
  if end == 'signal':
    process.send_signal(signal.SIGINT)
  process.stdout.close()
  assert process.stderr.read().decode() == f'{directory}\n'
  assert process.wait() == (130 if end == 'signal' else 0)


def test_a_second_start_compiles_nothing(directory, tmp_path):
  on = {'JAX_ENABLE_COMPILATION_CACHE': 'true', 'JAX_LOG_COMPILES': '1'}
  on['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  env = {**on, 'XDG_CACHE_HOME': str(tmp_path)}
  first, second = (_process(directory, SHORT, **env).communicate() for _ in range(2))
  folder = tmp_path / 'gpt_jax' / 'xla'
  assert any('advance' in path.name for path in folder.iterdir())
  assert folder.stat().st_mode & 0o077 == 0
  assert first[0] == second[0] and first[0]
  assert first[1].count(b'cache hit') < second[1].count(b'cache hit'), second[1]


def test_without_a_folder_to_write_nothing_is_kept_and_nothing_fails(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  on = mock.Mock(jax_enable_compilation_cache=True)
  monkeypatch.setattr(jax, 'config', on)
  user_cache.enable_compilation_cache()
  assert not on.update.called
  with interactive.line_history():
    pass


def test_running_out_of_memory_names_what_to_lower(command, monkeypatch):
  full = 'RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes'
  fail = mock.Mock(side_effect=jax.errors.JaxRuntimeError(full))
  monkeypatch.setattr(language_model.LanguageModel, 'generate', fail)
  monkeypatch.setattr(language_model.LanguageModel, 'stream', fail)
  for args, end in ([], 2), (['--num_samples=2'], 2), (['--interactive'], 0):
    code, _, messages = command(*args, stdin=b'some\n')
    assert code == end and 'lower --num_samples' in messages


def test_other_failures_of_a_device_are_not_hidden():
  defect = jax.errors.JaxRuntimeError('INTERNAL: a defect')
  with pytest.raises(type(defect), match='INTERNAL'), oom.oom_as_user_error('buy more'):
    raise defect


def test_a_model_without_tokenizer_is_refused(command, model, monkeypatch):
  bare = language_model.LanguageModel(model.config, model.params, None)
  monkeypatch.setattr(language_model, 'load', lambda path, **_: bare)
  code, out, messages = command()
  assert (code, out) == (2, '') and messages.startswith('error: --model: ')
