"""Every array of a train state has one rule; eight devices hold shards and train as one does."""

import functools
import itertools
import math
import pathlib
import runpy
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import knobs, models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib
from tests.models import tiny

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / 'configs').glob('*.py'))
OPTIONS: list[dict[str, Any]] = [
  {'bias': bias, 'tie_embeddings': tie, 'scan_layers': scan}
  for bias, tie, scan in itertools.product([True, False], repeat=3)
]
OPTIONS += [{'scan_layers': scan, 'lora_rank': 3} for scan in (False, True)]
OTHERS = [
  tiny.make_config(classes='bad,good', clusters='9'),
  tiny.make_config(kind='lstm', tie_embeddings=False),
  tiny.make_config(kind='encoder_decoder', scan_layers=True),
  tiny.make_config(kind='encoder_decoder', lora_rank=3, tie_embeddings=False),
]

needs_8_devices = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs 8 devices; see launch/test.sh'
)


# The table.


ADAMW = config_lib.OptimizerConfig()
MUON = config_lib.OptimizerConfig(kind='muon', ema_decay=0.9)


def _abstract_state(model, options=ADAMW):
  """The train state of a model as shapes."""
  optimizer = optimizer_lib.make_optimizer(options, lambda _: 0.0)
  init = functools.partial(step_lib.init_state, models.make(model), optimizer)
  return jax.eval_shape(init, jax.random.key(0))


@functools.cache
def _tiny_state(i):
  return _abstract_state(tiny.make_config(**OPTIONS[i]))


def _arrays(tree):
  """Returns every leaf that isn't a scalar, by its path."""
  return {path: leaf for path, leaf in tiny.by_path(tree).items() if leaf.ndim}


def _assert_each_has_one_rule(model):
  state = _abstract_state(model)
  arrays = _arrays(state)
  # The parameters, and Adam's two moments of each that is trained.
  trained, _ = models.split_trained(model, state.params)
  assert len(arrays) == len(jax.tree.leaves(state.params)) + 2 * len(jax.tree.leaves(trained))
  for path, leaf in arrays.items():
    matches = sharding.matching_rules(path)
    assert len(matches) == 1, path
    layer_axis = model.scan_layers and '/h/' in path
    assert len(sharding.RULES[matches[0]][1]) == leaf.ndim - layer_axis, path


@pytest.mark.parametrize('scan', [False, True])
def test_each_moment_of_muon_and_average_matches_the_rule_of_its_parameter(scan):
  state = _abstract_state(tiny.make_config(scan_layers=scan), MUON)
  params, arrays = _arrays(state.params), _arrays(state.opt_state)
  matrices = [path for path in params if path.endswith('kernel')]
  # An average, and one moment or two of Adam; and Muon's constants.
  assert len(arrays) == 3 * len(params) - len(matrices) + 1
  for path, leaf in arrays.items():
    (rule,) = sharding.matching_rules(path)
    owner = [name for name in params if path.endswith(f'/{name}')]
    assert owner or path.endswith('ns_coeffs')
    if owner:
      assert sharding.matching_rules(owner[0]) == [rule], path
    # Queries, keys and values are stacked.
    stacked = '/muon/' in path and path.endswith('c_attn/kernel')
    assert len(sharding.RULES[rule][1]) == leaf.ndim - (scan and '/h/' in path) - stacked, path


@pytest.mark.parametrize('i', range(len(OPTIONS)), ids=map(str, OPTIONS))
def test_each_parameter_and_moment_matches_exactly_one_rule(i):
  _assert_each_has_one_rule(tiny.make_config(**OPTIONS[i]))


