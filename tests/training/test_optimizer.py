"""Schedules are as specified, decay spares biases and norms; updates are AdamW's or Muon's."""

import dataclasses
import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import models, validation
from gpt_jax.models import lora
from gpt_jax.training import optimizer as optimizer_lib

PEAK, FLOOR = 1e-2, 1e-3


def _config(**changes):
  return config_lib.OptimizerConfig(
    **{'learning_rate': PEAK, 'min_learning_rate': FLOOR, 'warmup_steps': 10, **changes}
  )


@pytest.mark.parametrize(
  'schedule, marks',
  [
    # Cosine: a quarter of the way it has fallen by (1 - cos 45°) / 2 = 14.645 %.
    ('cosine', {60: PEAK - 0.146447 * (PEAK - FLOOR), 110: (PEAK + FLOOR) / 2, 210: FLOOR}),
    ('linear', {60: PEAK - (PEAK - FLOOR) / 4, 110: (PEAK + FLOOR) / 2, 210: FLOOR}),
    ('constant', {60: PEAK, 110: PEAK, 210: PEAK}),
    ('wsd', {60: PEAK, 170: PEAK, 180: PEAK - (PEAK - FLOOR) / 4, 190: 5.5e-3, 210: FLOOR}),
  ],
)
def test_schedule_is_as_specified_at_start_warm_middle_and_end(schedule, marks):
  config = _config(schedule=schedule, decay_steps=40)
  rate = optimizer_lib.make_schedule(config, 210)
  marks = {0: PEAK / 11, 5: PEAK * 6 / 11, 10: PEAK, **marks}
  actual = [float(rate(step)) for step in marks]
  np.testing.assert_allclose(actual, list(marks.values()), rtol=1e-5)


@st.composite
def _schedules(draw):
  """A valid config, its steps, and the learning rates of 80 steps (at least 20 beyond the end)."""
  steps = draw(st.integers(1, 60))
  warmup = draw(st.integers(0, steps))
  peak = draw(st.floats(1e-6, 1))
  config = config_lib.OptimizerConfig(
    learning_rate=peak,
    min_learning_rate=peak * draw(st.just(0.0) | st.floats(1e-3, 1)),
    warmup_steps=warmup,
    schedule=draw(st.sampled_from(['cosine', 'linear', 'constant', 'wsd'])),
    decay_steps=draw(st.integers(1, max(steps - warmup, 1))),
  )
  train = config_lib.TrainConfig(steps=steps)
  hypothesis.assume(not validation.problems(config_lib.Config(optimizer=config, train=train)))
  rates = optimizer_lib.make_schedule(config, steps)(jnp.arange(80))
  return config, steps, np.asarray(rates, np.float64)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(_schedules())
def test_rate_rises_to_the_peak_and_falls_no_lower_than_the_floor(drawn):
  config, steps, rates = drawn
  peak, floor, warmup = config.learning_rate, config.min_learning_rate, config.warmup_steps
  rounding = 3e-7 * peak  # float32
  assert (rates[:steps] > 0).all(), 'a step that learns nothing'
  assert (rates <= peak + rounding).all()
  assert (rates[warmup:] >= floor - rounding).all()
  if warmup < steps:
    assert abs(rates[warmup] - peak) <= rounding
  np.testing.assert_allclose(rates[:warmup], peak * np.arange(1, warmup + 1) / (warmup + 1), 1e-5)
  assert (np.diff(rates[warmup:]) <= rounding).all()
  if config.schedule != 'constant' and warmup < steps:
    np.testing.assert_allclose(rates[steps:], floor, rtol=0, atol=rounding)


def test_a_constant_schedule_ignores_the_minimum():
  config = _config(schedule='constant', learning_rate=3e-5, min_learning_rate=6e-5, warmup_steps=1)
  validation.validate(config_lib.Config(optimizer=config))
  rates = optimizer_lib.make_schedule(config, 5)(np.arange(5))
  np.testing.assert_allclose(rates, [1.5e-5] + 4 * [3e-5], rtol=1e-6)


def _params(**changes):
  """Returns random parameters of a tiny model."""
  config = config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=30, pad_vocab_to=1, **changes
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(1, 0.1, x.shape).astype(x.dtype), models.abstract_params(config)
  )


def _by_path(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'scan_layers': True},
    {'tie_embeddings': False, 'bias': False},
    {'lora_rank': 3},
    {'lora_rank': 3, 'scan_layers': True},
  ],
  ids=str,
)
@pytest.mark.parametrize('options', [{}, {'kind': 'muon', 'cautious': True}], ids=str)
def test_decay_shrinks_matrices_and_embeddings_only(changes, options):
  config = _config(schedule='constant', warmup_steps=0, weight_decay=0.5, **options)
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 10))
  params = _params(**changes)
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
  before, after = _by_path(params), _by_path(jax.tree.map(np.add, params, updates))
  # A bias or scale is a vector; with scanned layers, one per layer.
  for name, leaf in before.items():
    vector = leaf.ndim - name.startswith('h/') == 1
    expected = leaf if vector else leaf * (1 - PEAK * 0.5)
    # Exactly unchanged, or one rounding of float32 away.
    np.testing.assert_allclose(after[name], expected, rtol=0 if vector else 2e-7, err_msg=name)


