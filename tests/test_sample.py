"""The command writes texts from prompts of every source, and tells mistakes before it loads."""

import io
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
from typing import Any

import jax
import pytest

import gpt_jax
from gpt_jax import cli, config, device_memory, errors, loading, sample, user_cache
from gpt_jax.generation import interactive, parsing, results
from gpt_jax.generation import text as text_lib
from tests import tiny_run

_ROOT = pathlib.Path(gpt_jax.__file__).resolve().parents[1]
TEXT = 'some text to learn from, /: \\ ☃\n' * 40
SHORT = '--max_new_tokens=6'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The workdir of a run of a step, which knows the letters of TEXT."""
  return tiny_run.train(tmp_path_factory.mktemp('trained'), TEXT, block_size=16, steps=1)


@pytest.fixture(scope='module')
def model(trained):
  return loading.load(trained).model


@pytest.fixture
def command(trained, model, tmp_path, monkeypatch, capsys):
  """A function that runs the command, its model already compiled: exit code, stdout, stderr."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(loading, 'load', lambda path: loading.Loaded(model, 1))

  def run(*args, stdin=b''):
    monkeypatch.setattr(sys, 'argv', ['sample', f'--model={trained}', *args])
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin), 'utf-8'))
    capsys.readouterr()
    code: Any = 0
    try:
      cli.run(sample.main, sample.define_flags(), doc='', takes_config=False)
    except SystemExit as e:
      code = e.code
    return code, *capsys.readouterr()

  return run


