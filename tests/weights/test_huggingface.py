"""Models of Hugging Face come in with the numbers that `transformers` gives, and go out again."""

import dataclasses
import json
import math
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import errors, loading, progress
from gpt_jax.data import tokenizers
from gpt_jax.generation import text
from gpt_jax.models import gpt
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.weights import huggingface, openai, published

# Written by make_huggingface_fixtures.py.
_FIXTURES = pathlib.Path(__file__).parent / 'fixtures' / 'huggingface'
_NAMES = ['tied', 'untied', 'sharded', 'bare']


@pytest.fixture
def copy(tmp_path):
  """A function that copies a fixture to where it may be changed."""

  def run(name='tied'):
    return pathlib.Path(shutil.copytree(_FIXTURES / name, tmp_path / name))

  return run


def expected(name):
  """Token ids (B, L) and the logits (B, L, V) that transformers computed."""
  values = np.load(_FIXTURES / name / 'expected.npz')
  return values['tokens_BL'], values['logits_BLV']


def read(folder, **changes):
  """The model in `folder`, with options of ours."""
  model = huggingface.open_model(folder)
  config = dataclasses.replace(model.config, attention='xla', **changes)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return text.TextModel(config, model.params(gpt.abstract_params(config, device)), None)


def assert_close(logits_BLV, wanted_BLV):
  np.testing.assert_allclose(logits_BLV, wanted_BLV, atol=1e-5)
  np.testing.assert_array_equal(np.argmax(logits_BLV, -1), wanted_BLV.argmax(-1))


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('changes', [{}, {'scan_layers': True}, {'pad_vocab_to': 128}])
def test_logits_are_those_of_transformers(name, changes):
  tokens_BL, wanted_BLV = expected(name)
  model = read(_FIXTURES / name, **changes)
  assert_close(model.logits(tokens_BL), wanted_BLV)
  if changes.get('pad_vocab_to'):
    assert model.params['wte']['embedding'].shape[0] == 128


def test_a_shorter_context_has_the_first_positions():
  tokens_BL, wanted_BLV = expected('tied')
  model = read(_FIXTURES / 'tied', block_size=5)
  assert model.params['wpe']['embedding'].shape == (5, 8)
  assert_close(model.logits(tokens_BL[:, :5]), wanted_BLV[:, :5])


def test_tensors_go_to_their_shards():
  config = config_lib.Config(mesh=config_lib.MeshConfig(fsdp=2, tensor=2))
  config.train.batch_size = 8
  model = huggingface.open_model(_FIXTURES / 'tied')
  config.model = dataclasses.replace(model.config, pad_vocab_to=128)
  abstract = gpt.abstract_params(config.model)
  shardings = sharding.tree_shardings(mesh_lib.make_mesh(config), abstract)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
  )
  params = model.params(abstract)
  whole = read(_FIXTURES / 'tied', pad_vocab_to=128).params
  for part, one, wanted in zip(*map(jax.tree.leaves, (params, whole, shardings)), strict=True):
    assert part.sharding == wanted
    np.testing.assert_array_equal(np.asarray(part), np.asarray(one))
  assert len(params['wte']['embedding'].sharding.device_set) == 8


def raw_tensors(folder):
  """Name -> type, shape and bytes, read without the code that is tested."""
  found = {}
  for path in folder.glob('*.safetensors'):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], 'little')
    for name, about in json.loads(data[8 : 8 + length]).items():
      if name != '__metadata__':
        start, stop = (8 + length + offset for offset in about['data_offsets'])
        found[name] = about['dtype'], about['shape'], data[start:stop]
  return found


@pytest.mark.parametrize('name', _NAMES)
def test_what_comes_in_goes_out_byte_for_byte(tmp_path, name):
  loaded = loading.load(_FIXTURES / name)
  huggingface.write_model(
    tmp_path / 'out', loaded.model.config, loaded.model.params, loaded.model.tokenizer
  )
  wanted = raw_tensors(_FIXTURES / name)
  if name == 'bare':  # as if it had been saved with its head
    wanted = {f'transformer.{tensor}': value for tensor, value in wanted.items()}
  assert raw_tensors(tmp_path / 'out') == wanted
  before, after = (
    json.loads((folder / 'config.json').read_text())
    for folder in (_FIXTURES / name, tmp_path / 'out')
  )
  decisive = {*huggingface._FIXED, 'n_layer', 'n_head', 'n_embd', 'n_positions', 'vocab_size'}
  assert {key: before[key] for key in decisive} == {key: after[key] for key in decisive}
  assert after['tie_word_embeddings'] == (name != 'untied')


