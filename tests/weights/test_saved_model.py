"""A path to a model in any form gives its parameters, or an error that names the file."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax import atomic, json_files
from gpt_jax.data.tokenizers import bpe
from gpt_jax.models import lora
from gpt_jax.weights import huggingface, openai, saved_model
from tests import raised, random_params
from tests.weights import saved

_FORMS = ['run', 'huggingface']


@pytest.fixture(scope='module')
def params():
  """Parameters whose padding is 0, as it is after a load."""
  return _fitted(random_params.make(saved.MODEL), rows=264)


@pytest.fixture(scope='module')
def folder(params, tmp_path_factory):
  """One model in both of our forms."""
  folder = tmp_path_factory.mktemp('models')
  trees = {step: params if step == 2 else {'step': np.int32(step)} for step in (1, 2, 3)}
  saved.save_run(folder / 'run', saved.MODEL, trees, val_losses={1: 3.0, 2: 2.0})
  huggingface.write_model(folder / 'huggingface', saved.MODEL, params, saved.BYTE)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of these models that may be changed."""
  return pathlib.Path(shutil.copytree(folder, tmp_path / 'models'))


def _load(path, **changes):
  model = saved_model.open_model(path)
  return model.load(saved.on_one_device(dataclasses.replace(model.config, **changes)))


def _fitted(params, *, positions=8, rows=257):
  """`params` as NumPy arrays, with a shorter context and other padding, which is 0."""
  fitted = jax.tree.map(np.asarray, params)
  table = np.zeros((rows, 8), np.float32)
  table[:257] = fitted['wte']['embedding'][:257]
  wpe = fitted['wpe']['embedding'][:positions]
  return fitted | {'wte': {'embedding': table}, 'wpe': {'embedding': wpe}}


# Paths.


@pytest.mark.parametrize(
  ('val_losses', 'chosen'), [({1: 3.0, 2: 2.0, 3: 2.5}, 2), ({}, 3), ({2: 2.0}, 2)], ids=str
)
def test_a_workdir_gives_its_best_checkpoint_or_else_its_newest(tmp_path, val_losses, chosen):
  trees = {step: {'step': np.int32(step)} for step in (1, 2, 3)}
  run = saved.save_run(tmp_path / 'run', saved.MODEL, trees, val_losses=val_losses)
  model = saved_model.open_model(run.path)
  assert (model.step, model.path, model.config) == (chosen, run.path, saved.MODEL)
  assert model.tokenizer is not None and model.tokenizer.hash == saved.BYTE.hash


@pytest.mark.parametrize(
  ('cwd', 'path'),
  [
    ('.', 'run/checkpoints/1'),
    ('.', 'run/checkpoints/1/'),
    ('run', 'checkpoints/1'),
    ('run/checkpoints', '1'),
    ('run/checkpoints/1', '.'),
    ('run/checkpoints/3', '../1'),
    ('.', 'link'),
    ('.', 'run/moved/../checkpoints/1'),
  ],
)
def test_a_checkpoint_is_found_from_anywhere(copy, monkeypatch, cwd, path):
  os.symlink(copy / 'run' / 'checkpoints' / '1', copy / 'link')
  (copy / 'run' / 'moved').mkdir()
  monkeypatch.chdir(copy / cwd)
  assert saved_model.open_model(path).step == 1


def test_checkpoints_may_lie_on_another_disk(copy):
  (copy / 'run' / 'checkpoints').rename(copy / 'elsewhere')
  os.symlink(copy / 'elsewhere', copy / 'run' / 'checkpoints')
  for path, step in (('run', 2), ('run/checkpoints/1', 1)):
    assert saved_model.open_model(copy / path).step == step


def test_a_path_without_a_finished_checkpoint_is_named(copy):
  (copy / 'unfinished' / 'checkpoints' / '1.orbax-checkpoint-tmp').mkdir(parents=True)
  for name in ('config.json', 'tokenizer.json'):
    shutil.copy(copy / 'run' / name, copy / 'unfinished')
  for path in ('unfinished', 'run/checkpoints', 'run/config.json'):
    saved.refused(copy / path)


# Damage.

