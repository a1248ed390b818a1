"""Models of Hugging Face come in with the logits that `transformers` computes, and go out again."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy

from gpt_jax import atomic, json_files, models, progress
from gpt_jax import config as config_lib
from gpt_jax.data import tokenizers
from gpt_jax.weights import huggingface, saved_model, tensors
from tests import raised, random_params
from tests.weights import saved

# Written by make_huggingface_fixtures.py.
_FIXTURES = saved.FIXTURES / 'huggingface'
_NAMES = ['tied', 'untied', 'sharded', 'bare']
_WEIGHTS, _INDEX = 'model.safetensors', 'model.safetensors.index.json'


@pytest.fixture
def copy(tmp_path):
  """A function that copies a fixture, so that it may be changed."""
  return lambda name='tied': pathlib.Path(shutil.copytree(_FIXTURES / name, tmp_path / name))


def _check_logits(folder, name, **changes):
  """Asserts that the model in `folder` computes the logits of the fixture `name`."""
  with np.load(_FIXTURES / name / 'expected.npz') as file:
    expected = {'tokens': file['tokens_BL'], 'logits': file['logits_BLV']}
  saved.check_logits(folder, expected, atol=1e-5, **changes)


@pytest.mark.parametrize('name', _NAMES)
def test_logits_are_those_of_transformers(name):
  _check_logits(_FIXTURES / name, name)


def test_logits_are_the_same_scanned_padded_sharded_and_with_a_shorter_context():
  changes = {'scan_layers': True, 'pad_vocab_to': 128, 'block_size': 5}
  _check_logits(_FIXTURES / 'tied', 'tied', **changes)
  config, params = saved.read(_FIXTURES / 'tied', **changes)
  abstract = saved.on_a_mesh(config)
  sharded = saved_model.open_model(_FIXTURES / 'tied').load(abstract)
  saved.assert_placed(sharded, abstract)
  saved.assert_equal(sharded, params)


def _raw_tensors(folder):
  """Name -> type, shape and bytes, read without the code under test."""
  files = map(safetensors_numpy.load_file, folder.glob('*.safetensors'))
  tensors = {name: tensor for file in files for name, tensor in file.items()}
  return {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in tensors.items()}


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_what_comes_in_goes_out_byte_for_byte(tmp_path, name, scan_layers):
  config, params = saved.read(_FIXTURES / name, scan_layers=scan_layers, pad_vocab_to=128)
  huggingface.write_model(tmp_path, config, params, None)
  wanted = _raw_tensors(_FIXTURES / name)
  if name == 'bare':  # as if it had been saved with its head
    wanted = {f'transformer.{tensor}': value for tensor, value in wanted.items()}
  assert _raw_tensors(tmp_path) == wanted
  # Without it, some versions of transformers refuse the file.
  with safetensors.safe_open(tmp_path / _WEIGHTS, framework='numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  before, after = (json_files.read(f / 'config.json') for f in (_FIXTURES / name, tmp_path))
  sizes = {'n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size', 'model_type'}
  for key in sizes | set(huggingface._FIXED):
    assert after[key] == before[key]
  assert after['architectures'] == ['GPT2LMHeadModel'] and after['n_inner'] is None
  assert after['tie_word_embeddings'] == (name != 'untied')


@pytest.mark.parametrize('changes', [{}, {'bias': False}, {'tie_embeddings': False}], ids=str)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_model_of_ours_is_the_same_after_export_and_import(tmp_path, changes, scan_layers):
  config = dataclasses.replace(saved.MODEL, scan_layers=scan_layers, dropout=0.25, **changes)
  # In another order and type than the file's.
  params = jax.tree.map(lambda x: np.asfortranarray(x, np.float64), random_params.make(config))
  huggingface.write_model(tmp_path, config, params, saved.BYTE)
  values = json_files.read(tmp_path / 'config.json')
  assert {values[f'{part}_pdrop'] for part in ('embd', 'resid', 'attn')} == {0.25}
  assert values['bos_token_id'] == values['eos_token_id'] == saved.BYTE.eos_id
  assert len({(tmp_path / name).stat().st_mode for name in (_WEIGHTS, 'config.json')}) == 1
  model = saved_model.open_model(tmp_path)
  assert model.tokenizer is not None and model.tokenizer.hash == saved.BYTE.hash
  again = model.load(
    saved.on_one_device(dataclasses.replace(model.config, scan_layers=scan_layers))
  )
  wanted = dict(jax.tree_util.tree_leaves_with_path(params))
  for path, leaf in jax.tree_util.tree_leaves_with_path(again):
    value = wanted.pop(path, np.zeros(()))  # a model without biases gets biases of 0
    value = value[:257] if path[0].key in ('wte', 'lm_head') else value
    np.testing.assert_array_equal(leaf, np.broadcast_to(value.astype(np.float32), leaf.shape))
  assert not wanted
  huggingface.write_model(tmp_path, config, params, saved.BOS)
  values = json_files.read(tmp_path / 'config.json')
  assert (values['bos_token_id'], values['eos_token_id']) == (saved.BOS.bos_id, saved.BOS.eos_id)


def test_the_tokenizer_of_gpt2_has_the_files_of_hugging_face(tmp_path, vocabulary):
  config = config_lib.ModelConfig(n_layer=1, n_head=1, n_embd=1, block_size=2, vocab_size=50257)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), models.abstract_params(config))
  tokenizer = tokenizers.build(config_lib.DataConfig(tokenizer='gpt2'), {})
  huggingface.write_model(tmp_path, config, params, tokenizer)
  spelled = json_files.read(tmp_path / 'vocab.json')
  assert len(spelled) == 50257
  assert (spelled['!'], spelled['Ġthe'], spelled['<|endoftext|>']) == (0, 262, 50256)
  (tmp_path / huggingface.TOKENIZER).unlink()  # like a directory of others
  again = saved_model.open_model(tmp_path).tokenizer
  assert again is not None and again.hash == tokenizer.hash


def test_a_tokenizer_json_is_exported_and_used_where_it_lies(tmp_path, copy):
  package = pytest.importorskip('tokenizers')
  words = {f'w{i}': i for i in range(100)} | {'</s>': 100}
  made = package.Tokenizer(package.models.WordLevel(words, unk_token='w0'))
  made.add_special_tokens(['</s>'])
  folder = copy()
  (folder / 'merges.txt').write_text('#version: 0.2\na b\n')  # of another vocabulary
  assert saved_model.open_model(folder).tokenizer is None
  made.save(str(folder / 'tokenizer.json'))
  model = saved_model.open_model(folder)
  assert model.tokenizer is not None and model.tokenizer.encode('w7').tolist() == [7]
  params = model.load(saved.on_one_device(model.config))
  huggingface.write_model(tmp_path / 'out', model.config, params, model.tokenizer)
  (tmp_path / 'out' / huggingface.TOKENIZER).unlink()
  again = saved_model.open_model(tmp_path / 'out').tokenizer
  assert again is not None and again.hash == model.tokenizer.hash and again.eos_id == 100
  for content in (b'{', b'[]', b'{}'):
    (folder / 'tokenizer.json').write_bytes(content)
    saved.refused(folder, folder / 'tokenizer.json')


@pytest.mark.parametrize('kind', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(copy, kind):
  path = copy() / _WEIGHTS
  halves = {k: v.astype(kind) for k, v in safetensors_numpy.load_file(path).items()}
  safetensors_numpy.save_file(halves, path)
  _, params = saved.read(path.parent)
  wanted_VD = halves['transformer.wte.weight'].astype(np.float32)
  np.testing.assert_array_equal(params['wte']['embedding'], wanted_VD)


def test_the_same_model_in_other_words_is_understood(copy):
  path = copy() / _WEIGHTS
  values = json_files.read(path.with_name('config.json'))
  for key in ('tie_word_embeddings', *huggingface._FIXED):
    del values[key]
  values |= {'n_inner': 32, 'activation_function': 'gelu_pytorch_tanh'}
  atomic.write_json(path.with_name('config.json'), values)
  found = safetensors_numpy.load_file(path)
  for layer in range(2):
    found[f'transformer.h.{layer}.attn.bias'] = np.ones((1, 1, 16, 16), bool)
    found[f'transformer.h.{layer}.attn.masked_bias'] = np.array(-1e4, np.float32)
  found['lm_head.weight'] = found['transformer.wte.weight']
  safetensors_numpy.save_file(found, path)
  assert saved_model.open_model(path.parent).config.tie_embeddings
  _check_logits(path.parent, 'tied')


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('path', [_FIXTURES / 'sharded', saved.FIXTURES / 'openai_tiny'])
def test_each_tensor_is_read_once_and_reported(monkeypatch, path, scan_layers):
  shown: list[tuple[str, int, int]] = []
  monkeypatch.setattr(progress.Bar, 'show', lambda bar, *args: shown.append(args))
  config, _ = saved.read(path, scan_layers=scan_layers, pad_vocab_to=128)
  sizes = [math.prod(shape) for shape in tensors.shapes(config).values()]
  phases, done, totals = zip(*shown, strict=True)
  assert set(phases) == {f'reading {path}'} and set(totals) == {sum(sizes)}
  assert sorted(np.diff(done)) == sorted(sizes) and (done[0], done[-1]) == (0, sum(sizes))


# What isn't a GPT-2, and what is damaged.


@pytest.mark.parametrize(
  'changes',
  [
    {'model_type': 'gpt_neo'},
    {'n_layer': 0, 'n_head': '2', 'n_embd': 8.0, 'n_positions': None, 'vocab_size': True},
    {'n_head': 3},
    {'activation_function': 'gelu', 'layer_norm_epsilon': 1e-6, 'n_inner': 30},
    {'scale_attn_by_inverse_layer_idx': True, 'scale_attn_weights': False},
    {'reorder_and_upcast_attn': True, 'add_cross_attention': True, 'tie_word_embeddings': 'yes'},
  ],
  ids=str,
)
def test_another_architecture_is_refused_with_each_difference(copy, changes):
  path = copy() / 'config.json'
  atomic.write_json(path, json_files.read(path) | changes)
  message = saved.refused(path.parent, path)
  assert all(key in message for key in changes) and message.count(str(path)) == len(changes)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    *(('n_layer', 3), ('n_layer', 10**12), ('n_embd', 2**80), ('vocab_size', 100)),
    *(('n_positions', 17), ('tie_word_embeddings', False)),
  ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused(copy, key, value):
  path = copy() / 'config.json'
  atomic.write_json(path, json_files.read(path) | {key: value})
  saved.refused(path.parent)


def test_tensors_that_are_missing_unexpected_or_misshaped_are_named(copy):
  path = copy() / _WEIGHTS
  found = safetensors_numpy.load_file(path)
  found['transformer.h.0.attn.bias_odd'] = found.pop('transformer.h.0.ln_1.weight')
  found['transformer.ln_f.bias'] = np.zeros((9,), np.float32)
  safetensors_numpy.save_file(found, path)
  message = saved.refused(path.parent)
  assert all(name in message for name in ('h.0.ln_1.weight', 'h.0.attn.bias_odd', 'ln_f.bias'))


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: b'',
    lambda data: data[:1000],
    lambda data: data[:-1],
    lambda data: (2**62).to_bytes(8, 'little') + data[8:],
    lambda data: data.replace(b'[101,8]', b'[102,8]'),
    lambda data: data.replace(b'"F32"', b'"F16"', 1),
    lambda data: data.replace(b'"F32"', b'"I32"', 1),
  ],
)
def test_a_damaged_weights_file_is_named_when_it_is_opened_and_when_it_is_read(copy, damage):
  path = copy() / _WEIGHTS
  model = saved_model.open_model(path.parent)
  path.write_bytes(damage(path.read_bytes()))
  saved.refused(path.parent, path)
  if b'I32' not in path.read_bytes():
    assert raised.user_error(model.load, saved.on_one_device(model.config)).key == str(path)


@pytest.mark.parametrize(
  'weight_map',
  [None, {}, *({'x': name} for name in ('../x', '/etc/passwd', 'a/b', '', 3))],
)
def test_an_index_names_no_file_elsewhere(copy, weight_map):
  path = copy('sharded') / _INDEX
  path.write_text(json.dumps({'weight_map': weight_map}))
  saved.refused(path.parent, None if weight_map == {} else path)


def test_a_missing_shard_or_index_is_named(copy):
  folder = copy('sharded')
  shard = next(folder.glob('*.safetensors'))
  shard.unlink()
  saved.refused(folder, shard)
  (folder / _INDEX).unlink()
  saved.refused(folder)
