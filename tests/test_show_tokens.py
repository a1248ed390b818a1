"""Text is shown as its tokens, on any terminal and through any pipe."""

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import atomic, cli, errors, show_tokens
from gpt_jax.data.tokenizers import char
from gpt_jax.weights import huggingface

_PACKAGE = pathlib.Path(show_tokens.__file__).resolve().parent
_FIXTURES = pathlib.Path(__file__).resolve().parent / 'weights' / 'fixtures' / 'huggingface'
_ESCAPE = re.compile('\033\\[[0-9;]*m')


@pytest.fixture
def show(monkeypatch, capsys):
  """A function that runs the command with flags and standard input, and returns what it prints."""

  def run(*args, stdin=b''):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin)))
    values = show_tokens.define_flags()
    cli.parse(values, ['show_tokens', *args], takes_config=False)
    show_tokens.main(values)
    return capsys.readouterr().out

  return run


def test_tokens_ids_and_their_number_are_printed(show, vocabulary):
  assert show('--tokenizer=word', "--text=It's so, so good.") == (
    "It's│so│,│so│good│.\n3 0 1 0 4 2\n"
    'tokens: 6, characters: 17 (2.8 per token), vocabulary: 7 (word)\n'
  )
  assert show('--text=Hello world').startswith('Hello│ world\n15496 995\ntokens: 2, ')
  assert show('--ids', '--tokenizer=byte', '--text=a b') == '97 32 98\n'
  assert show('--ids', '--tokenizer=byte', '--text=') == ''
  assert json.loads(show('--json', '--tokenizer=byte', '--text=a\né')) == {
    'tokens': ['a', '\n', '\\xc3', '\\xa9'],
    'ids': [97, 10, 195, 169],
  }
  assert json.loads(show('--json', '--ids', '--tokenizer=byte', '--text=')) == {'ids': []}
  assert show('--tokenizer=char', '--text=').startswith('tokens: 0, ')


def test_text_comes_from_a_flag_a_file_or_standard_input(show, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('text').write_bytes('é\r\n'.encode())
  flags = ('--ids', '--tokenizer=byte')
  assert show(*flags, '--file=text') == '195 169 13 10\n'
  assert show(*flags, stdin='é\r\n'.encode()) == '195 169 13 10\n'
  assert show(*flags, '--text=é\r\n', stdin=b'not read') == '195 169 13 10\n'
  pathlib.Path('latin').write_bytes(b'a\xe9')
  for args, key in (
    (['--text=a', '--model=b', '--tokenizer=char'], 'tokenizer'),
    (['--text=a\udcff'], 'text'),
    *((['--file=latin'], 'latin'), (['--file=no/file'], 'no/file'), (['--file=/'], '/')),
    ([], 'standard input'),
  ):
    with pytest.raises(errors.UserError) as e:
      show(*args, stdin=b'ab\xff')
    assert e.value.key == key


def test_a_model_gives_its_tokenizer(show, tmp_path):
  shutil.copytree(_FIXTURES / 'tied', tmp_path, dirs_exist_ok=True)
  with pytest.raises(errors.UserError) as e:
    show(f'--model={tmp_path}', '--text=dcba')
  assert e.value.key == 'model'
  letters = 'abcd' + ''.join(map(chr, range(0x100, 0x100 + 97)))  # the model's 101 tokens
  atomic.write_json(tmp_path / huggingface.TOKENIZER, char.CharTokenizer(letters).to_dict())
  assert show(f'--model={tmp_path}', '--text=dcba', '--ids') == '3 2 1 0\n'


def test_what_a_token_looks_like():
  for token, shown in {
    'a é日😀'.encode(): 'a é日😀',
    b'\n\n': '↵\n↵\n',
    b'\ta\r': '→a\\r',
    b'\xf0\x9f\xa9a': '\\xf0\\x9f\\xa9a',
    b'\033[2J\x07': '\\u001b[2J\\u0007',
    '\u202e\xa0'.encode(): '\\u202e\\u00a0',
  }.items():
    assert show_tokens.visible(token) == shown


@hypothesis.given(st.binary())
def test_no_token_controls_the_terminal(token):
  assert all(c.isprintable() or c == '\n' for c in show_tokens.visible(token))


@hypothesis.given(text=st.text(st.sampled_from('ab \n\té😀')))
def test_colors_change_nothing_but_the_bars(show, text):
  flags = (f'--text={text}', '--tokenizer=char')
  plain, colored = show('--color=never', *flags), show('--color=always', *flags)
  assert '\033' not in plain and '│' not in colored
  assert _ESCAPE.sub('', colored) == plain.replace('│', '')


def test_neighbours_have_different_colors_that_end_with_the_line(show):
  out = show('--text=ab\nc\n', '--tokenizer=char', '--color=always')
  colors = re.findall('(\033\\[[0-9;]*48[0-9;]*m)[^\033\n]', out)
  tokens, ids = colors[:5], colors[5:]
  assert len(tokens) == 5 and tokens == ids
  assert all(a != b for a, b in zip(tokens, tokens[1:], strict=False))
  for line in out.splitlines():
    assert not line.count('\033') or _ESCAPE.findall(line)[-1] == '\033[0m'


@pytest.mark.parametrize(
  ('choice', 'terminal', 'name', 'value', 'color'),
  [
    ('auto', True, 'TERM', 'xterm', True),
    ('auto', False, 'TERM', 'xterm', False),
    ('auto', True, 'TERM', 'dumb', False),
    ('auto', True, 'NO_COLOR', '1', False),
    ('always', False, 'NO_COLOR', '1', True),
    ('never', True, 'TERM', 'xterm', False),
  ],
)
def test_when_there_is_color(monkeypatch, choice, terminal, name, value, color):
  for variable, usual in (('NO_COLOR', ''), ('TERM', 'xterm'), (name, value)):
    monkeypatch.setenv(variable, usual)
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: terminal)
  assert show_tokens.has_color(choice) == color


@pytest.mark.parametrize('lines', [1, 20_000])
def test_a_closed_pipe_is_no_error(lines):
  reader, writer = os.pipe()
  os.close(reader)
  command = [sys.executable, '-m', 'gpt_jax.show_tokens', '--tokenizer=byte']
  environment = {name: v for name, v in os.environ.items() if name != 'PYTHONUNBUFFERED'}
  options = {'input': b'many words\n' * lines, 'stderr': subprocess.PIPE, 'env': environment}
  with os.fdopen(writer, 'wb') as pipe:
    done = subprocess.run(command, stdout=pipe, cwd=_PACKAGE.parent, **options)
  assert (done.returncode, done.stderr) == (0, b'')


def test_any_character_is_printed_in_any_locale_without_jax():
  program = (
    'import atexit, sys; atexit.register(lambda: print("jax" in sys.modules))\n'
    'from gpt_jax import cli, show_tokens as s\n'
    'cli.run(s.main, s.define_flags(), doc="", aliases=s.ALIASES)\n'
  )
  environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'NO_COLOR': '1'}
  command = [sys.executable, '-c', program, '--tokenizer=char', '--text=日 ']
  done = subprocess.run(command, cwd=_PACKAGE.parent, capture_output=True, env=environment)
  out = done.stdout.decode()
  assert out.startswith('日│ \n1 0\n') and out.endswith('\nFalse\n') and not done.stderr