@pytest.mark.parametrize('model', OTHERS, ids=['classifier', 'lstm', 'scanned', 'adapted'])
def test_each_parameter_of_another_model_matches_exactly_one_rule(model):
  _assert_each_has_one_rule(model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_parameter_of_every_config_matches_exactly_one_rule(path):
  model = runpy.run_path(str(path))['get_config']().model
  n_layer = min(model.n_layer, 12)  # all alike; two digits are enough
  model = knobs.replace(model, {'vocab_size': 65, 'n_layer': n_layer})
  _assert_each_has_one_rule(model)


def test_no_rule_is_dead():
  states = [*map(_tiny_state, range(len(OPTIONS))), *map(_abstract_state, OTHERS)]
  states.append(_abstract_state(tiny.make_config(), MUON))
  paths = [path for state in states for path in _arrays(state)]
  used = {rule for path in paths for rule in sharding.matching_rules(path)}
  assert used == set(range(len(sharding.RULES)))


@needs_8_devices
def test_an_adapter_is_sharded_like_its_layer_and_its_rank_never():
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'))
  for i in (len(OPTIONS) - 2, len(OPTIONS) - 1):
    params = _tiny_state(i).params
    shardings = tiny.by_path(sharding.tree_shardings(mesh, params))
    axes = {path: s.spec for path, s in shardings.items()}
    layers = [path.removesuffix('kernel') for path in axes if path.endswith('kernel')]
    assert len(layers) == (4 if OPTIONS[i]['scan_layers'] else 8)
    for layer in layers:
      *stack, inputs, outputs = axes[f'{layer}kernel']
      assert axes[f'{layer}lora_a'] == jax.P(*stack, inputs, None), layer
      assert axes[f'{layer}lora_b'] == jax.P(*stack, None, outputs), layer


def test_rules_match_whole_path_components():
  assert sharding.matching_rules('params/wte/embedding')
  for path in ('params/my_wte/embedding', 'wte/embedding/more', 'h_0/attn/my_c_proj/kernel'):
    assert not sharding.matching_rules(path), path


@needs_8_devices
def test_an_array_without_a_rule_is_an_error():
  mesh = jax.make_mesh((8, 1, 1), ('data', 'fsdp', 'tensor'))
  unknown = {'head': {'kernel': jax.ShapeDtypeStruct((4, 4), np.float32)}}
  with pytest.raises(ValueError, match='head/kernel: 0 sharding rules'):
    sharding.tree_shardings(mesh, unknown)


# Training on several devices.

STEPS = 20


@functools.cache
def _program(axes, chunks='windows', kind='adamw'):
  """A program on the first devices, as many as `axes` multiply to."""
  data, fsdp, tensor = axes
  config = config_lib.Config(
    model=tiny.make_config(n_layer=1, n_head=4, pad_vocab_to=16, dropout=0.1),
    data=config_lib.DataConfig(chunks=chunks),
    train=config_lib.TrainConfig(steps=STEPS, batch_size=16, gradient_accumulation=2),
    optimizer=config_lib.OptimizerConfig(kind=kind, learning_rate=3e-3, warmup_steps=2),
    mesh=config_lib.MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
  )
  mesh = mesh_lib.make_mesh(config, jax.devices()[: data * fsdp * tensor])
  return program_lib.build(config, mesh)


@functools.cache
def _initial_state(axes, kind='adamw'):
  return _program(axes, kind=kind).init()


def _rows(step, chunks, numbers):
  """Learnable text; packed: two documents of any lengths per row, and six rows without text."""
  rng = np.random.default_rng(step)
  tokens_NM = ((rng.integers(0, 30, (16, 1)) + 7 * np.arange(9)) % 30).astype(np.int32)
  inputs_NL, targets_NL = tokens_NM[:, :-1], tokens_NM[:, 1:]
  if chunks == 'windows':
    return inputs_NL[numbers], targets_NL[numbers]
  cut_N1, filled_N1 = np.sort(rng.integers(1, 9, (2, 16, 1)), axis=0)
  filled_N1[10:] = 0
  place_L = np.arange(8)
  segments_NL = np.where(place_L < filled_N1, 1 + (place_L >= cut_N1), 0).astype(np.int32)
  targets_NL = np.where(segments_NL > 0, targets_NL, batch_lib.IGNORED)
  return inputs_NL[numbers], targets_NL[numbers], segments_NL[numbers]


@functools.cache
def _trained(axes, chunks='windows', kind='adamw'):
  """The losses and gradient norms of STEPS steps on learnable text, and the last state."""
  program = _program(axes, chunks, kind)
  train_step = program.train_step.lower(program.state, program.batch).compile()
  # The same initial parameters for all, as arrays of their own: the state is donated.
  host = jax.device_get(_initial_state((1, 1, 1), kind))
  state = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), host, program.state)
  metrics = []
  for step in range(STEPS):
    make_rows = functools.partial(_rows, step, chunks)
    batch = batch_lib.Batch(*mesh_lib.global_batch(make_rows, program.tokens))
    state, values = train_step(state, batch)
    metrics.append([float(values[name]) for name in ('loss', 'grad_norm')])
  return np.array(metrics), state