def _process(trained, *args, **env):
  """The command, started in a process of its own."""
  return subprocess.Popen(
    [sys.executable, '-m', 'gpt_jax.sample', f'--model={trained}', *args],
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': '', **env},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def test_every_knob_is_a_flag_with_its_type_default_and_documentation():
  values = sample.define_flags()
  for knob in config.knobs(config.GenerationConfig()):
    flag = values[knob.key]
    kind: Any = knob.field.type
    assert flag.default == knob.value and flag.parser.flag_type() == kind.__name__
    assert flag.help.startswith(knob.field.metadata['doc'])
    for limit, words, _ in knob.field.metadata['limits']:
      assert f'{words} {limit}' in flag.help.lower()


def test_a_value_reaches_the_model(command, monkeypatch):
  given: dict[str, Any] = {}
  real = text_lib.TextModel.generate

  def spy(self, prompts, **arguments):
    given.update(arguments)
    return real(self, prompts, max_new_tokens=2, progress=arguments['progress'])

  monkeypatch.setattr(text_lib.TextModel, 'generate', spy)
  args = ['--top_p=0.5', '--min_new_tokens=2', '--seed=7', '--stop=\\n', '--stop=x', '--ban=id:3']
  code, *_ = command(*args, '--ban=e', '--logit_bias=t:-2', '--logit_bias=::1', '--json')
  assert code == 0
  assert (given['top_p'], given['min_new_tokens'], given['seed']) == (0.5, 2, 7)
  assert given['stop'] == ['\n', 'x'] and given['ban'] == [3, 'e']
  assert given['logit_bias'] == {'t': -2, ':': 1} and not given['log_probs']
  assert given['temperature'] == config.GenerationConfig().temperature


def test_what_is_streamed_is_what_a_batch_gives(command, model):
  expected = [s.text for s in model.generate(['some ', 'some '], max_new_tokens=30)]
  code, out, messages = command('--prompt=some ', '--max_new_tokens=30')
  assert (code, out) == (0, f'some {expected[0]}\n')
  assert messages.count('\n') == 2 and '16 tokens was full' in messages
  code, out, _ = command('--prompt=some ', '--max_new_tokens=30', '--num_samples=2')
  assert out == f'some {expected[0]}\n{"-" * 40}\nsome {expected[1]}\n'


def test_a_stream_ends_with_the_sample_that_a_batch_gives(model):
  (plain,) = model.generate('some', max_new_tokens=9)
  stop = [f'{plain.text[-1]}…']  # could have been about to begin
  parts: list[str] = []
  stream = model.stream('some', max_new_tokens=9, stop=stop)
  while True:
    try:
      parts.append(next(stream))
    except StopIteration as end:
      assert end.value == plain and ''.join(parts) == plain.text
      break


def test_a_text_comes_while_it_is_written(command, monkeypatch):
  written: list[str] = []

  class Out(io.StringIO):
    def flush(self):
      written.append(self.getvalue())

  monkeypatch.setattr(sys, 'stdout', Out())
  command('--prompt=some', '--max_new_tokens=40')
  assert len(set(written)) > 3 and written[0] == 'some'


def test_beams_are_printed_when_they_are_done(model, capsys, monkeypatch):
  done = results.Sample('text', [1], None, 'length', 0, 0)
  monkeypatch.setattr(text_lib.TextModel, 'generate', lambda *_, **values: [done])
  settings = config.GenerationConfig(num_beams=2)
  assert interactive.write(model, 'some', settings, {}) == done
  assert capsys.readouterr().out == 'text\n'


@pytest.mark.parametrize('source', ['p.txt', '-'])
def test_prompts_of_a_file_and_of_standard_input(command, source, tmp_path):
  lines = 'some\r\n\n☃ to'.encode()
  (tmp_path / 'p.txt').write_bytes(lines)
  code, out, messages = command(f'--prompts={source}', SHORT, '--json', stdin=lines)
  assert code == 0, messages
  assert [json.loads(line)['prompt'] for line in out.splitlines()] == ['some', '', '☃ to']
  assert '☃' in out
  code, with_end, _ = command(f'--prompts={source}', SHORT, '--json', stdin=lines)
  assert with_end == out


def test_json_has_all_of_each_text(command, model):
  code, out, _ = command('--prompt=to', '--num_samples=2', SHORT, '--json', '--log_probs')
  expected = model.generate(['to'] * 2, max_new_tokens=6, log_probs=True)
  records = [json.loads(line) for line in out.splitlines()]
  assert code == 0 and [record.pop('index') for record in records] == [0, 1]
  for record, one in zip(records, expected, strict=True):
    assert record.pop('prompt') == 'to'
    assert record.pop('log_probs') == pytest.approx(one.log_probs)
    assert record == {'text': one.text, 'tokens': one.tokens, 'ended': 'length'}
  assert 'log_probs' not in json.loads(command(SHORT, '--json')[1])


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--prompts=none.txt'], ['--prompts=none.txt cannot be read']),
    (['--prompts=empty.txt'], ['empty.txt is empty']),
    (['--prompts=bytes.txt'], ['bytes.txt:2 is not UTF-8', 'bytes.txt:3', 'byte 2']),
    (['--prompts=bytes.txt', '--prompt='], ['--prompt and --prompts']),
    (['--interactive', '--prompt=x', '--json'], ['--prompt does', '--json does']),
    (['--prompt=\udcff'], ['--prompt is not UTF-8']),
    (['--log_probs'], ['--json']),
    (
      ['--num_samples=0', '--top_p=2', '--stop='],
      ['3 things', '--top_p: 2', '--stop=', '_samples'],
    ),
    (['--stop=\\q'], ['--stop=\\q', '\\n is a line break']),
    (['--stop=a\\'], ['--stop=a\\', 'unknown']),
    (['--logit_bias=e'], ['--logit_bias=e: ', 'TOKEN:VALUE']),
    (['--logit_bias=e:much'], ['--logit_bias=e:much: ']),
    (['--min_new_tokens=9', SHORT], ['--min_new_tokens: 9', '6']),
    (['--contrastive_alpha=0.5'], ['--top_k: 200', 'contrastive']),
  ],
)
def test_what_cannot_be_is_told_before_the_model_is_loaded(
  command, monkeypatch, tmp_path, args, words
):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'bytes.txt').write_bytes(b'some\n\xff\nto\xff\nto')
  monkeypatch.setattr(loading, 'load', lambda path: pytest.fail('it was loaded'))
  code, out, messages = command(*args)
  assert (code, out) == (2, '') and messages.startswith('error: ')
  assert all(word in messages for word in words), messages
  assert messages.count('must be mended') <= 1