def _clipped(gradient, clip):
  """Returns what AdamW sees of `gradient`: its first moment after one step without b1."""
  config = _config(b1=0.0, clip=clip)
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 10))
  _, state = jax.jit(optimizer.update)(gradient, optimizer.init(gradient), gradient)
  return optax.tree.get(state, 'mu')


@pytest.mark.parametrize('norm', [0.1, 1.9, 2.1, 1e4])
def test_clipping_bounds_the_global_norm_and_keeps_the_direction(norm):
  # Components 0.6 and 0.8 of the norm, in different arrays: each alone is below the bound of 2.1.
  gradient = {
    'kernel': jnp.array([[0.6 * norm, 0.0]]),
    'bias': jnp.array([0.0, 0.8 * norm]),
  }
  applied = _clipped(gradient, clip=2.0)
  expected = jax.tree.map(lambda g: g * min(1, 2 / norm), gradient)
  jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6), applied, expected)
  assert math.hypot(applied['kernel'][0, 0], applied['bias'][1]) <= 2 * (1 + 1e-6)


def test_clip_0_does_not_clip():
  gradient = {'kernel': jnp.array([[3e4, 4e4]])}
  np.testing.assert_array_equal(_clipped(gradient, clip=0.0)['kernel'], gradient['kernel'])


def test_updates_are_adamws_as_torch_computes_them():
  config = _config(schedule='linear', warmup_steps=1, weight_decay=0.3, b1=0.8, b2=0.9, clip=0.0)
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 5))
  rng = np.random.default_rng(3)
  params = {'kernel': rng.normal(size=(3, 4)).astype(np.float32)}
  gradients = rng.normal(size=(3, 3, 4)).astype(np.float32) * [[[1.0, 1e-2, 1e-4, 1e-8]]]
  state = optimizer.init(params)

  p, m, v = params['kernel'].astype(np.float64), 0.0, 0.0
  # Half the peak while warming up, the peak, and a quarter of the way down.
  rates = [PEAK / 2, PEAK, PEAK - (PEAK - FLOOR) / 4]
  for t, (rate, g) in enumerate(zip(rates, gradients, strict=True), start=1):
    updates, state = optimizer.update({'kernel': g.astype(np.float32)}, state, params)
    params = optax.apply_updates(params, updates)
    # torch.optim.AdamW's documentation, line by line.
    p = p - rate * 0.3 * p
    m = 0.8 * m + 0.2 * g
    v = 0.9 * v + 0.1 * g**2
    p = p - rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
    # The parameters are about 1 and rounded a few times; an update is about 1e-2.
    np.testing.assert_allclose(params['kernel'], p, rtol=0, atol=5e-7)


def _matrix(*shape, seed):
  """Returns matrices with singular values from 1 to 5, and U and V of their decomposition."""
  u, _, vt = np.linalg.svd(np.random.default_rng(seed).normal(size=shape), full_matrices=False)
  return ((u * np.linspace(5, 1, u.shape[-1])) @ vt).astype(np.float32), u, vt


def _first_update(params, gradients, **options):
  """Returns what the first step adds to parameters, over the learning rate, by path."""
  config = _config(schedule='constant', warmup_steps=0, weight_decay=0.0, clip=0.0, **options)
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 10))
  updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
  return _by_path(jax.tree.map(lambda x: x / PEAK, updates))


