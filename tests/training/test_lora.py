"""A run with adapters trains them alone, resumes, and leaves a model like any other.

The base is a run of its own, or what it exports.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import convert, errors, validation
from gpt_jax.models import gpt, lora
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import processes, sharding
from gpt_jax.training import checkpoints, console, loop, metrics, origin, workdir
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib

pytestmark = pytest.mark.usefixtures('compile_once')
RANK, STEPS = 4, 12
TOKENS_BL = np.arange(32).reshape(2, 16)


@pytest.fixture(scope='module', autouse=True)
def compile_quickly():
  """Most of the time of these tests would go into optimising programs that run a few times."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  (folder / 'sea.txt').write_text('the sea, the sea and the sand; a wave and then a wave. ' * 40)
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, pad_vocab_to=8),
    data=config_lib.DataConfig(
      source=f'text:{folder}/sea.txt', tokenizer='byte', cache_dir=str(folder / 'cache')
    ),
    train=config_lib.TrainConfig(
      steps=STEPS, batch_size=16, log_every=1, eval_every=6, eval_batches=2, checkpoint_every=6
    ),
    optimizer=config_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
  )


def adapted(config, init_from, **changes):
  """`config` with adapters that start from `init_from`."""
  other = validation.from_dict(config_lib.to_dict(config))
  changes = {'model__lora_rank': RANK, 'optimizer__learning_rate': 5e-3, **changes}
  changes['init_from'] = str(init_from)
  for key, value in changes.items():
    section, _, name = key.rpartition('__')
    setattr(getattr(other, section) if section else other, name, value)
  validation.validate(other)
  return other


@pytest.fixture(scope='module')
def runs(config, tmp_path_factory):
  """A run without adapters, that model exported, and a run with adapters that starts there."""
  folder = tmp_path_factory.mktemp('runs')
  longer = validation.from_dict(config_lib.to_dict(config))
  longer.train.steps = 30
  train_and_keep_output(longer, folder / 'base')
  export(folder / 'base', folder / 'exported')
  train_and_keep_output(adapted(config, folder / 'exported'), folder / 'lora')
  return folder


def train_and_keep_output(config, directory):
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    loop.train(config, workdir.Workdir(directory))
  (directory / 'printed.txt').write_text(printed.getvalue())


def export(model, output):
  values = convert.define_flags()
  values(['convert', f'--model={model}', f'--output={output}'])
  convert.main(values)


def val_losses(directory):
  lines = metrics.read(pathlib.Path(directory) / 'metrics.jsonl')
  return [line['val/loss'] for line in lines if 'val/loss' in line]


def saved_state(directory, step=STEPS):
  """The state in a checkpoint as it was saved, on one device."""
  place = workdir.Workdir(directory)
  abstract = program_lib.build(place.read_config()).state
  with checkpoints.Checkpoints(place.checkpoints, keep=9, read_only=True) as saved:
    return jax.device_get(saved.restore(step, abstract))


def assert_trees_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


# The step.


@functools.cache
def tiny_model(rank=3):
  return gpt.GPT(
    config_lib.ModelConfig(
      n_layer=1,
      n_head=2,
      n_embd=16,
      block_size=8,
      vocab_size=30,
      pad_vocab_to=16,
      lora_rank=rank,
    )
  )


def tiny_params():
  """Parameters well away from zero, so that every gradient has a size worth comparing."""
  rng = np.random.default_rng(1)
  shapes = gpt.abstract_params(tiny_model().config)
  return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)


