"""The documentation does what it says: its commands run, made small, and the site builds."""

import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import string
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import pyarrow
import pytest
from absl import flags
from huggingface_hub import constants
from pyarrow import parquet

from gpt_jax import cli, validation
from gpt_jax.data.sources import rules

REPOSITORY = pathlib.Path(__file__).parents[1]
README = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
PAGES = [REPOSITORY / 'README.md', *sorted(REPOSITORY.glob('docs/*.md'))]
_TAKE_CONFIG = ('train', 'prepare', 'bench', 'scaling')
# What isn't run here: it changes the environment, needs a network, or has tests of its own.
_NOT_RUN = ('pip', 'python3', 'hf', 'launch/test.sh', 'launch/quickstart.sh')
_TESTED_ELSEWHERE = ('gpt_jax.bench', 'gpt_jax.doctor', 'gpt_jax.scaling')


def blocks(page: pathlib.Path, language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', page.read_text(encoding='utf-8'), flags=re.DOTALL)


def commands(page: pathlib.Path) -> list[list[str]]:
  """Returns every command of the page's bash blocks, split into words."""
  text = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ')
  lines = (shlex.split(line, comments=True) for line in text.splitlines())
  return [words for words in lines if words]


def modules(page: pathlib.Path) -> list[list[str]]:
  """Returns the arguments of each `python -m gpt_jax.…` and `gpt-jax …`, module first."""
  found = []
  for words in commands(page):
    if 'gpt-jax' in words:
      start = words.index('gpt-jax') + 1
      found.append([f'gpt_jax.{words[start]}', *words[start + 1 :]])
    elif 'python' in words:
      end = words.index('>') if '>' in words else None
      found.append(words[words.index('python') + 2 : end])
  return found


_ALL = [pytest.param(words, id=' '.join(words)) for page in PAGES for words in modules(page)]


@pytest.mark.parametrize('words', _ALL)
def test_a_command_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(REPOSITORY)
  values: flags.FlagValues = importlib.import_module(words[0]).define_flags()
  takes_config = words[0].removeprefix('gpt_jax.') in _TAKE_CONFIG
  takes_words = words[0] in ('gpt_jax.plot', 'gpt_jax.bench', 'gpt_jax.checkpoints')
  cli.parse(values, words, takes_config=takes_config, takes_words=takes_words)


def _small(words: list[str]) -> list[str]:
  """Returns more arguments, with which a command takes seconds."""
  options = dict(word[2:].split('=', 1) for word in words if re.match('--.+=', word))
  if words[0] == 'gpt_jax.sample':
    return ['--max_new_tokens=5']
  if words[0] == 'gpt_jax.evaluate' and not options['data'].startswith('run:'):
    return ['--limit=8', *(['--shots=0,1'] if 'shots' in options else [])]
  if 'config' not in options:
    return []
  name = pathlib.Path(options.pop('config')).stem
  config = runpy.run_path(str(REPOSITORY / 'configs' / f'{name}.py'))['get_config']()
  given = {key[7:]: value for key, value in options.items() if key.startswith('config.')}
  config, _ = validation.override(config, given)
  values: dict[str, object] = {'model.n_layer': 1, 'model.n_head': 2, 'model.n_embd': 8}
  values |= {'model.block_size': min(config.model.block_size, 256)}
  values |= {'train.steps': 2, 'train.batch_size': 4, 'train.gradient_accumulation': 1}
  values |= {'train.eval_batches': 1, 'train.eval_every': 2, 'train.checkpoint_every': 2}
  values |= {'optimizer.warmup_steps': 0, 'data.cache_dir': 'cache', 'data.processes': 1}
  if config.data.split != 'given':
    values['data.val_fraction'] = 0.1  # of a small text
  if config.optimizer.schedule == 'wsd':
    values['optimizer.decay_steps'] = 1
  if config.data.source.startswith('tfds:'):
    values['data.source'] = 'jsonl:reviews.jsonl'
  return [f'--config.{key}={value}' for key, value in values.items()]


def _run(words: list[str]) -> str:
  """Runs a command of the documentation, made small, and returns what it printed."""
  if words[0].startswith(('XLA_FLAGS=', 'launch/')):
    name = 'gpt_jax.train'
    command = ' '.join([words[0], *map(shlex.quote, [*words[1:], *_small([name, *words])])])
    path = f'{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = {**os.environ, 'PATH': path}
    done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
  given = ''
  if words[0] == 'printf':
    given = words[1].encode().decode('unicode_escape')
    words = words[words.index('|') + 1 :]
  words = [f'gpt_jax.{words[1]}', *words[2:]] if words[0] == 'gpt-jax' else words[2:]
  words = words[: words.index('>')] if '>' in words else words
  words = [re.sub(r'tfds:imdb_reviews.*', 'jsonl:reviews.jsonl', word) for word in words]
  printed = io.StringIO()
  with (
    mock.patch.object(sys, 'argv', [*words, *_small(words)]),
    mock.patch.object(sys, 'stdin', io.StringIO(given)),
    contextlib.redirect_stdout(printed),
  ):
    runpy.run_module(words[0], run_name='__main__')
  return printed.getvalue()


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory, vocabulary: None) -> Iterator[pathlib.Path]:
  """A folder with what the documentation takes as given: a quickstart, GPT-2, small texts."""
  folder = tmp_path_factory.mktemp('place')
  for name in ('configs', 'docs', 'launch'):
    (folder / name).symlink_to(REPOSITORY / name)
  texts = [string.printable + README[start : start + 300] for start in range(0, 9000, 100)]
  rows = [{'text': text, 'label': 'pos' if n % 2 else 'neg'} for n, text in enumerate(texts)]
  (folder / 'reviews.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  web = folder / 'fineweb' / 'sample' / '10BT'
  web.mkdir(parents=True)
  parquet.write_table(pyarrow.table({'text': texts}), web / '000.parquet')
  snapshot = folder / 'hub' / 'models--openai-community--gpt2' / 'snapshots' / ('1' * 40)
  refs = snapshot.parents[1] / 'refs'
  refs.mkdir(parents=True)
  (refs / 'main').write_text(snapshot.name)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(constants, 'HF_HUB_CACHE', str(folder / 'hub'))
    for split in rules.NUMBERS:
      patch.setitem(rules.NUMBERS, split, 100)
    train = ['python', '-m', 'gpt_jax.train']
    _run([*train, '--config=configs/quickstart.py'])
    source = '--config.data.source=jsonl:reviews.jsonl'
    _run([*train, '--config=configs/gpt2_small.py', '--workdir=runs/gpt2', source])
    _run(['python', '-m', 'gpt_jax.convert', '--model=runs/gpt2', f'--output={snapshot}'])
    yield folder


@pytest.mark.filterwarnings('ignore:.*found in sys.modules:RuntimeWarning')
@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(place: pathlib.Path, page: pathlib.Path) -> None:
  for words in commands(page):
    if words[0] not in _NOT_RUN and not set(_TESTED_ELSEWHERE) & set(words):
      assert _run(words), words
  for code in blocks(page, 'python'):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(code.replace('max_new_tokens=100', 'max_new_tokens=3'), {})
    assert printed.getvalue()


def test_scripts_are_there_and_may_be_run() -> None:
  words = [words[0] for page in PAGES for words in commands(page)]
  scripts = [word for word in words if word.startswith('launch/')]
  assert scripts
  for script in scripts:
    assert (REPOSITORY / script).stat().st_mode & 0o111, script


def test_the_tree_names_files_that_exist() -> None:
  tree = re.findall(r'^gpt_jax/\n(.*?)^configs/', README, flags=re.DOTALL | re.MULTILINE)[0]
  names = [name for line in tree.splitlines() for name in re.findall(r'[a-z_/]+(?:\.py|/)', line)]
  assert len(names) > 8
  for path in [f'gpt_jax/{name}' for name in names] + re.findall(r'`(configs/\S+)`', README):
    assert (REPOSITORY / path).exists(), path


def test_the_site_builds_without_a_warning(tmp_path: pathlib.Path) -> None:
  command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-c', 'docs', '.']
  done = subprocess.run(
    [*command, str(tmp_path / 'site')], cwd=REPOSITORY, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for page in ('index', 'docs/functions', 'docs/commands', 'notebooks/film_reviews'):
    assert (tmp_path / 'site' / f'{page}.html').is_file()
  functions = (tmp_path / 'site' / 'docs' / 'functions.html').read_text('utf-8')
  assert 'id="gpt_jax.load"' in functions