@pytest.mark.parametrize(
  'changes', [{}, {'bias': False}, {'tie_embeddings': False}, {'scan_layers': True}]
)
def test_a_model_of_ours_is_the_same_after_export_and_import(tmp_path, changes):
  config = config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=257, pad_vocab_to=128, attention='xla'
  )
  config = dataclasses.replace(config, **changes)
  params = gpt.GPT(config).init(jax.random.key(1), np.zeros((1, 1), np.int32))['params']
  ours = text.TextModel(
    config, params, tokenizers.build(config_lib.DataConfig(tokenizer='byte'), {})
  )
  huggingface.write_model(tmp_path / 'out', config, params, ours.tokenizer)
  again = gpt_jax.load(tmp_path / 'out')
  tokens_BL = np.arange(12).reshape(2, 6)
  np.testing.assert_allclose(again.logits(tokens_BL), ours.logits(tokens_BL), atol=1e-6)
  assert again.params['wte']['embedding'].shape == (257, 8)
  assert again.tokenizer and ours.tokenizer and again.tokenizer.hash == ours.tokenizer.hash


@pytest.mark.parametrize('changes', [{}, {'bias': False, 'tie_embeddings': False}])
@pytest.mark.parametrize('scan_layers', [False, True])
def test_a_file_is_the_one_that_the_library_writes(tmp_path, changes, scan_layers):
  config = config_lib.ModelConfig(n_layer=11, n_head=1, n_embd=3, block_size=4, vocab_size=7)
  config = dataclasses.replace(config, scan_layers=scan_layers, **changes)
  rng = np.random.default_rng(0)  # neither float32 nor in the order of the file
  params = jax.tree.map(
    lambda x: np.asfortranarray(rng.random(x.shape)), gpt.abstract_params(config)
  )
  huggingface.write_model(tmp_path / 'out', config, params, None)
  written = tmp_path / 'out' / 'model.safetensors'
  tensors = safetensors_numpy.load_file(written)
  biases = sum(name.endswith('.bias') for name in tensors)
  assert biases == 11 * 6 + 1 and ('lm_head.weight' in tensors) == bool(changes)
  wanted_VD = params['wte']['embedding'][:7].astype(np.float32)
  np.testing.assert_array_equal(tensors['transformer.wte.weight'], wanted_VD)
  safetensors_numpy.save_file(tensors, tmp_path / 'theirs', metadata={'format': 'pt'})
  assert written.read_bytes() == (tmp_path / 'theirs').read_bytes()


@pytest.fixture
def shown(monkeypatch):
  """What bars are told."""
  found = []
  monkeypatch.setattr(progress.Bar, 'show', lambda bar, *args: found.append(args))
  return found


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize(
  'open_model, path',
  [
    (huggingface.open_model, _FIXTURES / 'tied'),
    (huggingface.open_model, _FIXTURES / 'sharded'),
    (huggingface.open_model, _FIXTURES / 'untied'),
    (openai.open_model, _FIXTURES.parent / 'openai_tiny'),
  ],
)
def test_reading_tells_its_progress_tensor_by_tensor(shown, open_model, path, scan_layers):
  model = open_model(path)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  config = dataclasses.replace(model.config, scan_layers=scan_layers, pad_vocab_to=128)
  model.params(gpt.abstract_params(config, device))
  sizes = [math.prod(tensor.shape) for tensor in model.tensors.values()]
  what, done, total = zip(*shown, strict=True)
  assert set(what) == {f'reading {path}'} and set(total) == {sum(sizes)}
  assert done[0] == 0 and done[-1] == sum(sizes)
  assert sorted(np.diff(done)) == sorted(sizes)


def test_writing_tells_its_progress_tensor_by_tensor(tmp_path, shown):
  model = read(_FIXTURES / 'tied')
  shown.clear()
  huggingface.write_model(tmp_path / 'out', model.config, model.params, None)
  sizes = [math.prod(shape) * 4 for _, shape in published.shapes(model.config)]
  what, done, total = zip(*shown, strict=True)
  assert set(what) == {f'writing {tmp_path}/out/model.safetensors'} and set(total) == {sum(sizes)}
  assert done[0] == 0 and sorted(np.diff(done)) == sorted(sizes)


def test_nothing_is_printed_without_a_terminal(capfd, monkeypatch):
  monkeypatch.setattr(progress, '_DELAY', 0)
  gpt_jax.load(_FIXTURES / 'tied')
  assert capfd.readouterr() == ('', '')


