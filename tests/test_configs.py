"""Every config is valid, names its command, can be traced at its real size, keeps its recipe."""

import dataclasses
import json
import pathlib
import runpy
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gpt_jax import knobs, models, validation
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib
from gpt_jax.weights import hub

_FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'configs'
FILES = {path.stem: path for path in sorted(_FOLDER.glob('*.py'))}
# That of char is tiny Shakespeare's, that of word the film reviews'; other texts have others.
VOCABULARIES = {'gpt2': 50257, 'byte': 257, 'char': 65, 'word': 68171}


def _config(name, **values):
  config = runpy.run_path(str(FILES[name]))['get_config']()
  return knobs.replace(config, values)


def _program(config):
  """The run's functions, not compiled; nothing of the model's size is made."""
  kind = config.data.tokenizer
  tokenizer: Any = types.SimpleNamespace(kind=kind, vocab_size=VOCABULARIES[kind], mask_id=0)
  config = knobs.replace(config, {'mesh.fsdp': 1})
  mesh = mesh_lib.make_mesh(config, jax.devices()[: config.mesh.cpu_devices])
  classes = ('neg', 'pos') if config.task == 'classify' else ()
  return program_lib.build(program_lib.resolve(config, tokenizer, classes, mesh), mesh)


def _shapes(tree):
  return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize('name', FILES)
def test_a_config_survives_json_and_gives_its_command(name):
  config = _config(name)
  assert validation.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
  doc = runpy.run_path(str(FILES[name]))['__doc__']
  assert f'python -m gpt_jax.train --config=configs/{name}.py\n' in doc
  if config.init_from:  # a model that another config trains, or that can be downloaded
    trained = config.init_from.removeprefix('runs/') in FILES
    assert trained or config.init_from in hub.PUBLISHED


@pytest.mark.parametrize(
  ('name', 'values'),
  [*((name, {}) for name in FILES), ('finetune_shakespeare', {'model.lora_rank': 8})],
)
def test_a_config_is_valid_and_can_be_traced_at_its_real_size(name, values):
  config = _config(name, **values)
  validation.validate(config)
  if config.mesh.cpu_devices > jax.device_count():
    pytest.skip(f'needs {config.mesh.cpu_devices} devices')
  before = sum(array.nbytes for array in jax.live_arrays())
  program = _program(config)
  if config.model.n_layer > 6:
    # All layers are traced alike; tracing one of them is enough for the steps of deep models.
    state_bytes = mesh_lib.per_device_bytes(program.state)
    program = _program(_config(name, **values, **{'model.scan_layers': True}))
    assert mesh_lib.per_device_bytes(program.state) == state_bytes
  state, metrics = jax.eval_shape(program.train_step, program.state, program.batch)
  sums = jax.eval_shape(program.eval_step, program.state.params, program.batch)
  # A few scalars and masks.
  assert sum(array.nbytes for array in jax.live_arrays()) - before < 1e6

  assert _shapes(state) == _shapes(program.state)
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate', 'skipped'}
  assert all(x.shape == () and x.dtype == jnp.float32 for x in [*metrics.values(), sums['loss']])
  if config.model.lora_rank:
    # 4 bytes for each of two moments of 1,179,648 parameters, and two counts of steps.
    assert mesh_lib.per_device_bytes(program.state.opt_state) == 8 * 1_179_648 + 2 * 4


_GPT2: dict[str, Any] = {'bias': True, 'tie_embeddings': True, 'dropout': 0, 'clip': 1}
_GPT2 |= {'weight_decay': 0.1, 'b1': 0.9, 'b2': 0.95, 'schedule': 'cosine', 'tokenizer': 'gpt2'}
_NANOGPT: dict[str, Any] = {'bias': False, 'tie_embeddings': True, 'pad_vocab_to': 1, 'clip': 1}
_NANOGPT |= {'gradient_accumulation': 1, 'eval_every': 250, 'warmup_steps': 100, 'b1': 0.9}
_NANOGPT |= {'learning_rate': 1e-3, 'min_learning_rate': 1e-4, 'schedule': 'cosine', 'b2': 0.99}
_NANOGPT |= {'weight_decay': 0.1, 'tokenizer': 'char', 'val_fraction': 0.1}
_NANOGPT |= {'source': 'tfds:tiny_shakespeare'}


# `sizes` are layers, heads, width and context; `run` the batch size, steps and evaluated batches.
# Peak learning rates: Brown et al. 2020, table 2.1. nanoGPT: config/train_shakespeare_char.py, the
# README's command for a laptop, and config/finetune_shakespeare.py of the smallest GPT-2.
_TUNING: dict[str, Any] = {'schedule': 'constant', 'warmup_steps': 0, 'eval_every': 5}
_TUNING |= {'gradient_accumulation': 32}
_TUNING |= {'batch_size': 32, 'steps': 20, 'source': 'tfds:tiny_shakespeare', 'val_fraction': 0.1}
_TUNING |= {'chunks': 'windows', 'split': 'position', 'learning_rate': 3e-5}
_CHAR: dict[str, Any] = {'sizes': (6, 6, 384, 256), 'dropout': 0.2, 'run': (64, 5000, 200)}
_CHAR_CPU: dict[str, Any] = {'sizes': (4, 4, 128, 64), 'dropout': 0, 'run': (12, 2000, 20)}
_RECIPES = {
  'gpt2_small': _GPT2 | {'sizes': (12, 12, 768, 1024), 'learning_rate': 6e-4},
  'gpt2_medium': _GPT2 | {'sizes': (24, 16, 1024, 1024), 'learning_rate': 3e-4},
  'gpt2_large': _GPT2 | {'sizes': (36, 20, 1280, 1024), 'learning_rate': 2.5e-4},
  'gpt2_xl': _GPT2 | {'sizes': (48, 25, 1600, 1024), 'learning_rate': 2e-4},
  'finetune_shakespeare': _GPT2 | {'sizes': (12, 12, 768, 1024)} | _TUNING,
  'shakespeare_char': _NANOGPT | _CHAR,
  'shakespeare_char_cpu': _NANOGPT | _CHAR_CPU,
}


@pytest.mark.parametrize('name', _RECIPES)
def test_a_config_is_the_published_recipe(name):
  config = _config(name)
  model, train = config.model, config.train
  values: dict[str, Any] = {
    'sizes': (model.n_layer, model.n_head, model.n_embd, model.block_size),
    'run': (train.batch_size, train.steps, train.eval_batches),
  }
  for section in (model, train, config.optimizer, config.data):
    values |= dataclasses.asdict(section)
  assert _RECIPES[name].items() <= values.items()
  if name.startswith('gpt2'):
    # Brown et al. 2020, appendix B: half a million tokens per step, a warm-up of 375 million,
    # decay to a tenth.
    assert config.train.batch_size * 1024 == 2**19
    assert config.optimizer.warmup_steps * 2**19 == pytest.approx(375e6, rel=0.05)
    learning_rates = config.optimizer.learning_rate, config.optimizer.min_learning_rate
    assert learning_rates[1] == pytest.approx(learning_rates[0] / 10)
  elif name.startswith('shakespeare'):
    # nanoGPT prints the number of parameters without the position table.
    model = dataclasses.replace(config.model, vocab_size=VOCABULARIES['char'])
    counted = models.parameter_count(model) - model.block_size * model.n_embd
    assert round(counted / 1e6, 2) == {'shakespeare_char': 10.65}.get(name, 0.80)
  else:  # no checkpoint except the best and the last one
    assert config.train.checkpoint_every >= config.train.steps
