"""Text is shown as the tokens it becomes, on any terminal and through any pipe."""

import io
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import cli, config, errors, tokenize
from gpt_jax.data import tokenizers
from gpt_jax.training import workdir

_ROOT = pathlib.Path(tokenize.__file__).resolve().parents[1]
_ESCAPE = re.compile('\033\\[[0-9;]*m')


@pytest.fixture
def show(monkeypatch, capsys):
  """A function that runs the command with flags, and standard input, and gives what it prints."""

  def run(*args, stdin=b''):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin)))
    values = tokenize.define_flags()
    cli.parse(values, ['tokenize', *args], takes_config=False)
    tokenize.main(values)
    return capsys.readouterr().out

  return run


def _process(*args, **kwargs):
  """The finished command in a process of its own."""
  options: dict[str, Any] = {'capture_output': True, 'cwd': _ROOT, **kwargs}
  return subprocess.run([sys.executable, '-m', 'gpt_jax.tokenize', *args], **options)


def test_tokens_ids_and_their_number_are_printed(show):
  assert show('--tokenizer=word', "--text=It's so, so good.") == (
    "It's│so│,│so│good│.\n3 0 1 0 4 2\n6 tokens, 17 characters, 2.8 characters a token, word of 7\n"
  )


def test_it_uses_gpt2_unless_told(show, monkeypatch):
  asked = []

  def build(data, counts):
    asked.append(data.tokenizer)
    return tokenizers.char.ByteTokenizer()

  monkeypatch.setattr(tokenizers, 'build', build)
  show('--text=a')
  assert asked == ['gpt2']


def test_the_ids_alone(show):
  assert show('--ids', '--tokenizer=byte', '--text=a b') == '97 32 98\n'


@pytest.mark.parametrize('kind', ['char', 'byte', 'word'])
def test_no_text_is_no_tokens(show, kind):
  out = show('--text=', f'--tokenizer={kind}')
  assert re.fullmatch(rf'0 tokens, 0 characters, {kind} of \d+\n', out)
  assert show('--ids', '--text=', f'--tokenizer={kind}') == ''


def test_one_is_not_plural(show):
  assert '\n1 token, 1 character, 1.0 characters' in show('--text=a', '--tokenizer=byte')


def test_text_comes_from_a_file_or_standard_input(show, tmp_path):
  (tmp_path / 'text').write_bytes('é\r\n'.encode())
  expected = '195 169 13 10\n'
  flags = ('--ids', '--tokenizer=byte')
  assert show(*flags, f'--file={tmp_path / "text"}') == expected
  assert show(*flags, stdin='é\r\n'.encode()) == expected
  assert show(*flags, '--text=é\r\n', stdin=b'not read') == expected


def test_the_tokenizer_of_a_run(show, tmp_path):
  data = config.DataConfig(tokenizer='char')
  tokenizer = tokenizers.build(data, {'b': 1, 'a': 1})
  workdir.Workdir(tmp_path).start(config.Config(data=data), tokenizer, {})
  assert show(f'--model={tmp_path}', '--text=abba', '--ids') == '0 1 1 0\n'
  with pytest.raises(errors.UserError, match="'x' at position 0"):
    show(f'--model={tmp_path}', '--text=x')


@pytest.mark.parametrize(
  ('token', 'shown'),
  [
    (b'a b', 'a b'),
    ('é日😀'.encode(), 'é日😀'),
    (b'\n\n', '↵\n↵\n'),
    (b'\ta', '→a'),
    (b'\r', '\\r'),
    (b'\xf0\x9f', '\\xf0\\x9f'),
    (b'\xa9a', '\\xa9a'),
    (b'\033[2J\x07', '\\u001b[2J\\u0007'),
    ('\u202e\xa0'.encode(), '\\u202e\\u00a0'),
  ],
)
def test_what_a_token_looks_like(token, shown):
  assert tokenize.visible(token) == shown


@hypothesis.given(st.binary())
def test_no_token_can_do_anything_to_a_terminal(token):
  assert all(c.isprintable() or c == '\n' for c in tokenize.visible(token))


@hypothesis.given(text=st.text(st.sampled_from('ab \n\té😀')))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_colours_change_nothing_but_the_bars(show, text):
  flags = (f'--text={text}', '--tokenizer=char')
  plain, colored = show('--color=never', *flags), show('--color=always', *flags)
  assert '\033' not in plain and '│' not in colored
  assert _ESCAPE.sub('', colored) == plain.replace('│', '')