def tiny_batch(parts):
  tokens = np.random.default_rng(2).integers(0, 30, (parts, 4 // parts, 9), np.int32)
  return step_lib.Batch(jnp.asarray(tokens[..., :-1]), jnp.asarray(tokens[..., 1:]))


@functools.cache
def adamw():
  options = config_lib.OptimizerConfig(
    learning_rate=1e-2, warmup_steps=0, weight_decay=0.3, clip=0.5, schedule='constant'
  )
  schedule = optimizer_lib.make_schedule(options, 10)
  return optimizer_lib.make_optimizer(options, schedule), schedule


def one_step(parts):
  """The state before a step of AdamW with clipping and decay, the one after it, the metrics."""
  optimizer, schedule = adamw()
  params = tiny_params()
  opt_state = optimizer.init(lora.split_trained(params)[0])
  before = step_lib.TrainState(jnp.int32(0), params, opt_state)
  train_step = step_lib.make_train_step(tiny_model(), optimizer, schedule, jax.random.key(0))
  return before, *jax.jit(train_step)(before, tiny_batch(parts))


@pytest.mark.parametrize('parts', [1, 2])
def test_a_step_is_that_of_the_merged_form_with_regard_to_the_adapters(parts):
  before, after, step_metrics = one_step(parts)
  config = tiny_model().config
  plain = gpt.GPT(dataclasses.replace(config, lora_rank=0))
  adapters, base = lora.split(before.params)

  def loss_fn(adapters):
    params = lora.merge(config, lora.join(adapters, base))
    whole = jax.tree.map(lambda x: x.reshape(4, 8), tiny_batch(1))
    logits_BLV, _ = plain.apply({'params': params}, whole.inputs_ABL)
    return step_lib.cross_entropy(logits_BLV, whole.targets_ABL) / whole.targets_ABL.size

  loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(adapters)
  updates, _ = jax.jit(adamw()[0].update)(gradients, before.opt_state, adapters)
  assert step_metrics['loss'] == pytest.approx(float(loss), rel=1e-5)
  assert step_metrics['grad_norm'] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
  trained, frozen = lora.split(after.params)
  assert_trees_equal(frozen, base)
  wanted = optax.apply_updates(adapters, updates)
  # Adam divides each gradient by its size: where it is nearly nothing, rounding is all.
  near = [
    np.abs(a - b) < 1e-5
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(wanted), strict=True)
  ]
  assert np.mean(np.concatenate([x.ravel() for x in near])) > 0.99


def test_the_optimizer_has_state_for_adapters_alone():
  optimizer, _ = adamw()
  init = functools.partial(step_lib.init_state, tiny_model(), optimizer)
  state = jax.eval_shape(init, jax.random.key(0))
  adapters, _ = lora.split(state.params)
  arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sorted(leaf.shape for leaf in arrays) == sorted(
    2 * [leaf.shape for leaf in jax.tree.leaves(adapters)]
  )


def test_the_gradient_of_frozen_weights_is_never_made():
  def gradients_of_kernels(rank):
    optimizer, schedule = adamw()
    train_step = step_lib.make_train_step(tiny_model(rank), optimizer, schedule, jax.random.key(0))
    init = functools.partial(step_lib.init_state, tiny_model(rank), optimizer, jax.random.key(0))
    state = jax.eval_shape(init)
    program = str(jax.make_jaxpr(train_step)(state, tiny_batch(1)))
    products = re.findall(r'f32\[(\d+),(\d+)\] = dot_general', program)
    made = {tuple(sorted(map(int, shape))) for shape in products}
    frozen = lora.split(state.params)[1]
    return made & {tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(frozen) if leaf.ndim == 2}

  # Of c_attn, c_proj (here as many rows as in a batch of 4 sequences), c_fc, the embedding.
  assert gradients_of_kernels(0) >= {(16, 48), (16, 64)}
  assert not gradients_of_kernels(3) & {(16, 48), (16, 64), (16, 16)}


# Runs.


def test_a_run_starts_at_the_base_and_lowers_the_loss(runs):
  before, after = val_losses(runs / 'base'), val_losses(runs / 'lora')
  assert after[0] == pytest.approx(before[-1], rel=1e-6)
  assert after[-1] < after[0] - 0.005


def test_the_base_is_frozen_to_the_bit_and_every_adapter_learns(runs):
  state = saved_state(runs / 'lora')
  adapters, base = lora.split(state.params)
  exported = gpt_jax.load(runs / 'exported').params
  table_VD = base['wte']['embedding']
  np.testing.assert_array_equal(table_VD[:257], exported['wte']['embedding'])
  assert not table_VD[257:].any()
  base['wte'], exported['wte'] = {}, {}
  assert_trees_equal(base, jax.device_get(exported))
  early = lora.split(saved_state(runs / 'lora', 6).params)[0]
  for (path, leaf), was in zip(
    jax.tree_util.tree_leaves_with_path(adapters), jax.tree.leaves(early), strict=True
  ):
    assert np.mean(leaf != was) > 0.99, path
  moments = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert sum(moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(adapters))


def adapted_logits(directory):
  """Logits of a checkpoint with its adapters as they are, not merged."""
  model = dataclasses.replace(workdir.Workdir(directory).read_config().model, attention='xla')
  assert model.lora_rank == RANK
  logits_BLV, _ = gpt.GPT(model).apply({'params': saved_state(directory).params}, TOKENS_BL)
  return logits_BLV[..., :257]


def test_the_model_of_a_run_is_read_merged_and_goes_out_so(runs, tmp_path):
  loaded = gpt_jax.load(runs / 'lora')
  assert loaded.config.lora_rank == 0
  assert not lora.split(loaded.params)[0]
  wanted_BLV = adapted_logits(runs / 'lora')
  np.testing.assert_allclose(loaded.logits(TOKENS_BL), wanted_BLV, atol=1e-5)
  base_BLV = gpt_jax.load(runs / 'exported').logits(TOKENS_BL)
  assert np.abs(base_BLV - wanted_BLV).max() > 0.1
  export(runs / 'lora', tmp_path / 'out')
  np.testing.assert_allclose(
    gpt_jax.load(tmp_path / 'out').logits(TOKENS_BL), wanted_BLV, atol=1e-5
  )
  (sample,) = loaded.generate('the ', max_new_tokens=3, temperature=0)
  assert sample.text


def test_a_run_starts_where_one_with_adapters_ended(config, runs, tmp_path):
  loop.train(adapted(config, runs / 'lora'), workdir.Workdir(tmp_path / 'next'))
  after = val_losses(tmp_path / 'next')
  assert after[0] == pytest.approx(val_losses(runs / 'lora')[-1], rel=1e-5)
  merged = gpt_jax.load(runs / 'lora').params['h_0']['mlp']['c_fc']['kernel']
  _, base = lora.split(saved_state(tmp_path / 'next').params)
  np.testing.assert_array_equal(base['h_0']['mlp']['c_fc']['kernel'], merged)


def test_scanned_layers_are_trained_and_read_alike(config, runs, tmp_path):
  other = adapted(config, runs / 'exported', model__scan_layers=True, model__remat=True)
  loop.train(other, workdir.Workdir(tmp_path / 'scanned'))
  after = val_losses(tmp_path / 'scanned')
  assert after[0] == pytest.approx(val_losses(runs / 'lora')[0], rel=1e-5)
  assert after[-1] < after[0] - 0.005
  np.testing.assert_allclose(
    gpt_jax.load(tmp_path / 'scanned').logits(TOKENS_BL),
    adapted_logits(tmp_path / 'scanned'),
    atol=1e-5,
  )


def test_a_run_that_is_stopped_ends_as_an_unbroken_one(config, runs, tmp_path, monkeypatch):
  original = console.Console.step

  def stop_at_8(self, step, loss):
    original(self, step, loss)
    if step == 8:
      os.kill(os.getpid(), signal.SIGTERM)

  other, place = adapted(config, runs / 'exported'), workdir.Workdir(tmp_path / 'broken')
  monkeypatch.setattr(console.Console, 'step', stop_at_8)
  with pytest.raises(errors.Stopped):
    loop.train(other, place)
  loop.train(other, place)
  assert_trees_equal(saved_state(tmp_path / 'broken'), saved_state(runs / 'lora'))
  assert val_losses(tmp_path / 'broken') == val_losses(runs / 'lora')


@pytest.mark.parametrize('changes', [{}, {'block_size': 8}, {'pad_vocab_to': 16}])
def test_merged_weights_go_to_the_shards_of_a_mesh(config, runs, changes):
  found = origin.open_origin(runs / 'lora')
  other = adapted(config, runs, mesh__fsdp=2, mesh__tensor=2)
  other.model = dataclasses.replace(found.config, **changes)
  abstract = gpt.abstract_params(other.model)
  shardings = sharding.tree_shardings(mesh_lib.make_mesh(other), abstract)
  params = found.params(
    jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
  )
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  logits_BLV, _ = gpt.GPT(dataclasses.replace(other.model, attention='xla')).apply(
    {'params': jax.device_get(params)}, TOKENS_BL[:, :8]
  )
  wanted_BLV = adapted_logits(runs / 'lora')[:, :8]
  np.testing.assert_allclose(logits_BLV[..., :257], wanted_BLV, atol=1e-5)


def test_a_run_on_a_mesh_from_the_base_itself_is_that_on_copies_from_the_export(
  config, runs, tmp_path
):
  changes = {'mesh__fsdp': 2, 'mesh__tensor': 2, 'train__gradient_accumulation': 2}
  loop.train(adapted(config, runs / 'base', **changes), workdir.Workdir(tmp_path / 'mesh'))
  np.testing.assert_allclose(val_losses(tmp_path / 'mesh'), val_losses(runs / 'lora'), rtol=1e-5)


def test_random_weights_are_gone_before_those_of_the_origin_are_read(config, runs, tmp_path):
  program = program_lib.build(
    loop.resolve(adapted(config, runs), workdir.Workdir(runs / 'base').read_tokenizer())
  )
  table = program.state.params['wte']['embedding'].shape
  before = sum(array.shape == table for array in jax.live_arrays())
  there: list[int] = []

  def read(abstract):
    assert not lora.split(abstract)[0]
    there.append(sum(array.shape == table for array in jax.live_arrays()))
    return jax.tree.map(lambda x: jax.device_put(np.ones(x.shape, x.dtype), x.sharding), abstract)

  found = dataclasses.replace(origin.open_origin(runs / 'base'), params=read)
  with checkpoints.Checkpoints(tmp_path / 'checkpoints', keep=1) as none:
    state, step = loop.start_state(program, none, found)
  assert there == [before] and step is None
  adapters, base = lora.split(state.params)
  assert all(bool((leaf == 1).all()) for leaf in jax.tree.leaves(base))
  random = jax.device_get(lora.split(program.init().params)[0])
  assert_trees_equal(jax.device_get(adapters), random)


def rows_told(directory):
  """What a run printed before its first step: name -> value."""
  lines = (directory / 'printed.txt').read_text().splitlines()
  return {name: value for name, value in (line.split(None, 1) for line in lines if ' ' in line)}


def test_a_run_tells_how_many_parameters_it_trains(config, runs):
  without, with_adapters = rows_told(runs / 'base'), rows_told(runs / 'lora')
  # Inputs and outputs of the four linear layers: 16 + 48, 16 + 16, 16 + 64, 64 + 16.
  trained = RANK * (64 + 32 + 80 + 80)
  base = gpt.parameter_count(dataclasses.replace(config.model, vocab_size=257))
  assert with_adapters['adapters'] == (
    f'of rank 4: {trained:,} of {(base + trained) / 1e6:.1f}M parameters are trained'
  )
  assert 'adapters' not in without
  # Parameters, gradients and two moments of float32; the padding of the vocabulary is 7 rows.
  held = base + 7 * 16

  def kib(rows):
    amount, unit = rows['memory'].split()[:2]
    assert unit == 'KiB'
    return float(amount)

  assert kib(without) == pytest.approx(4 * held * 4 / 1024, abs=1)
  assert kib(with_adapters) == pytest.approx((held + 4 * trained) * 4 / 1024, abs=1)


def test_devices_are_set_up_before_the_origin_looks_at_them(config, runs, tmp_path, monkeypatch):
  # The shapes that published weights are checked against are made by JAX.
  called: list[config_lib.MeshConfig] = []
  monkeypatch.setattr(processes, 'set_up', called.append)
  other = adapted(config, tmp_path / 'nothing', mesh__cpu_devices=2)
  with pytest.raises(errors.UserError):
    loop.train(other, workdir.Workdir(tmp_path / 'run'))
  assert called == [other.mesh]


def test_another_rank_is_another_run(config, runs):
  other = adapted(config, runs / 'exported', model__lora_rank=RANK + 1)
  with pytest.raises(errors.UserError, match='model.lora_rank: 4 there, 5 here'):
    loop.train(other, workdir.Workdir(runs / 'lora'))


def test_adapters_of_weights_that_are_not_there_are_told_how_to_get_them(config, tmp_path):
  other = adapted(config, tmp_path / 'weights' / 'gpt2')
  with pytest.raises(errors.UserError) as e:
    loop.train(other, workdir.Workdir(tmp_path / 'run'))
  message = str(e.value)
  assert message.startswith(f'{tmp_path}/weights/gpt2 has no model')
  assert 'hf download openai-community/gpt2 config.json model.safetensors' in message
  assert f'--local-dir={tmp_path}/weights/gpt2' in message
  assert not (tmp_path / 'run').exists()
