"""The notebooks run, show what they promise, and are kept with outputs that anyone may see."""

import ast
import json
import re
from typing import Any

import nbformat
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.data import tokenizers
from gpt_jax.weights import huggingface
from tests import notebooks, random_params

FOLDER = notebooks.ROOT / 'notebooks'
NAMES = ['train_your_first_gpt', 'look_inside_gpt2', 'film_reviews']
# Of every run here.
_SMALL = {
  'model.n_embd': 16,
  'model.n_head': 2,
  'model.bias': False,
  'train.eval_batches': 1,
  'train.checkpoint_every': 100,
  'data.processes': 1,
}
_PROMPT = 'The value of '
_MOST_BYTES = 150_000


def _kept(name: str) -> Any:
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def _shown(book: Any) -> list[list[str]]:
  """What kind of outputs each cell has."""
  return [
    [each.get('name') or sorted(each['data'])[0] for each in cell.get('outputs', ())]
    for cell in book.cells
  ]


def _printed(book: Any, code: str) -> str:
  """What the cell with this code in it printed."""
  (cell,) = (cell for cell in book.cells if cell.cell_type == 'code' and code in cell.source)
  return ''.join(output.text for output in cell.outputs if output.output_type == 'stream')


def _check(book: Any, name: str) -> None:
  """What holds for each notebook at any size."""
  assert _shown(book) == _shown(_kept(name)), 'cells show the same kinds of things as those kept'
  for data in notebooks.pictures(book):
    assert np.unique(np.asarray(notebooks.open_picture(data))).size > 10, 'not blank'


@pytest.fixture(scope='module')
def execute():
  """A function that executes a notebook in a folder, by one kernel: it imports JAX once."""
  with notebooks.kernel() as manager:
    yield lambda name, *args: notebooks.execute(FOLDER / f'{name}.ipynb', manager, *args)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('notebooks')


@pytest.fixture(scope='module')
def first_gpt(execute, folder):
  """The notebook that trains; it leaves a model in `folder`."""
  sizes = {'model.n_layer': 1, 'model.block_size': 32, 'train.steps': 40, 'train.batch_size': 8}
  changes = _SMALL | sizes | {'data.cache_dir': str(folder)}
  values = {'CHANGES': changes, 'RUN': 'runs/quickstart', 'PROMPT': _PROMPT}
  return execute('train_your_first_gpt', folder, values)


def test_a_first_gpt_learns_and_writes(first_gpt):
  _check(first_gpt, 'train_your_first_gpt')
  rows = _printed(first_gpt, 'train_rows(np.arange(config').splitlines()[1:]
  inputs, targets = map(ast.literal_eval, rows)
  assert len(inputs) > 9 and inputs[1:] == targets[:-1], 'targets are the next tokens'
  before, after = re.findall(r'training: (\d+\.\d+)', _printed(first_gpt, 'before training'))
  assert float(before) == pytest.approx(np.log(103), abs=0.1) and float(after) < float(before) - 0.3
  for code, least in (('temperature=0.8', 300), ('untrained.generate', 120)):
    text = _printed(first_gpt, code)
    assert text.startswith(_PROMPT) and len(text) >= len(_PROMPT) + least
  texts = _printed(first_gpt, '--- temperature').split('--- temperature ')[1:]
  assert len(texts) == 4 and len({text.partition('\n')[2] for text in texts}) == 4


def _check_inside(book: Any, *, tokens: int) -> None:
  _check(book, 'look_inside_gpt2')
  (total,) = re.findall(r'([\d,]+) parameters', _printed(book, 'plt.rcParams'))
  rows = _printed(book, 'activations.parameters').splitlines()[1:]
  assert sum(int(row.split()[-1].replace(',', '')) for row in rows) == int(total.replace(',', ''))
  pieces, ids = _printed(book, "'│'.join").splitlines()
  assert len(pieces.split('│')) == len(ids.split()) == tokens


def test_the_model_that_was_trained_is_looked_into(execute, first_gpt, folder):
  values = {'MODEL': 'runs/quickstart', 'TEXT': 'The value', 'NEIGHBOURS': ['a', '(']}
  book = execute('look_inside_gpt2', folder, values)
  _check_inside(book, tokens=9)
  rows = [row.split() for row in _printed(book, 'for text in NEIGHBOURS').splitlines()]
  assert [row[0] for row in rows] == ['a', '('] and all(len(row) == 13 for row in rows)