_TOKENIZER = {'run': 'tokenizer.json', 'huggingface': huggingface.TOKENIZER}


@pytest.mark.parametrize('form', _FORMS)
@pytest.mark.parametrize('content', [b'{"model": ', b'[]', b'\xff', b'{"model_type": 7}'])
def test_a_damaged_file_is_named(copy, form, content):
  for path in (copy / form / _TOKENIZER[form], copy / form / 'config.json'):
    path.write_bytes(content)
    saved.refused(copy / form, path)


@pytest.mark.parametrize(
  ('file', 'key', 'value'),
  [
    ('config.json', 'n_head', 4),  # the shapes don't tell
    ('config.json', 'block_size', 4),
    ('config.json', 'vocab_size', 258),
    ('tokenizer.json', 'special_tokens', ['bos']),
  ],
)
def test_a_config_or_tokenizer_of_another_run_is_refused(copy, file, key, value):
  path = copy / 'run' / file
  values = json_files.read(path)
  (values['model'] if file == 'config.json' else values)[key] = value
  atomic.write_json(path, values)
  for place in ('run', 'run/checkpoints/1'):
    saved.refused(copy / place, path)


def test_the_newest_intact_checkpoint_takes_the_place_of_a_damaged_best_one(copy, capsys):
  checkpoints = copy / 'run' / 'checkpoints'
  assert saved_model.open_model(copy / 'run').step == 2
  for damaged, step in (('2', 3), ('3', 1)):
    file = next((checkpoints / damaged / 'params').rglob('d/*'))
    file.write_bytes(file.read_bytes() + b'!')
    assert saved_model.open_model(copy / 'run').step == step
    assert f'{checkpoints / damaged} is damaged' in capsys.readouterr().err
    saved.refused(checkpoints / damaged)
  (checkpoints / '1' / 'manifest.json').unlink()
  saved.refused(copy / 'run', checkpoints / '2')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('form', _FORMS)
def test_weights_that_are_not_finite_are_refused_by_name(folder, params, tmp_path, form, value):
  path, bad = tmp_path / form, jax.tree.map(np.copy, params)
  bad['h_1']['mlp']['c_fc']['kernel'][3, 5] = value
  if form == 'run':
    saved.save_run(path, saved.MODEL, {1: bad})
  else:
    huggingface.write_model(path, saved.MODEL, bad, saved.BYTE)
  model = saved_model.open_model(path)
  for abstract in (saved.on_one_device(model.config), saved.on_a_mesh(saved.MODEL)):
    error = raised.user_error(model.load, abstract)
    assert error.key == str(path / 'checkpoints' / '1' if form == 'run' else path)
    assert ('h_1.mlp.c_fc.kernel' if form == 'run' else 'h.1.mlp.c_fc.weight') in error.problem


def test_a_tokenizer_of_another_vocabulary_is_refused(copy, vocabulary):
  shutil.copytree(saved.FIXTURES / 'openai_tiny', copy / 'openai')
  (copy / 'openai' / 'vocab.bpe').write_bytes(bpe.find_merges())
  (copy / 'huggingface' / huggingface.TOKENIZER).write_text('{"kind": "char", "characters": "a"}')
  for form in ('openai', 'huggingface'):
    saved.refused(copy / form)


# Loading.


@pytest.mark.parametrize('form', _FORMS)
@pytest.mark.parametrize(
  ('positions', 'pad_vocab_to', 'rows'), [(8, 1, 257), (3, 8, 264), (3, 128, 384)]
)
def test_context_and_padding_may_be_others(folder, params, form, positions, pad_vocab_to, rows):
  found = _load(folder / form, block_size=positions, pad_vocab_to=pad_vocab_to)
  saved.assert_equal(found, _fitted(params, positions=positions, rows=rows))


@pytest.mark.parametrize('form', _FORMS)
@pytest.mark.parametrize('axes', [{'tensor': 2}, {'fsdp': 2, 'tensor': 1}])
def test_parameters_go_to_the_shards_of_a_mesh(folder, params, form, axes):
  model = saved_model.open_model(folder / form)
  abstract = saved.on_a_mesh(dataclasses.replace(model.config, pad_vocab_to=16), **axes)
  found = model.load(abstract)
  saved.assert_placed(found, abstract)
  saved.assert_equal(found, _fitted(params, rows=272))


