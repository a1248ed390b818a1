"""A run with adapters trains them alone, from the model that it adapts, and resumes."""

import dataclasses
import functools
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, models, validation
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import lora, output
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib
from gpt_jax.weights import huggingface, run_dir, saved_model
from tests import random_params
from tests.models import tiny
from tests.training import runs

RANK = 4


# The step.


@functools.cache
def _model(rank=3):
  return models.make(tiny.make_config(n_layer=1, pad_vocab_to=16, lora_rank=rank))


def _batch(parts):
  tokens = np.random.default_rng(2).integers(0, 30, (parts, 4 // parts, 9), np.int32)
  return batch_lib.Batch(jnp.asarray(tokens[..., :-1]), jnp.asarray(tokens[..., 1:]))


@functools.cache
def _adamw():
  options = config_lib.OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, weight_decay=0.3, clip=0.5, schedule='constant'
  )
  schedule = optimizer_lib.make_schedule(options, 10)
  return optimizer_lib.make_optimizer(options, schedule), schedule


def test_a_step_is_that_of_the_merged_model_with_regard_to_the_adapters():
  optimizer, schedule = _adamw()
  config = _model().config
  params = random_params.make(config, std=0.3)
  adapters, base = lora.split(params)
  before = step_lib.TrainState(jnp.int32(0), params, optimizer.init(adapters))
  train_step = step_lib.make_train_step(_model(), optimizer, schedule, jax.random.key(0))
  after, metrics = jax.jit(train_step)(before, _batch(2))
  plain = models.make(dataclasses.replace(config, lora_rank=0))

  def loss_fn(adapters):
    merged = lora.merge(config, lora.join(adapters, base))
    whole = jax.tree.map(lambda x: x.reshape(4, 8), _batch(2))
    logits_BLV, _ = plain.apply({'params': merged}, whole.inputs)
    return output.cross_entropy(logits_BLV, whole.targets) / whole.targets.size

  loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(adapters)
  updates, _ = jax.jit(optimizer.update)(gradients, before.opt_state, adapters)
  assert metrics['loss'] == pytest.approx(float(loss), rel=1e-5)
  assert metrics['grad_norm'] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
  trained, frozen = lora.split(after.params)
  runs.assert_trees_equal(frozen, base)
  wanted = optax.apply_updates(adapters, updates)
  # Adam divides each gradient by its size: if it is nearly 0, rounding decides.
  near = [
    np.abs(a - b).ravel() < 1e-5
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(wanted), strict=True)
  ]
  assert np.mean(np.concatenate(near)) > 0.99


def test_the_optimizer_has_state_for_the_adapters_alone():
  init = functools.partial(step_lib.init_state, _model(), _adamw()[0])
  state = jax.eval_shape(init, jax.random.key(0))
  adapters, _ = lora.split(state.params)
  shapes = [leaf.shape for leaf in jax.tree.leaves(adapters)]
  moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sorted(moments) == sorted(2 * shapes)


def test_the_gradient_of_frozen_weights_is_never_computed():
  def gradients_of_kernels(rank):
    optimizer, schedule = _adamw()
    train_step = step_lib.make_train_step(_model(rank), optimizer, schedule, jax.random.key(0))
    init = functools.partial(step_lib.init_state, _model(rank), optimizer, jax.random.key(0))
    state = jax.eval_shape(init)
    program = jax.jit(train_step).lower(state, _batch(1)).compile()
    products = re.findall(r'f32\[(\d+),(\d+)\]\S* dot\(', str(program.as_text()))
    shapes = {tuple(sorted(map(int, shape))) for shape in products}
    frozen = lora.split(state.params)[1]
    return shapes & {tuple(sorted(x.shape)) for x in jax.tree.leaves(frozen) if x.ndim == 2}

  # Of c_attn and c_fc; c_proj and the embedding have other products of their shapes.
  assert gradients_of_kernels(0) >= {(16, 48), (16, 64)}
  assert not gradients_of_kernels(3) & {(16, 48), (16, 64), (16, 16)}


# Runs.


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return runs.make_config(tmp_path_factory.mktemp('text'), model__dropout=0.0)


def _adapted(config, init_from, **changes):
  changes = {'model__lora_rank': RANK, 'optimizer__learning_rate': 1e-2, **changes}
  other = runs.change(config, init_from=str(init_from), **changes)
  validation.validate(other)
  return other


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory, quick_runs):
  """Returns the folder of a run without adapters, `base`, and of one that adapts it, `lora`."""
  folder = tmp_path_factory.mktemp('runs')
  longer = runs.change(config, train__steps=40, train__eval_every=40, train__checkpoint_every=40)
  runs.run(longer, folder / 'base')
  runs.run(_adapted(config, folder / 'base'), folder / 'lora')
  return folder


def _first_and_last(path):
  losses = runs.val_losses(path)
  return losses[0], losses[max(losses)]


def test_a_run_starts_at_the_base_and_lowers_the_loss(trained):
  first, last = _first_and_last(trained / 'lora')
  assert first == pytest.approx(_first_and_last(trained / 'base')[1], rel=1e-6)
  assert last < first - 0.005


def test_the_base_is_frozen_to_the_bit_and_every_adapter_learns(trained):
  saved = runs.saved_state(trained / 'lora')
  adapters, base = lora.split(saved['params'])
  runs.assert_trees_equal(base, runs.saved_state(trained / 'base')['params'])
  early = lora.split(runs.saved_state(trained / 'lora', 5)['params'])[0]
  for (path, leaf), was in zip(
    jax.tree_util.tree_leaves_with_path(adapters), jax.tree.leaves(early), strict=True
  ):
    assert np.mean(leaf != was) > 0.99, path