def test_a_model_with_the_tokens_of_gpt2_is_looked_into(execute, tmp_path, vocabulary):
  tokenizer = tokenizers.build(config_lib.DataConfig(tokenizer='gpt2'), {})
  sizes: dict[str, Any] = {'n_layer': 2, 'n_head': 2, 'n_embd': 8, 'block_size': 32}
  model = config_lib.ModelConfig(**sizes, vocab_size=tokenizer.vocab_size, pad_vocab_to=1)
  directory = tmp_path / 'gpt2_tiny'
  huggingface.write_model(directory, model, random_params.make(model), tokenizer)
  (directory / huggingface.TOKENIZER).unlink()  # merges.txt is what the published ones have
  values = {'MODEL': 'gpt2_tiny', 'TEXT': 'The meaning of life', 'NEIGHBOURS': [' king']}
  book = execute('look_inside_gpt2', tmp_path, values)
  _check_inside(book, tokens=4)
  assert _printed(book, 'for text in NEIGHBOURS').startswith('·king')


def test_reviews_are_learned_classified_and_found(execute, tmp_path):
  draw, lines = np.random.default_rng(0), []
  for i in range(300):
    words = draw.choice(['film', 'plot', 'and', 'the', 'actor', 'with', 'a'], 6 + i % 9).tolist()
    words.insert(draw.integers(0, 3), ('dull', 'fine')[i % 2])
    lines.append({'text': ' '.join(words), 'label': ('bad', 'good')[i % 2]})
  (tmp_path / 'reviews.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  changes = {
    'data.cache_dir': str(tmp_path),
    'data.min_frequency': 1,
    'data.row_length': 32,
    'data.test_fraction': 0.2,
    'model.clusters': '',
    'train.batch_size': 16,
    'optimizer.kind': 'adamw',
    'optimizer.learning_rate': 2e-2,
    'optimizer.warmup_steps': 4,
  }
  values = {
    'SOURCE': 'jsonl:reviews.jsonl',
    'SEARCH_IN': 'jsonl:reviews.jsonl',
    'PRETRAINING_STEPS': 20,
    'FINE_TUNING_STEPS': 40,
    'CHANGES': _SMALL | changes,
    'MASKED': 'the [MASK] and a [MASK]',
    'TEXT': 'the actor and a fine plot',
    'QUERIES': [lines[7]['text']],
  }
  book = execute('film_reviews', tmp_path, values)
  _check(book, 'film_reviews')
  assert _printed(book, 'for review, _ in').startswith(f'bad: {lines[0]["text"]}')
  assert _printed(book, 'activations.fillings').count('%') == 2 * 5
  (right,) = re.findall(r'(\d+\.\d)% of', _printed(book, 'held_out.measure'))
  assert float(right) > 90
  (good,) = re.findall(r'good (\d+\.\d)%', _printed(book, '(said,)'))
  assert float(good) > 80
  query, first, *_ = _printed(book, 'for query, hits').splitlines()
  assert query == lines[7]['text'] and first == f'  1.00  {query} …'
  assert re.match(r'\d+% of those found by 300 reviews', _printed(book, 'asked = '))


@pytest.mark.parametrize('name', NAMES)
def test_what_is_kept_is_of_one_run_and_of_no_machine(name):
  path = FOLDER / f'{name}.ipynb'
  assert path.stat().st_size < _MOST_BYTES
  book = _kept(name)
  assert book.metadata == notebooks.METADATA
  code = [cell for cell in book.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
  first, *others = (dict(cell.metadata) for cell in code)
  assert first == {'tags': ['parameters']} and not any(others), 'no times'
  for cell in code:
    shows = re.search(r'^(ax|pictures|.*print|train)\b', cell.source, re.MULTILINE)
    assert bool(cell.outputs) == bool(shows), cell.source
  for output in (output for cell in code for output in cell.outputs):
    assert output.output_type in ('stream', 'display_data', 'execute_result')
    assert output.get('name', 'stdout') == 'stdout', 'no warnings'
    text = output.get('text') or output.data['text/plain']
    assert not re.search(r'[\x1b\r\b]', text), 'neither colors nor progress bars'
    assert not re.search(r'(?<![\w.<*])/\w[\w.-]*/', text), 'no path'


def test_every_notebook_is_tested():
  assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob('*.ipynb'))