def test_what_a_mesh_cannot_divide_is_padded_before_it_is_sharded(tmp_path):
  odd = dataclasses.replace(saved.MODEL, pad_vocab_to=1)
  params = random_params.make(odd)
  model = saved_model.open_model(saved.save_run(tmp_path / 'run', odd, {1: params}).path)
  found = model.load(saved.on_a_mesh(dataclasses.replace(odd, pad_vocab_to=2)))
  saved.assert_equal(found, _fitted(params, rows=258))


@pytest.mark.parametrize('scan_layers', [False, True])
def test_adapters_come_merged_on_one_device_and_on_a_mesh(tmp_path, scan_layers):
  adapted = dataclasses.replace(saved.MODEL, lora_rank=2, lora_alpha=3, scan_layers=scan_layers)
  params = random_params.make(adapted)
  model = saved_model.open_model(saved.save_run(tmp_path / 'run', adapted, {1: params}).path)
  assert model.config == dataclasses.replace(adapted, lora_rank=0)
  wanted = lora.merge(adapted, params)
  for abstract in (saved.on_one_device(model.config), saved.on_a_mesh(model.config)):
    found = model.load(abstract)
    saved.assert_placed(found, abstract)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, wanted)
  short = model.load(saved.on_one_device(dataclasses.replace(model.config, block_size=3)))
  assert short['wpe']['embedding'].shape == (3, 8)


# Starting a run from a model.


@pytest.mark.parametrize('form', _FORMS)
def test_each_part_of_the_architecture_must_agree(folder, form):
  model = saved_model.open_model(folder / form)
  model.check(dataclasses.replace(model.config, block_size=3, pad_vocab_to=128), saved.BYTE)
  changes: dict[str, Any] = {'n_layer': 1, 'n_head': 4, 'n_embd': 32, 'vocab_size': 256}
  changes |= {'block_size': 9, 'bias': False, 'tie_embeddings': False}
  for keys in [[key] for key in changes] + [['n_layer', 'bias', 'block_size']]:
    other = dataclasses.replace(model.config, **{key: changes[key] for key in keys})
    error = raised.user_error(model.check, other, saved.BYTE)
    assert [error.key for error in error.all] == [f'model.{key}' for key in keys]


def test_layers_of_a_run_stay_scanned_or_not_and_its_tokenizer_counts(folder):
  scanned = dataclasses.replace(saved.MODEL, scan_layers=True)
  model = saved_model.open_model(folder / 'run')
  error = raised.user_error(model.check, scanned, saved.BOS)
  assert [error.key for error in error.all] == ['model.scan_layers', 'data.tokenizer']
  foreign = dataclasses.replace(saved_model.open_model(folder / 'huggingface'), tokenizer=None)
  foreign.check(scanned, saved.BOS)


# Imports.

_LOAD = """
import sys, gpt_jax
for path in sys.argv[1:]:
  gpt_jax.load(path)
print(*sys.modules)
"""


def test_foreign_models_are_loaded_without_orbax_and_optax(folder, tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _LOAD, folder / 'huggingface', saved.FIXTURES / 'openai_tiny'],
    env={**os.environ, 'PYTHONPATH': str(pathlib.Path(gpt_jax.__file__).parents[1])},
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  packages = {name.partition('.')[0] for name in done.stdout.split()}
  assert {'jax', 'safetensors', 'google_crc32c'} <= packages
  assert not packages & {'orbax', 'optax', 'torch', 'tensorflow'}


def test_a_missing_extra_for_openai_is_named(monkeypatch):
  monkeypatch.delitem(sys.modules, 'gpt_jax.weights.openai.tensor_bundle', raising=False)
  monkeypatch.delattr(openai, 'tensor_bundle', raising=False)
  monkeypatch.setitem(sys.modules, 'google_crc32c', None)
  assert 'gpt_jax[openai]' in saved.refused(saved.FIXTURES / 'openai_tiny')