def test_a_run_starts_from_the_merged_model_of_one_with_adapters(config, trained, tmp_path):
  origin = saved_model.open_model(trained / 'lora')
  runs.run(_adapted(config, trained / 'lora'), tmp_path / 'next')
  first, _ = _first_and_last(tmp_path / 'next')
  assert origin.step is not None
  assert first == pytest.approx(runs.val_losses(trained / 'lora')[origin.step], rel=1e-5)
  _, base = lora.split(runs.saved_state(tmp_path / 'next')['params'])
  model = dataclasses.replace(origin.config, pad_vocab_to=config.model.pad_vocab_to)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  runs.assert_trees_equal(base, jax.device_get(origin.load(models.abstract_params(model, device))))


def test_scanned_layers_are_trained_alike_from_weights_of_hugging_face(config, trained, tmp_path):
  model = run_dir.RunDir(trained / 'base').read_config().model
  params = runs.saved_state(trained / 'base')['params']
  huggingface.write_model(tmp_path / 'hf', model, params, None)
  changes = {'model__scan_layers': True, 'model__remat': True}
  runs.run(_adapted(config, tmp_path / 'hf', **changes), tmp_path / 'scanned')
  first, last = _first_and_last(tmp_path / 'scanned')
  assert first == pytest.approx(_first_and_last(trained / 'lora')[0], rel=1e-5)
  assert last < first - 0.005


def test_a_stopped_and_resumed_run_ends_as_an_unbroken_one(config, trained, tmp_path, monkeypatch):
  other = _adapted(config, trained / 'base')
  with monkeypatch.context() as patch:
    runs.at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(errors.Stopped):
      runs.run(other, tmp_path / 'broken')
  # What a run started from isn't needed to resume it.
  runs.run(runs.change(other), tmp_path / 'broken')
  runs.assert_same(tmp_path / 'broken', trained / 'lora')


def test_a_run_on_a_mesh_is_the_run_on_copies(config, trained, tmp_path):
  other = _adapted(config, trained / 'base', mesh__fsdp=2)
  mine, theirs = runs.val_losses(runs.run(other, tmp_path / 'mesh')), trained / 'lora'
  assert mine == pytest.approx(runs.val_losses(theirs), rel=1e-5)


def test_random_weights_are_freed_before_those_of_the_base_are_read(config, trained):
  other = _adapted(config, trained / 'base')
  mesh = mesh_lib.make_mesh(other)
  origin = saved_model.open_model(trained / 'base')
  assert origin.tokenizer is not None
  program = program_lib.build(program_lib.resolve(other, origin.tokenizer, (), mesh), mesh)
  table = program.state.params['wte']['embedding'].shape
  before = sum(array.shape == table for array in jax.live_arrays())
  there: list[int] = []

  def load(abstract):
    assert not lora.split(abstract)[0]
    there.append(sum(array.shape == table for array in jax.live_arrays()))
    return jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), abstract)

  state = program.initial_state(dataclasses.replace(origin, load=load))
  assert there == [before]
  adapters, base = lora.split(state.params)
  assert all(bool((leaf == 1).all()) for leaf in jax.tree.leaves(base))
  random = jax.device_get(lora.split(program.init().params)[0])
  runs.assert_trees_equal(jax.device_get(adapters), random)


def test_a_run_says_how_many_parameters_it_trains(config, trained, tmp_path, capsys):
  def summary(config, path):
    """Returns what a run prints before its first step: name -> value."""
    runs.run(runs.change(config, train__steps=1), tmp_path / path)
    lines = capsys.readouterr().out.splitlines()
    return {name: value for name, value in (line.split(None, 1) for line in lines if ' ' in line)}

  without = summary(config, 'plain')
  adapted = summary(_adapted(config, trained / 'base'), 'adapted')
  # Inputs and outputs of the four linear layers: 16 + 48, 16 + 16, 16 + 64, 64 + 16.
  trained_count = RANK * (64 + 32 + 80 + 80)
  base = models.parameter_count(dataclasses.replace(config.model, vocab_size=257))
  assert f'{trained_count:,} of {base + trained_count:,} parameters' in adapted['adapters']
  assert 'adapters' not in without
  # Parameters, gradients and two moments of float32; the padding of the vocabulary is 7 rows.
  held = base + 7 * 16
  for rows, size in ((without, 4 * held * 4), (adapted, (held + 4 * trained_count) * 4)):
    kilobytes = float(rows['memory'].partition('kB per device')[0])
    assert kilobytes == pytest.approx(size / 1e3, rel=0.01)


def test_devices_are_set_up_before_a_missing_base_is_reported(config, tmp_path, monkeypatch):
  # The shapes that the tensors of a base are checked against are made by JAX.
  called: list[config_lib.MeshConfig] = []
  monkeypatch.setattr(mesh_lib, 'start', called.append)
  other = _adapted(config, tmp_path / 'weights' / 'gpt2', mesh__cpu_devices=2)
  with pytest.raises(errors.UserError) as e:
    runs.run(other, tmp_path / 'run')
  assert e.value.key == str(tmp_path / 'weights' / 'gpt2')
  assert called == [other.mesh]
  assert not (tmp_path / 'run').exists()
