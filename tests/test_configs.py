"""Every config file is valid, says how it is run, lowers at its real size, and keeps its recipe."""

import pathlib
import runpy
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from gpt_jax import config as config_lib
from gpt_jax import validation
from gpt_jax.models import gpt
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib

FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / 'configs').glob('*.py'))
# Of tiny Shakespeare for `char`; other texts have some more.
VOCABULARIES = {'gpt2': 50257, 'byte': 257, 'char': 65}

every_config = pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)


def _run(path):
  return runpy.run_path(str(path))


def _get(name):
  config = _run(next(path for path in FILES if path.stem == name))['get_config']()
  config.model.vocab_size = VOCABULARIES[config.data.tokenizer]
  return config


def test_all_configs_are_seen():
  assert {path.stem for path in FILES} >= {
    'finetune_shakespeare',
    'gpt2_small',
    'gpt2_medium',
    'gpt2_large',
    'gpt2_xl',
    'quickstart',
    'shakespeare_char',
    'shakespeare_char_cpu',
  }


@every_config
def test_config_is_valid_survives_json_and_gives_its_command(path):
  names = _run(path)
  config = names['get_config']()
  validation.validate(config)
  assert validation.from_dict(config_lib.to_dict(config)) == config
  assert f'python -m gpt_jax.train --config=configs/{path.name}\n' in names['__doc__']
  other = names['get_config']()
  other.model.n_layer += 1
  assert names['get_config']() == config, 'an override of one run would be seen by the next'


@every_config
def test_config_lowers_at_its_real_size(path):
  config = _get(path.stem)
  devices = config.mesh.cpu_devices
  if devices > jax.device_count():
    pytest.skip(f'needs {devices} devices')
  before = sum(array.nbytes for array in jax.live_arrays())
  with mock.patch.object(jax, 'device_count', return_value=devices):
    program = program_lib.build(config)
    state_bytes = mesh_lib.per_device_bytes(program.state)
    if config.model.n_layer > 12:
      # Every layer is traced alike; for the step of the deep ones, one of them is enough.
      config.model.scan_layers = True
      program = program_lib.build(config)
      assert mesh_lib.per_device_bytes(program.state) == state_bytes
  state, metrics = jax.eval_shape(program.train_step, program.state, program.batch)
  loss, count = jax.eval_shape(program.eval_step, program.state.params, program.batch)
  # A few scalars and masks: nothing of the model's size was made.
  assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e6

  shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, program.state)]
  assert shapes[0] == shapes[1]
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate'}
  assert all(x.shape == () and x.dtype == jnp.float32 for x in [*metrics.values(), loss])
  assert program.tokens_per_step == config.train.batch_size * config.model.block_size


def _holds(section, **values):
  assert {name: getattr(section, name) for name in values} == values


@pytest.mark.parametrize(
  'name, n_layer, n_head, n_embd, learning_rate',
  [
    # Peak learning rates: Brown et al. 2020, table 2.1.
    ('gpt2_small', 12, 12, 768, 6e-4),
    ('gpt2_medium', 24, 16, 1024, 3e-4),
    ('gpt2_large', 36, 20, 1280, 2.5e-4),
    ('gpt2_xl', 48, 25, 1600, 2e-4),
  ],
)
def test_gpt2_configs_are_the_published_recipe(name, n_layer, n_head, n_embd, learning_rate):
  config = _get(name)
  _holds(config.model, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=1024)
  _holds(config.model, bias=True, tie_embeddings=True, dropout=0.0, dtype='bfloat16')
  # Brown et al. 2020, appendix B: half a million tokens a step, decay to a tenth, clip at 1.0.
  assert config.train.batch_size * config.model.block_size == 2**19
  _holds(config.optimizer, learning_rate=learning_rate, schedule='cosine')
  assert config.optimizer.min_learning_rate == pytest.approx(learning_rate / 10)
  _holds(config.optimizer, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0)
  # A warm-up of 375 million tokens.
  assert config.optimizer.warmup_steps * 2**19 == pytest.approx(375e6, rel=0.05)
  assert config.data.tokenizer == 'gpt2'


@pytest.mark.parametrize(
  'name, model, batch_size, steps, eval_batches, millions',
  [
    (
      'shakespeare_char',
      {'n_layer': 6, 'n_head': 6, 'n_embd': 384, 'block_size': 256, 'dropout': 0.2},
      64,
      5000,
      200,
      10.65,
    ),
    (
      'shakespeare_char_cpu',
      {'n_layer': 4, 'n_head': 4, 'n_embd': 128, 'block_size': 64, 'dropout': 0.0},
      12,
      2000,
      20,
      0.80,
    ),
  ],
)
def test_shakespeare_configs_are_nanogpts(name, model, batch_size, steps, eval_batches, millions):
  """config/train_shakespeare_char.py, and the README's command for a laptop."""
  config = _get(name)
  _holds(config.model, **model, bias=False, tie_embeddings=True, pad_vocab_to=1)
  _holds(config.train, batch_size=batch_size, gradient_accumulation=1, steps=steps)
  _holds(config.train, eval_every=250, eval_batches=eval_batches)
  _holds(config.optimizer, learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=100)
  _holds(config.optimizer, schedule='cosine', weight_decay=0.1, b1=0.9, b2=0.99, clip=1.0)
  _holds(config.data, source='tfds:tiny_shakespeare', tokenizer='char', val_fraction=0.1)
  # nanoGPT prints the number of parameters without the position table.
  positions = config.model.block_size * config.model.n_embd
  assert round((gpt.parameter_count(config.model) - positions) / 1e6, 2) == millions


def test_fine_tuning_is_nanogpts():
  """config/finetune_shakespeare.py, of the smallest GPT-2."""
  config = _get('finetune_shakespeare')
  small = _get('gpt2_small').model
  assert config.model == small
  _holds(config.train, batch_size=32, gradient_accumulation=32, steps=20, eval_every=5)
  assert config.train.batch_size * config.model.block_size == 32_768
  # No checkpoint but of the best and of the end.
  assert config.train.checkpoint_every >= config.train.steps
  _holds(config.optimizer, learning_rate=3e-5, schedule='constant', warmup_steps=0)
  _holds(config.optimizer, weight_decay=0.1, b1=0.9, b2=0.95, clip=1.0)
  _holds(config.data, source='tfds:tiny_shakespeare', tokenizer='gpt2', val_fraction=0.1)
  _holds(config.data, chunks='windows', split='position')
  doc = _run(next(path for path in FILES if path.stem == 'finetune_shakespeare'))['__doc__']
  assert f'--local-dir={config.init_from}\n' in doc
  with_adapters = _get('finetune_shakespeare')
  with_adapters.model.lora_rank = 8
  validation.validate(with_adapters)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_fine_tuning_with_adapters_lowers_at_its_real_size(scan_layers):
  config = _get('finetune_shakespeare')
  config.model.lora_rank, config.model.scan_layers = 8, scan_layers
  with mock.patch.object(jax, 'device_count', return_value=1):
    program = program_lib.build(config)
  state, _ = jax.eval_shape(program.train_step, program.state, program.batch)
  shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in (state, program.state)]
  assert shapes[0] == shapes[1]
  # 4 bytes for each of two moments of 1,179,648 parameters, and two counts of steps.
  assert mesh_lib.per_device_bytes(program.state.opt_state) == 8 * 1_179_648 + 2 * 4