def test_neighbours_have_different_colours_that_end_with_the_line(show):
  out = show('--text=ab\nc\n', '--tokenizer=char', '--color=always')
  colors = re.findall('(\033\\[[0-9;]*48[0-9;]*m)[^\033\n]', out)
  tokens, ids = colors[:5], colors[5:]
  assert len(tokens) == 5 and tokens == ids
  assert all(a != b for a, b in zip(tokens, tokens[1:], strict=False))
  for line in out.splitlines():
    assert not line.count('\033') or _ESCAPE.findall(line)[-1] == '\033[0m'


@pytest.mark.parametrize(
  ('choice', 'terminal', 'environment', 'color'),
  [
    ('auto', True, {}, True),
    ('auto', False, {}, False),
    ('auto', True, {'NO_COLOR': '1'}, False),
    ('auto', True, {'NO_COLOR': ''}, True),
    ('auto', True, {'TERM': 'dumb'}, False),
    ('always', False, {'NO_COLOR': '1'}, True),
    ('never', True, {}, False),
  ],
)
def test_where_there_is_colour(monkeypatch, choice, terminal, environment, color):
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
  assert tokenize.has_color(choice) == color


@pytest.mark.parametrize(
  ('args', 'complaint'),
  [
    (['--text=a', '--file=b'], '--text and --file are both given'),
    (['--text=', '--file=b'], '--text and --file are both given'),
    (['--text=a', '--model=b', '--tokenizer=char'], '--model has a tokenizer of its own'),
    (['--text=a', '--color=blue'], "--color: 'blue' must be auto, always, never"),
    (['--text=a', '--tokenizer=bite'], "'bite' must be one of .*did you mean byte"),
    (['--text=a', '--tokenizer='], "'' must be one of"),
    (['--text=a', '--model=no/run'], 'no/run/tokenizer.json cannot be read'),
    (['--text=a\udcff'], '--text is not UTF-8: .* at byte 1'),
    (['--file=no/file'], '--file=no/file cannot be read: No such file'),
    (['--file=/'], '--file=/ cannot be read: Is a directory'),
    ([], 'standard input is not UTF-8: .* at byte 2'),
    (['--text=a', '--tokenizer=hf:no/file'], 'no/file cannot be read'),
    (['--txt=a'], 'did you mean --text'),
  ],
)
def test_mistakes_are_told(show, args, complaint):
  with pytest.raises(errors.UserError, match=complaint):
    show(*args, stdin=b'ab\xff')


def test_a_file_that_is_not_utf8_is_told(show, tmp_path):
  (tmp_path / 'latin').write_bytes('é'.encode('latin-1'))
  with pytest.raises(errors.UserError, match=f'{tmp_path / "latin"} is not UTF-8'):
    show(f'--file={tmp_path / "latin"}')


@pytest.mark.parametrize('lines', [1, 20_000])
def test_a_closed_pipe_is_no_error(tmp_path, lines):
  (tmp_path / 'text').write_text('many words\n' * lines)
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'wb') as pipe:
    done = _process(
      '--tokenizer=byte',
      f'--file={tmp_path / "text"}',
      stdout=pipe,
      stderr=subprocess.PIPE,
      capture_output=False,
      env={name: v for name, v in os.environ.items() if name != 'PYTHONUNBUFFERED'},
    )
  assert (done.returncode, done.stderr) == (0, b'')


def test_any_character_is_printed_in_any_locale():
  environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'NO_COLOR': '1'}
  done = _process('--tokenizer=char', '--text=日 ', env=environment)
  assert done.stdout.decode().startswith('日│ \n1 0\n2 tokens') and not done.stderr


def test_it_needs_no_jax():
  program = (
    'import sys\n'
    'from gpt_jax import cli, tokenize\n'
    "sys.argv = ['tokenize', '--text=a', '--tokenizer=char']\n"
    'cli.run(tokenize.main, tokenize.define_flags(), doc="", takes_config=False)\n'
  )
  check = "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules))\n"
  done = subprocess.run(
    [sys.executable, '-c', check + program], cwd=_ROOT, capture_output=True, text=True
  )
  assert done.stdout.endswith('char of 1\nFalse\n'), done.stderr