@pytest.mark.parametrize('scan', [False, True])
def test_muons_updates_are_orthogonal_matrices_and_queries_keys_and_values_are_three(scan):
  params = _params(scan_layers=scan)
  found: dict[str, list[np.ndarray]] = {}

  def gradient(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not name.endswith('kernel'):
      return np.ones_like(x)
    D, F = x.shape[-2:]
    parts = 3 if 'c_attn' in name else 1
    g, *found[name] = _matrix(*x.shape[:-2], parts, D, F // parts, seed=len(found))
    scales = np.array([1, 1e-3, 1e2][:parts], np.float32)[:, None, None]
    return np.concatenate(np.moveaxis(g * scales, -3, 0), axis=-1)

  gradients = jax.tree_util.tree_map_with_path(gradient, params)
  updates = _first_update(params, gradients, kind='muon')
  assert len(found) == (4 if scan else 8)
  for name, (u, vt) in found.items():
    parts = np.stack(np.split(updates[name], u.shape[-3], axis=-1), axis=-3)
    product = np.swapaxes(u, -1, -2) @ -parts @ np.swapaxes(vt, -1, -2)
    product /= 0.2 * math.sqrt(max(parts.shape[-2:]))
    singular = np.diagonal(product, axis1=-2, axis2=-1)
    assert (singular > 0.6).all() and (singular < 1.3).all(), name
    # Of the momentum, which the first gradient is; rounding is enlarged by up to 3.4^5.
    rest = product - singular[..., None] * np.eye(singular.shape[-1])
    np.testing.assert_allclose(rest, 0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize('changes', [{}, {'lora_rank': 3}, {'classes': 'bad,good'}], ids=str)
def test_muon_leaves_all_but_the_matrices_of_the_blocks_to_adamw(changes):
  params = _params(**changes)
  if changes.get('lora_rank'):
    params, _ = lora.split(params)
  rng = np.random.default_rng(5)
  gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
  muon, adamw = (_first_update(params, gradients, kind=kind) for kind in ('muon', 'adamw'))
  other = {name for name in muon if not np.array_equal(muon[name], adamw[name])}
  assert other == {name for name in muon if name.startswith('h_') and name.endswith('kernel')}


def test_cautious_decay_spares_what_its_update_moves_away_from_zero():
  signs = np.array([1.0, -1.0, 0.0], np.float32)
  params = {'kernel': np.array([[2.0], [-3.0]], np.float32) + 0 * signs}
  gradients = {'kernel': np.broadcast_to(signs, (2, 3))}
  config = _config(schedule='constant', warmup_steps=0, weight_decay=0.5, clip=0.0, cautious=True)
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 10))
  updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
  # AdamW's first step is the sign of the gradient.
  decays = np.array([[1, 0, 1], [0, 1, 1]])
  expected = -PEAK * (signs + 0.5 * decays * params['kernel'])
  np.testing.assert_allclose(updates['kernel'], expected, rtol=1e-6, atol=1e-9)


def test_the_average_weighs_all_parameters_since_the_first_update():
  decay, rng, steps = 0.7, np.random.default_rng(1), 5
  config = _config(ema_decay=decay)
  schedule = optimizer_lib.make_schedule(config, 10)
  optimizer = optimizer_lib.make_optimizer(config, schedule)
  plain = optimizer_lib.make_optimizer(dataclasses.replace(config, ema_decay=0.0), schedule)
  params = {'kernel': rng.normal(size=(3, 4)).astype(np.float32)}
  state, plain_state = optimizer.init(params), plain.init(params)
  np.testing.assert_array_equal(state.average['kernel'], params['kernel'])
  seen = []
  for t in range(1, steps + 1):
    gradients = {'kernel': rng.normal(size=(3, 4)).astype(np.float32)}
    expected, plain_state = plain.update(gradients, plain_state, params)
    updates, state = optimizer.update(gradients, state, params)
    np.testing.assert_array_equal(updates['kernel'], expected['kernel'])
    params = optax.apply_updates(params, updates)
    seen.append(np.float64(params['kernel']))
    weights = decay ** np.arange(t)[::-1]
    average = np.average(seen, axis=0, weights=weights)
    np.testing.assert_allclose(state.average['kernel'], average, rtol=0, atol=5e-7)


def _largest(key):
  """The largest value that a knob of the optimizer may have."""
  fields = {field.name: field for field in dataclasses.fields(config_lib.OptimizerConfig)}
  return {name: limit for limit, name, _ in fields[key].metadata['limits']}['at most']


@functools.cache
def _extreme(kind, **options):
  config = config_lib.OptimizerConfig(
    kind=kind, warmup_steps=0, schedule='constant', clip=0.0, **options
  )
  optimizer = optimizer_lib.make_optimizer(config, optimizer_lib.make_schedule(config, 9))
  return optax.GradientTransformation(optimizer.init, jax.jit(optimizer.update))


_SIZES = st.sampled_from([0.0, 1e-30, 1e-8, 1.0, 1e17])


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.tuples(_SIZES, _SIZES), min_size=1, max_size=5))
@hypothesis.example([(1e17, 1e17), (1e17, 0.0), (1e17, 1e-8)])
@hypothesis.example([(1e17, 1e17)] * 5)
def test_no_update_of_what_is_finite_is_infinite(kind, sizes):
  """With the largest rates and decays that a config may have, and without clipping."""
  keys = ('learning_rate', 'weight_decay', 'b1', 'b2', 'ema_decay')
  optimizer = _extreme(kind, cautious=True, **{key: _largest(key) for key in keys})
  tree = lambda x_DF: {'h_0': {'attn': {'c_attn': {'kernel': x_DF}}}}  # noqa: E731
  state = optimizer.init(tree(jnp.zeros((2, 4))))
  signs = jnp.array([[1.0, -1.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.0]])
  for gradient, param in sizes:
    params = tree(signs[:, ::-1] * param)
    updates, state = optimizer.update(tree(signs * gradient), state, params)
    params = optax.apply_updates(params, updates)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))