@needs_8_devices
def test_splash_attention_is_shared_out_among_devices(splash_interpreted):
  del splash_interpreted
  tokens_BL = np.random.default_rng(0).integers(0, 30, (8, 128)).astype(np.int32)
  segments_BL = np.repeat([[1, 2], [1, 1]], 64, axis=1)[np.arange(8) % 2].astype(np.int32)

  def loss(kernel, *axes):
    sizes = {'n_layer': 1, 'n_head': 4, 'n_embd': 64, 'block_size': 128, 'pad_vocab_to': 16}
    config = config_lib.Config(
      model=tiny.make_config(**sizes, attention=kernel),
      data=config_lib.DataConfig(chunks='packed'),
      train=config_lib.TrainConfig(batch_size=8),
      mesh=config_lib.MeshConfig(*axes),
    )
    mesh = mesh_lib.make_mesh(config, jax.devices()[: math.prod(axes)])
    program = program_lib.build(config, mesh)
    rows = (tokens_BL, tokens_BL, segments_BL)
    arrays = [jax.device_put(x[None], program.tokens.sharding) for x in rows]
    _, metrics = program.train_step(program.init(), batch_lib.Batch(*arrays))
    return [float(metrics[name]) for name in ('loss', 'grad_norm')]

  assert loss('splash', 2, 2, 2) == pytest.approx(loss('xla', 1, 1, 1), rel=1e-5)


@needs_8_devices
@pytest.mark.parametrize(
  'axes, chunks, kind',
  [
    ((8, 1, 1), 'windows', 'adamw'),
    ((1, 8, 1), 'windows', 'adamw'),
    ((2, 4, 1), 'windows', 'adamw'),
    ((2, 1, 4), 'windows', 'adamw'),
    ((2, 2, 2), 'windows', 'adamw'),
    ((2, 2, 2), 'packed', 'adamw'),
    ((2, 2, 2), 'windows', 'muon'),
  ],
  ids=str,
)
def test_eight_devices_train_as_one_does(axes, chunks, kind):
  assert _program((1, 1, 1), chunks, kind).tokens.sharding.mesh.size == 1
  assert _program(axes, chunks, kind).tokens.sharding.mesh.size == 8
  expected, actual = (_trained(some, chunks, kind)[0] for some in ((1, 1, 1), axes))
  assert expected[-1, 0] < expected[0, 0] - 0.1, 'nothing was learned'
  # The same sums in another order, twenty steps long; dropout is drawn for the global batch.
  np.testing.assert_allclose(actual[:, 0], expected[:, 0], rtol=1e-5)
  np.testing.assert_allclose(actual[:, 1], expected[:, 1], rtol=1e-4)


@needs_8_devices
def test_initial_state_does_not_depend_on_the_mesh():
  jax.tree.map(np.testing.assert_array_equal, _initial_state((1, 1, 1)), _initial_state((2, 2, 2)))


@needs_8_devices
def test_with_fsdp_each_device_holds_its_shard_of_matrices_and_moments():
  state = _initial_state((1, 8, 1))
  matrices = ('kernel', 'embedding')
  big = {path: leaf for path, leaf in _arrays(state).items() if path.endswith(matrices)}
  assert len(big) == 3 * (2 + 4)
  for path, leaf in big.items():
    held = {shard.device: shard.data.nbytes for shard in leaf.addressable_shards}
    assert held == dict.fromkeys(jax.devices(), leaf.nbytes // 8), path
    assert len({str(shard.index) for shard in leaf.addressable_shards}) == 8, path


@needs_8_devices
def test_with_tensor_and_fsdp_matrices_are_sharded_along_both():
  shapes = {
    'wte/embedding': (32, 16),
    'h_0/attn/c_attn/kernel': (16, 48),
    'h_0/attn/c_proj/kernel': (16, 16),
    'h_0/mlp/c_fc/kernel': (16, 64),
    'h_0/mlp/c_proj/kernel': (64, 16),
  }
  params = _arrays(_initial_state((2, 2, 2)).params)
  for path, (rows, columns) in shapes.items():
    assert params[path].shape == (rows, columns)
    for shard in params[path].addressable_shards:
      assert shard.data.shape == (rows // 2, columns // 2), path
  # Vectors along the sharded axis of their product are sharded with it, others copied.
  assert params['h_0/attn/c_attn/bias'].addressable_shards[0].data.shape == (24,)
  assert params['h_0/mlp/c_fc/bias'].addressable_shards[0].data.shape == (32,)
  assert params['h_0/mlp/c_proj/bias'].is_fully_replicated


@needs_8_devices
def test_a_step_returns_a_state_sharded_like_the_one_it_takes():
  program, (_, state) = _program((2, 2, 2)), _trained((2, 2, 2))
  for path, leaf in _arrays(state).items():
    assert leaf.sharding.is_equivalent_to(_arrays(program.state)[path].sharding, leaf.ndim), path
  held = sum(leaf.addressable_shards[5].data.nbytes for leaf in jax.tree.leaves(state))
  assert mesh_lib.per_device_bytes(program.state) == held