def test_the_tokenizer_of_gpt2_has_the_files_of_hugging_face(tmp_path, vocabulary):
  config = config_lib.ModelConfig(n_layer=1, n_head=1, n_embd=1, block_size=2, vocab_size=50257)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), gpt.abstract_params(config))
  tokenizer = tokenizers.build(config_lib.DataConfig(tokenizer='gpt2'), {})
  huggingface.write_model(tmp_path / 'out', config, params, tokenizer)
  spelled = json.loads((tmp_path / 'out' / 'vocab.json').read_text())
  assert len(spelled) == 50257
  assert (spelled['!'], spelled['Ġthe'], spelled['<|endoftext|>']) == (0, 262, 50256)
  assert tokenizer.encode(' the').tolist() == [262]
  (tmp_path / 'out' / huggingface.TOKENIZER).unlink()  # as a directory of others
  again = huggingface.open_tokenizer(tmp_path / 'out')
  assert again is not None and again.hash == tokenizer.hash


@pytest.mark.parametrize(('kind', 'rtol'), [(np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)])
def test_half_precision_is_read_as_it_is(copy, kind, rtol):
  folder = copy()
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  halves = {name: tensor.astype(kind) for name, tensor in tensors.items()}
  safetensors_numpy.save_file(halves, folder / 'model.safetensors')
  embedding_VD = np.asarray(read(folder).params['wte']['embedding'])
  wanted_VD = halves['transformer.wte.weight'].astype(np.float32)
  np.testing.assert_array_equal(embedding_VD, wanted_VD)
  np.testing.assert_allclose(embedding_VD, tensors['transformer.wte.weight'], rtol=rtol)


def test_masks_and_a_second_head_are_left_out(copy):
  folder = copy()
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  for layer in range(2):
    tensors[f'transformer.h.{layer}.attn.bias'] = np.ones((1, 1, 16, 16), bool)
    tensors[f'transformer.h.{layer}.attn.masked_bias'] = np.array(-1e4, np.float32)
  tensors['lm_head.weight'] = tensors['transformer.wte.weight']
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  tokens_BL, wanted_BLV = expected('tied')
  assert_close(read(folder).logits(tokens_BL), wanted_BLV)


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('model_type', 'gpt_neo', ['gpt_neo', 'only gpt2']),
    ('activation_function', 'relu', ['activation_function', 'relu', 'gelu_new']),
    ('activation_function', 'gelu', ["'gelu'"]),
    ('layer_norm_epsilon', 1e-6, ['layer_norm_epsilon', '1e-06']),
    ('scale_attn_by_inverse_layer_idx', True, ['scale_attn_by_inverse_layer_idx']),
    ('scale_attn_weights', False, ['scale_attn_weights']),
    ('reorder_and_upcast_attn', True, ['reorder_and_upcast_attn']),
    ('add_cross_attention', True, ['add_cross_attention']),
    ('n_inner', 30, ['n_inner', '30', '32']),
    ('n_layer', 0, ['n_layer', '0']),
    ('n_head', '2', ["'2'"]),
    ('n_head', 3, ['n_embd (8)', 'n_head (3)']),
    ('n_layer', 3, ['2 layers', '3']),
    ('n_layer', 10**12, ['2 layers', '1000000000000']),
    ('n_embd', 2**80, ['wte.weight has shape (101, 8), the config asks for (101, 1208925819614']),
    ('vocab_size', 10**30, ['wte.weight', '(101, 8)', '(1000000000000000']),
    ('n_positions', 10**30, ['wpe.weight', '(16, 8)', '(1000000000000000']),
    ('n_positions', 17, ['wpe.weight', '(16, 8)', '(17, 8)']),
    ('vocab_size', 100, ['wte.weight', '(101, 8)', '(100, 8)']),
    ('tie_word_embeddings', False, ['lm_head.weight', 'missing']),
  ],
)
def test_another_architecture_is_refused(copy, key, value, words):
  folder = copy()
  values = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**values, key: value}))
  with pytest.raises(errors.UserError) as e:
    huggingface.open_model(folder)
  assert all(word in str(e.value) for word in [str(folder), *words]), e.value


def test_tensors_that_are_not_the_models_are_named(copy):
  folder = copy()
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  tensors['transformer.h.0.odd'] = tensors.pop('transformer.h.0.ln_1.weight')
  tensors['transformer.ln_f.bias'] = np.zeros((9,), np.float32)
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(errors.UserError) as e:
    huggingface.open_model(folder)
  for line in (
    'h.0.ln_1.weight (8,) is missing',
    'h.0.odd (8,) is unexpected',
    'ln_f.bias has shape (9,), the config asks for (8,)',
  ):
    assert line in str(e.value)


