"""A model as OpenAI publishes it computes what it computed there, or it is told what is wrong."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import errors
from gpt_jax.models import gpt
from gpt_jax.weights import openai, published, tensor_bundle

_FIXTURE = pathlib.Path(__file__).parent / 'fixtures' / 'openai_tiny'
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


def _params(model, config):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return model.params(gpt.abstract_params(config, sharding))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'scan_layers': True},
    {'block_size': 8},
    {'pad_vocab_to': 128},
    {'scan_layers': True, 'block_size': 5, 'pad_vocab_to': 128},
  ],
  ids=str,
)
def test_logits_are_those_of_the_published_formulas(expected, changes):
  model = openai.open_model(_FIXTURE)
  config = dataclasses.replace(model.config, **changes)
  tokens_BL = expected['tokens'][:, : config.block_size]
  logits_BLV, _ = gpt.GPT(config).apply({'params': _params(model, config)}, tokens_BL)
  wanted_BLV = expected['logits'][:, : config.block_size]
  found_BLV = np.asarray(logits_BLV)[..., : config.vocab_size]
  np.testing.assert_allclose(found_BLV, wanted_BLV, atol=2e-4, rtol=0)
  assert np.array_equal(found_BLV.argmax(-1), wanted_BLV.argmax(-1))


def test_parameters_are_the_saved_bytes(expected):
  model = openai.open_model(_FIXTURE)
  params = _params(model, model.config)
  found = {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert len(found) == sum(name.startswith('model/') for name in expected)
  for path, ours in [
    ('model/wte', 'wte/embedding'),
    ('model/wpe', 'wpe/embedding'),
    ('model/ln_f/g', 'ln_f/scale'),
    ('model/ln_f/b', 'ln_f/bias'),
    ('model/h0/ln_1/g', 'h_0/ln_1/scale'),
    ('model/h1/ln_2/b', 'h_1/ln_2/bias'),
    ('model/h1/attn/c_attn/w', 'h_1/attn/c_attn/kernel'),
    ('model/h0/attn/c_proj/b', 'h_0/attn/c_proj/bias'),
    ('model/h0/mlp/c_fc/w', 'h_0/mlp/c_fc/kernel'),
    ('model/h1/mlp/c_proj/w', 'h_1/mlp/c_proj/kernel'),
  ]:
    wanted = expected[path][0] if path.endswith('/w') else expected[path]
    assert found[ours].dtype == np.float32
    assert found[ours].shape == wanted.shape
    assert found[ours].tobytes() == wanted.tobytes()


def test_config_is_of_hparams():
  config = openai.open_model(_FIXTURE).config
  assert (config.vocab_size, config.block_size, config.pad_vocab_to) == (300, 16, 1)
  assert (config.n_embd, config.n_head, config.n_layer) == (8, 2, 2)
  assert config.bias and config.tie_embeddings and not config.scan_layers


def test_is_model_tells_by_hparams(directory, tmp_path):
  assert openai.is_model(directory)
  (directory / 'hparams.json').unlink()
  assert not openai.is_model(directory)
  assert not openai.is_model(tmp_path / 'nothing')


# hparams.json.


@pytest.mark.parametrize(
  'changes, told',
  [
    ({'n_vocab': None}, 'n_vocab is missing'),
    ({'n_ctx': None, 'n_inner': 7}, 'n_ctx is missing; n_inner is unknown'),
    ({'res_dropout': 0.1}, 'res_dropout is unknown'),
    ({'n_layer': 0}, 'n_layer is 0, must be a whole number, at least 1'),
    ({'n_head': -1}, 'n_head is -1, must be'),
    ({'n_embd': 8.0}, 'n_embd is 8.0, must be'),
    ({'n_embd': True}, 'n_embd is True, must be'),
    ({'n_ctx': '16'}, "n_ctx is '16', must be"),
    ({'n_head': 3}, r'n_embd \(8\) is not divisible by n_head \(3\)'),
    ({'n_layer': 1}, 'has 2 layers, the config says 1\n'),
    ({'n_layer': 10**12}, 'has 2 layers, the config says 1000000000000\n'),
    (
      {'n_vocab': 10**30},
      r'wte.weight has shape \(300, 8\), the config asks for \(1000000000000000',
    ),
    ({'n_ctx': 32}, r'wpe.weight has shape \(16, 8\), the config asks for \(32, 8\)'),
    (
      {'n_embd': 2**80},
      r'wte.weight has shape \(300, 8\), the config asks for \(300, 1208925819614',
    ),
  ],
)
def test_tells_what_is_wrong_with_hparams(directory, changes, told):
  values = {k: v for k, v in (_SIZES | changes).items() if v is not None}
  (directory / 'hparams.json').write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match=told) as e:
    openai.open_model(directory)
  assert str(directory / 'hparams.json') in str(e.value)


@pytest.mark.parametrize(
  'content', [b'', b'{', b'[]', b'7', b'null', b'\xff\xfe\x00', b'[' * 10**5]
)
def test_tells_hparams_that_are_no_json_of_sizes(directory, content):
  (directory / 'hparams.json').write_bytes(content)
  with pytest.raises(errors.UserError, match='hparams.json is damaged'):
    openai.open_model(directory)


def test_tells_that_there_are_no_hparams(tmp_path):
  with pytest.raises(errors.UserError, match='hparams.json cannot be read: No such file'):
    openai.open_model(tmp_path)


# The checkpoint's name.


def test_finds_the_checkpoint_by_its_note_or_usual_name(directory):
  (directory / 'checkpoint').unlink()
  openai.open_model(directory)
  for path in directory.glob('model.ckpt*'):
    path.rename(directory / path.name.replace('model.ckpt', 'model-7'))
  with pytest.raises(errors.UserError, match='model.ckpt.index cannot be read'):
    openai.open_model(directory)
  (directory / 'checkpoint').write_text(
    'all_model_checkpoint_paths: "other"\nmodel_checkpoint_path: "model-7"\n'
  )
  openai.open_model(directory)


@pytest.mark.parametrize(
  'content, told',
  [
    (b'', 'has no model_checkpoint_path'),
    (b'model_checkpoint_path: 7', 'has no model_checkpoint_path'),
    (b'model_checkpoint_path: "\xff"', 'is damaged'),
    (b'model_checkpoint_path: "other"', 'other.index cannot be read'),
    *(
      (f'model_checkpoint_path: "{name}"'.encode(), 'not the name of a checkpoint beside it')
      for name in ['/abs/model.ckpt', '../model.ckpt', 'a/b', '', '.', '..', 'a\\\\b', '\0']
    ),
  ],
)
def test_tells_what_is_wrong_with_the_note(directory, content, told):
  (directory / 'checkpoint').write_bytes(content)
  with pytest.raises(errors.UserError, match=told):
    openai.open_model(directory)


def test_tells_a_note_that_is_no_file(directory):
  (directory / 'checkpoint').unlink()
  (directory / 'checkpoint').mkdir()
  with pytest.raises(errors.UserError, match='checkpoint cannot be read'):
    openai.open_model(directory)


# Tensors.


def _without(tensors, name):
  return {key: tensor for key, tensor in tensors.items() if key != name}


def _with(tensors, name, shape):
  return tensors | {name: published.Tensor(shape, lambda out: None)}


@pytest.mark.parametrize(
  'change, told',
  [
    (lambda t: _without(t, 'model/wte'), r'wte.weight \(300, 8\) is missing'),
    (lambda t: _without(t, 'model/wpe'), r'wpe.weight \(16, 8\) is missing'),
    (lambda t: _without(t, 'model/h1/mlp/c_fc/b'), r'h.1.mlp.c_fc.bias \(32,\) is missing'),
    (lambda t: _without(t, 'model/ln_f/g'), r'ln_f.weight \(8,\) is missing'),
    (lambda t: _with(t, 'global_step', ()), r"'global_step' \(\) is unexpected"),
    (lambda t: _with(t, 'wte.weight', (300, 8)), r"'wte.weight' \(300, 8\) is unexpected"),
    (lambda t: _with(t, 'model/wte/Adam', (300, 8)), "'model/wte/Adam' .* is unexpected"),
    (lambda t: _with(t, 'model/h0/ln_1/w', (8,)), "'model/h0/ln_1/w' .* is unexpected"),
    (lambda t: _with(t, 'model/ln_f/gb', (8,)), "'model/ln_f/gb' .* is unexpected"),
    (lambda t: _with(t, 'model/hx/ln_1/g', (8,)), "'model/hx/ln_1/g' .* is unexpected"),
    (lambda t: _with(t, 'ema/model/ln_f/g', (8,)), "'ema/model/ln_f/g' .* is unexpected"),
    (lambda t: _with(t, 'model/h00/ln_1/g', (8,)), 'has 3 layers'),
    (lambda t: _with(t, 'model/h0/ln_9/g', (8,)), r'h.0.ln_9.weight \(8,\) is unexpected'),
    (lambda t: _with(t, 'model/h0/attn/c_attn/g', (1, 8, 24)), 'c_attn/g. .* is unexpected'),
    (lambda t: _with(t, 'model/h2/ln_1/g', (8,)), 'has 3 layers, the config says 2'),
    (
      lambda t: _with(t, 'model/h0/attn/c_attn/w', (2, 8, 24)),
      r'h.0.attn.c_attn.weight has shape \(2, 8, 24\)',
    ),
    (
      lambda t: _with(t, 'model/h0/attn/c_attn/w', (1, 24, 8)),
      r'h.0.attn.c_attn.weight has shape \(24, 8\), the config asks for \(8, 24\)',
    ),
    (lambda t: _with(t, 'model/ln_f/b', (1, 8)), r'ln_f.bias has shape \(1, 8\)'),
  ],
)
def test_tells_which_tensors_are_not_those_of_the_model(monkeypatch, change, told):
  tensors = change(tensor_bundle.open_tensors(_FIXTURE / 'model.ckpt'))
  monkeypatch.setattr(tensor_bundle, 'open_tensors', lambda prefix: tensors)
  with pytest.raises(errors.UserError, match=told) as e:
    openai.open_model(_FIXTURE)
  assert str(_FIXTURE) in str(e.value)
  assert 'h.0.mlp.c_fc.weight is model/h0/mlp/c_fc/w' in str(e.value)
