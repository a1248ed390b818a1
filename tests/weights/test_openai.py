"""A model as OpenAI published it computes what it computed there, or the file at fault is named."""

import json
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.weights import saved_model
from gpt_jax.weights import tensors as tensors_lib
from gpt_jax.weights.openai import tensor_bundle
from tests.weights import saved

_FIXTURE = saved.FIXTURES / 'openai_tiny'
_SIZES = {'n_vocab': 300, 'n_ctx': 16, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}


@pytest.fixture(scope='module')
def expected():
  with np.load(_FIXTURE / 'expected.npz') as file:
    return dict(file)


@pytest.fixture
def directory(tmp_path):
  for path in _FIXTURE.glob('[!e]*'):
    shutil.copy(path, tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  'changes', [{}, {'scan_layers': True, 'block_size': 5, 'pad_vocab_to': 128}], ids=str
)
def test_logits_are_those_of_the_published_formulas(expected, changes):
  saved.check_logits(_FIXTURE, expected, atol=2e-4, **changes)


def test_parameters_are_the_saved_bytes(expected):
  model = saved_model.open_model(_FIXTURE)
  assert model.config == config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=8, block_size=16, vocab_size=300, pad_vocab_to=1
  )
  assert model.tokenizer is None and model.step is None
  params = model.load(saved.on_one_device(model.config))
  found = sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
  assert found == sorted(v.tobytes() for k, v in expected.items() if k.startswith('model/'))


@pytest.mark.parametrize(
  'changes',
  [dict(zip(_SIZES, (True, 0, 8.0, -1, '2'), strict=True)), {'n_head': 3}, {'x': 1}],
)
def test_invalid_hparams_are_named(directory, changes):
  path = directory / 'hparams.json'
  path.write_text(json.dumps(_SIZES | changes))
  message = saved.refused(directory, path)
  assert all(key in message for key in changes)
  path.write_text(json.dumps({'n_vocab': 300}))
  saved.refused(directory, path)


def test_the_checkpoint_may_have_another_name_but_must_be_one(directory):
  for path in directory.glob('model.ckpt*'):
    path.rename(directory / path.name.replace('model.ckpt', 'model-7'))
  model = saved_model.open_model(directory)
  model.load(saved.on_one_device(model.config))
  (directory / 'model-8.index').touch()
  saved.refused(directory)
  for path in directory.glob('*.index'):
    path.unlink()
  saved.refused(directory)


@pytest.mark.parametrize(
  ('name', 'shape', 'named'),
  [
    ('model/wte', None, 'wte.weight'),  # is missing
    ('model/h1/mlp/c_fc/b', None, 'h.1.mlp.c_fc.bias'),
    ('global_step', (), 'global_step'),
    ('ema/model/ln_f/g', (8,), 'ema.model.ln_f'),
    ('model/h00/ln_1/g', (8,), '3 layers'),
    ('model/h0/ln_9/g', (8,), 'h.0.ln_9'),
    *(('model/h0/attn/c_attn/w', s, 'h.0.attn.c_attn.weight') for s in ((1, 24, 8), (2, 8, 24))),
    ('model/ln_f/b', (1, 8), 'ln_f.bias'),
  ],
)
def test_tensors_that_are_not_those_of_the_model_are_named(monkeypatch, name, shape, named):
  tensors = dict(tensor_bundle.open_tensors(_FIXTURE / 'model.ckpt.index'))
  if shape is None:
    del tensors[name]
  else:
    tensors[name] = tensors_lib.Tensor(shape, lambda: np.zeros(shape, np.float32))
  monkeypatch.setattr(tensor_bundle, 'open_tensors', lambda index: tensors)
  assert named in saved.refused(_FIXTURE)