@pytest.mark.parametrize(
  ('args', 'words'),
  [
    (['--prompts=p.txt'], ['2 things', 'p.txt:2: the text has characters', "'Q'", 'p.txt:3: 17 t']),
    (['--ban=Q', '--logit_bias=id:99:1'], ['--ban: ', '--logit_bias: ', '99']),
  ],
)
def test_all_that_the_model_cannot_take_is_told(command, tmp_path, args, words):
  (tmp_path / 'p.txt').write_text(f'some\nQ\n{"s" * 17}\n')
  code, out, messages = command(SHORT, *args)
  assert (code, out) == (2, '')
  assert all(word in messages for word in words), messages


def test_each_prompt_has_its_samples_in_order(command, model):
  code, out, _ = command('--prompts=-', '--num_samples=2', SHORT, '--json', stdin=b'to\nsome\n')
  records = [json.loads(line) for line in out.splitlines()]
  places = [(record['prompt'], record['index']) for record in records]
  assert code == 0 and places == [('to', 0), ('to', 1), ('some', 0), ('some', 1)]
  expected = model.generate(['to', 'to', 'some', 'some'], max_new_tokens=6)
  assert [record['text'] for record in records] == [one.text for one in expected]


def test_the_rate_leaves_out_what_was_compiled(monkeypatch):
  clock = [10.0]
  monkeypatch.setattr(sample.time, 'monotonic', lambda: clock[0])
  watch = sample._Watch(8.0)
  for clock[0] in (15.0, 16.0, 17.0):
    watch.look()
  texts = [results.Sample('', [1] * 11, None, 'length', 0, guessed) for guessed in (0, 11)]
  rows = {line[:16].strip(): line[16:] for line in watch.table(texts, draft=True).splitlines()}
  assert rows['load'] == '2.00 s' and rows['first token'].startswith('5.00 s')
  assert rows['the others'] == '2.00 s' and rows['tokens'] == '22 in 2 texts'
  assert rows['rate'].startswith('10 tokens/s') and rows['draft'].startswith('guessed 50%')
  assert 'draft' not in watch.table(texts, draft=False)


def test_stats_are_told_on_standard_error(command):
  for args in ([], ['--num_samples=3']):
    code, out, messages = command(SHORT, '--stats', *args)
    names = [line[:16].strip() for line in messages.splitlines()[1:]]
    assert code == 0 and names == ['load', 'first token', 'the others', 'tokens', 'rate']
    assert 'first token' not in out
    assert ('18 in 3 texts' if args else '6 in 1 text\n') in messages


def test_a_draft_is_loaded_and_used(command, model, monkeypatch):
  loaded: list[str] = []
  given: list[Any] = []

  def load(path):
    loaded.append(path)
    return loading.Loaded(model, None)

  monkeypatch.setattr(loading, 'load', load)
  real = text_lib.TextModel.stream

  def spy(self, prompt, *, draft=None, **arguments):
    given.append(draft)
    return real(self, prompt, **arguments)

  monkeypatch.setattr(text_lib.TextModel, 'stream', spy)
  assert command(SHORT, '--draft=small')[0] == 0
  assert loaded[1:] == ['small'] and given == [model]


def test_a_conversation(command, model):
  def written(prompt, **values):
    (one,) = model.generate(prompt, **{'max_new_tokens': 6, **values})
    return f'{prompt}{one.text}\n'

  lines = ['some', 'some', '', '/set max_new_tokens 3', '//to', '/set top_k many', '/nope', 'Q']
  lines += ['/set', '/help', '/set top_p 0', '/set topk 3', 'b\udcff', 'to', '/quit', 'unread']
  stdin = '\n'.join(lines).encode('utf-8', 'surrogateescape')
  code, out, messages = command('--interactive', SHORT, '--seed=4294967295', stdin=stdin)
  last = 4294967295
  assert code == 0
  assert out == ''.join(
    [
      written('some', seed=last),
      written('some', seed=0),
      written('', seed=1),
      written('/to', seed=2, max_new_tokens=3),
      written('to', seed=3, max_new_tokens=3),
    ]
  )
  assert messages.count('error: ') == 6
  for words in (
    "top_k: 'many' must be a whole number",
    '/nope: no such command',
    "'Q'",
    'top_p: 0.0 must be above 0',
  ):
    assert words in messages
  for words in ('did you mean top_k?', 'not UTF-8', '/quit', 'max_new_tokens      3 '):
    assert words in messages