def test_a_missing_size_is_named(copy):
  folder = copy()
  values = json.loads((folder / 'config.json').read_text())
  del values['n_embd']
  (folder / 'config.json').write_text(json.dumps(values))
  with pytest.raises(errors.UserError, match='config.json is damaged.*n_embd'):
    huggingface.open_model(folder)


@pytest.mark.parametrize('kept', [0, 4, 100, 1000, -1])
def test_a_file_that_was_cut_short_is_refused(copy, kept):
  folder = copy()
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(errors.UserError, match=f'{path} is damaged'):
    huggingface.open_model(folder)


def change_header(path, change):
  data = path.read_bytes()
  length = int.from_bytes(data[:8], 'little')
  header = json.loads(data[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + length :])


@pytest.mark.parametrize(
  'change',
  [
    lambda h: h['transformer.wte.weight'].update(shape=[102, 8]),
    lambda h: h['transformer.wte.weight'].update(dtype='F16'),
    lambda h: h['transformer.wte.weight'].update(data_offsets=[0, 4]),
    lambda h: h['transformer.wte.weight'].update(data_offsets=[2**60, 2**60 + 3232]),
    lambda h: h.pop('transformer.wte.weight'),
  ],
)
def test_a_header_that_lies_is_refused(copy, change):
  folder = copy()
  change_header(folder / 'model.safetensors', change)
  with pytest.raises(errors.UserError, match=f'{folder}.*(damaged|missing)'):
    huggingface.open_model(folder)


def test_a_header_longer_than_the_file_is_refused(copy):
  folder = copy()
  path = folder / 'model.safetensors'
  path.write_bytes((2**62).to_bytes(8, 'little') + path.read_bytes()[8:])
  with pytest.raises(errors.UserError, match='damaged'):
    huggingface.open_model(folder)


def test_whole_numbers_are_no_weights(copy):
  folder = copy()
  tensors = safetensors_numpy.load_file(folder / 'model.safetensors')
  tensors['transformer.wte.weight'] = np.zeros((101, 8), np.int32)
  safetensors_numpy.save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(errors.UserError, match='wte.weight has type I32'):
    read(folder)


@pytest.mark.parametrize(
  'name', ['../x.safetensors', '/etc/passwd', 'a/b.safetensors', '', '..', 3]
)
def test_an_index_names_no_file_elsewhere(copy, name):
  folder = copy('sharded')
  path = folder / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  index['weight_map']['transformer.wte.weight'] = name
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match='outside of its folder|damaged'):
    huggingface.open_model(folder)


def test_an_index_that_does_not_fit_its_shards_is_refused(copy):
  folder = copy('sharded')
  path = folder / 'model.safetensors.index.json'
  index = json.loads(path.read_text())
  files = set(index['weight_map'].values())
  first = index['weight_map']['transformer.wte.weight']
  index['weight_map']['transformer.wte.weight'] = next(iter(files - {first}))
  path.write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match='transformer.wte.weight'):
    huggingface.open_model(folder)
  (folder / first).unlink()
  with pytest.raises(errors.UserError, match='damaged'):
    huggingface.open_model(folder)


def test_a_directory_without_weights_is_named(copy):
  folder = copy()
  (folder / 'model.safetensors').unlink()
  with pytest.raises(errors.UserError, match=f'{folder} has no weights'):
    gpt_jax.load(folder)


def test_a_tokenizer_of_another_size_is_refused(copy):
  folder = copy()
  description = tokenizers.build(config_lib.DataConfig(tokenizer='byte'), {}).to_dict()
  (folder / huggingface.TOKENIZER).write_text(json.dumps(description))
  with pytest.raises(errors.UserError, match='257 tokens, the model 101'):
    gpt_jax.load(folder)


def test_names_cover_the_tree_of_every_architecture():
  for bias, tied in [(True, True), (False, True), (True, False)]:
    config = config_lib.ModelConfig(n_layer=3, vocab_size=50257, bias=bias, tie_embeddings=tied)
    names = [name for name, _ in published.shapes(config)]
    scanned = dataclasses.replace(config, scan_layers=True)
    paths = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(gpt.abstract_params(scanned))
    ]
    again = [name for path in paths for name in published.published_names(path, 3)]
    assert sorted(again) == sorted(names) and len(set(names)) == len(names)
