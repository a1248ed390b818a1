"""The command hands over a model whole, tells what it wrote, and overwrites nothing."""

import json

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import convert, errors
from gpt_jax.data import tokenizers
from gpt_jax.models import gpt
from gpt_jax.weights import huggingface

CONFIG = config_lib.ModelConfig(
  n_layer=1, n_head=2, n_embd=128, block_size=6, vocab_size=257, pad_vocab_to=8
)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model directory, with a tokenizer."""
  folder = tmp_path_factory.mktemp('model') / 'mine'
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), gpt.abstract_params(CONFIG)
  )
  tokenizer = tokenizers.build(config_lib.DataConfig(tokenizer='byte'), {})
  huggingface.write_model(folder, CONFIG, params, tokenizer)
  return folder


def run(*args):
  values = convert.define_flags()
  values(['convert', *args])
  convert.main(values)


def test_the_model_comes_out_whole_with_its_tokenizer_and_its_size_is_told(model, tmp_path, capsys):
  output = tmp_path / 'new' / 'folder'
  run(f'--model={model}', f'--output={output}')
  size = sum(path.stat().st_size for path in output.iterdir())
  assert f'wrote {output}: {size / 1e6:,.1f} MB' in capsys.readouterr().out
  assert size > max(4 * gpt.parameter_count(CONFIG), 100_000)
  before, after = gpt_jax.load(model), gpt_jax.load(output)
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  assert after.tokenizer and before.tokenizer and after.tokenizer.hash == before.tokenizer.hash


@pytest.mark.parametrize('args', [[], ['--model=mine'], ['--output=new']], ids=' '.join)
def test_both_places_must_be_named(args):
  with pytest.raises(errors.UserError, match='--model=PATH and --output=DIR are needed'):
    run(*args)


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_what_is_there_is_not_touched(model, tmp_path, kind):
  output = tmp_path / 'there'
  if kind == 'folder':
    output.mkdir()
  else:
    output.write_text(json.dumps('mine'))
  with pytest.raises(errors.UserError, match=f'--output={output} is there already'):
    run(f'--model={model}', f'--output={output}')
  assert output.read_text() == '"mine"' if kind == 'file' else not list(output.iterdir())


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
  (tmp_path / 'file').touch()
  output = tmp_path / 'file' / 'new'
  with pytest.raises(errors.UserError, match=f'--output={output} cannot be written .Not a dir'):
    run(f'--model={model}', f'--output={output}')


def test_a_model_that_is_not_there_is_named_and_nothing_is_written(tmp_path):
  with pytest.raises(errors.UserError, match='nonesuch has no model'):
    run(f'--model={tmp_path}/nonesuch', f'--output={tmp_path}/new')
  assert not list(tmp_path.iterdir())