def test_at_a_terminal_ctrl_c_ends_the_text_and_ctrl_d_the_session(trained, tmp_path):
  main, side = pty.openpty()
  process = subprocess.Popen(
    [sys.executable, '-m', 'gpt_jax.sample', f'--model={trained}', '--interactive',
     '--max_new_tokens=100000000'],
    env={**os.environ, 'PYTHONPATH': str(_ROOT), 'XLA_FLAGS': '', 'XDG_CACHE_HOME': str(tmp_path)},
    stdin=side, stdout=side, stderr=subprocess.PIPE, start_new_session=True,
  )  # fmt: skip
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


def test_ctrl_c_and_a_closed_pipe_end_it_quietly(trained):
  for end in ('signal', 'close'):
    process = _process(trained, '--max_new_tokens=100000000')
    assert process.stdout and process.stderr
    process.stdout.read(20)
    if end == 'signal':
      process.send_signal(signal.SIGINT)
    process.stdout.close()
    assert process.stderr.read().decode() == f'{trained}, step 1\n'
    assert process.wait() == (130 if end == 'signal' else 0)


def test_several_texts_that_nobody_reads_end_it_quietly(trained):
  process = _process(trained, '--num_samples=2', SHORT)
  assert process.stdout and process.stderr
  process.stdout.close()
  assert process.stderr.read().decode() == f'{trained}, step 1\n'
  assert process.wait() == 0


def test_a_second_start_compiles_nothing(trained, tmp_path):
  on = {'JAX_ENABLE_COMPILATION_CACHE': 'true', 'JAX_LOG_COMPILES': '1'}
  on['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  texts, hits = [], []
  for _ in range(2):
    out, messages = _process(trained, SHORT, XDG_CACHE_HOME=str(tmp_path), **on).communicate()
    texts.append(out)
    hits.append(messages.count(b'cache hit'))
  folder = tmp_path / 'gpt_jax' / 'xla'
  assert any('decode' in path.name for path in folder.iterdir())
  assert folder.stat().st_mode & 0o077 == 0
  assert texts[0] == texts[1] and texts[0]
  assert hits[0] < hits[1], messages


def test_without_a_folder_to_write_nothing_is_kept_and_nothing_fails(tmp_path, monkeypatch):
  jax_config: Any = jax.config  # its attributes are not declared
  before = jax_config.jax_compilation_cache_dir
  (tmp_path / 'file').write_text('')
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  was_on = jax_config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', True)
  try:
    user_cache.keep_compiled_programs()
    assert jax_config.jax_compilation_cache_dir == before
  finally:
    jax.config.update('jax_enable_compilation_cache', was_on)
  with interactive.Terminal():
    pass


def test_a_shortage_of_memory_names_the_remedies(command, monkeypatch):
  def fail(self, *_, **__):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes')

  monkeypatch.setattr(text_lib.TextModel, 'generate', fail)
  monkeypatch.setattr(text_lib.TextModel, 'stream', fail)
  for args in ([], ['--num_samples=2']):
    code, _, messages = command(*args)
    assert code == 2 and 'out of device memory: lower --num_samples' in messages
  code, _, messages = command('--interactive', stdin=b'some\n')
  assert code == 0 and 'out of device memory' in messages


def test_other_failures_of_a_device_are_not_hidden():
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'),
    device_memory.shortage_is_the_users('buy more'),
  ):
    raise jax.errors.JaxRuntimeError('INTERNAL: a defect')


@pytest.mark.parametrize(
  ('given', 'text'), [('\\n', '\n'), ('a\\\\n', 'a\\n'), ('\\t', '\t'), ('☃', '☃')]
)
def test_escapes(given, text):
  assert parsing.unescaped('stop', given) == text


def test_a_model_without_tokenizer_is_refused(command, model, monkeypatch):
  bare = text_lib.TextModel(model.config, model.params, None)
  monkeypatch.setattr(loading, 'load', lambda path: loading.Loaded(bare, None))
  code, out, messages = command()
  assert (code, out) == (2, '') and 'has no tokenizer' in messages
  with pytest.raises(errors.UserError):
    bare.encode('some')
