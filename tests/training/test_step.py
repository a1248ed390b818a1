"""A step is pure, learns, and doesn't depend on how its batch is split into micro-batches.

Shapes in names: A gradient accumulation, B batch, L length, V vocabulary (padded).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import output
from gpt_jax.training import optimizer as optimizer_lib
from gpt_jax.training import step as step_lib
from tests import random_params
from tests.models import tiny

BLOCK, VOCAB = tiny.BLOCK, tiny.VOCAB


@functools.cache
def _model(dropout=0.0):
  return models.make(tiny.make_config(n_layer=1, pad_vocab_to=16, dropout=dropout))


@functools.cache
def _params():
  """Parameters well away from zero, so that every gradient has a size worth comparing."""
  return jax.device_get(random_params.make(_model().config, std=0.3))


def _batch(parts, sequences):
  tokens = np.random.default_rng(2).integers(0, VOCAB, (parts * sequences, BLOCK + 1))
  tokens = tokens.reshape(parts, sequences, BLOCK + 1)
  return batch_lib.Batch(jnp.asarray(tokens[..., :-1]), jnp.asarray(tokens[..., 1:]))


def _full_batch(parts):
  return _batch(parts, 4 // parts)


def _uneven_batch(parts):
  """Four packed rows: all targets, one, four of two documents, and nothing but padding."""
  segments_BL = np.array([[1] * 8, [1] * 3 + [2] * 5, [1, 1, 2, 2, 0, 0, 0, 0], [0] * 8], np.int32)
  counts_BL = segments_BL > 0
  counts_BL[1] = np.arange(BLOCK) == 6
  shape = (parts, 4 // parts, BLOCK)
  inputs_ABL, targets_ABL, *_ = _batch(parts, 4 // parts)
  targets_ABL = jnp.where(counts_BL.reshape(shape), targets_ABL, batch_lib.IGNORED)
  return batch_lib.Batch(inputs_ABL, targets_ABL, jnp.asarray(segments_BL.reshape(shape)))


# Plain gradient descent with rate 1: what it changes in the parameters is the gradient.
DESCENT = optax.sgd(1.0)


@functools.cache
def _descent_step(dropout=0.0):
  def descend(state, batch, seed=7):
    key = jax.random.key(seed)
    return step_lib.make_train_step(_model(dropout), DESCENT, lambda step: step / 4, key)(
      state, batch
    )

  return jax.jit(descend)


def _init(optimizer):
  return jax.jit(functools.partial(step_lib.init_state, _model(), optimizer))


def _descent_state(step=0):
  return step_lib.TrainState(jnp.asarray(step, jnp.int32), _params(), DESCENT.init(_params()))


@functools.cache
def _whole_batch(make_batch=_full_batch):
  return jax.device_get(_descent_step()(_descent_state(), make_batch(1)))


def _distance(params, others):
  squares = jax.tree.map(lambda a, b: ((np.float64(a) - b) ** 2).sum(), params, others)
  return math.sqrt(sum(jax.tree.leaves(squares)))


def _log_probs(logits):
  logits = np.asarray(logits, np.float64)
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return np.log(exp / exp.sum(-1, keepdims=True))


@functools.cache
def _apply():
  return jax.jit(_model().apply)


@np.errstate(divide='ignore')
def _mean_loss(params, batch):
  """The mean negative log-likelihood of all targets that aren't ignored, by NumPy."""
  whole = jax.tree.map(lambda x: np.asarray(x).reshape(-1, BLOCK), batch)
  logits_BLV, _ = _apply()({'params': params}, whole.inputs, segments_BL=whole.segments)
  log_probs_BLV, targets_BL = _log_probs(logits_BLV), whole.targets
  return -np.mean([log_probs_BLV[b, i, targets_BL[b, i]] for b, i in np.argwhere(targets_BL >= 0)])


@pytest.mark.parametrize(
  'parts, make_batch', [(2, _full_batch), (2, _uneven_batch), (4, _uneven_batch)]
)
def test_accumulation_is_one_large_batch(parts, make_batch):
  state, metrics = _descent_step()(_descent_state(), make_batch(parts))
  whole_state, whole_metrics = _whole_batch(make_batch)
  # Means of a few tens of terms in another order: some roundings of 6e-8.
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-6)

  for leaf, whole in zip(*map(jax.tree.leaves, (state.params, whole_state.params)), strict=True):
    # Gradients of up to 1, taken from parameters of up to 1, which costs another rounding.
    np.testing.assert_allclose(leaf, whole, rtol=0, atol=5e-7)
  assert _distance(whole_state.params, _params()) == pytest.approx(
    float(whole_metrics['grad_norm']), rel=1e-5
  )


def test_metrics_are_those_of_the_step_taken():
  state, metrics = _descent_step()(_descent_state(step=6), _batch(1, 4))
  assert state.step == 7
  assert metrics['learning_rate'] == 1.5
  # Before the update: the loss of the parameters that came in.
  np.testing.assert_allclose(metrics['loss'], _mean_loss(_params(), _batch(1, 4)), rtol=1e-6)
  assert _mean_loss(state.params, _batch(1, 4)) != pytest.approx(float(metrics['loss']), rel=1e-3)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {'float32'}


def test_grad_norm_is_the_one_before_clipping():
  _, unclipped = _whole_batch()
  clip = float(unclipped['grad_norm']) / 10
  optimizer = optax.chain(optax.clip_by_global_norm(clip), DESCENT)
  step = step_lib.make_train_step(_model(), optimizer, lambda _: 0.0, jax.random.key(7))
  state = step_lib.TrainState(jnp.int32(0), _params(), optimizer.init(_params()))
  new_state, metrics = jax.jit(step)(state, _batch(1, 4))
  np.testing.assert_allclose(metrics['grad_norm'], unclipped['grad_norm'], rtol=1e-6)
  assert _distance(new_state.params, _params()) == pytest.approx(clip, rel=1e-5)


def test_the_update_is_the_gradient_of_the_loss():
  # A step of h against the gradient g changes the loss by -h |g|^2, to first order.
  state, metrics = _whole_batch()
  h = 1e-3 / float(metrics['grad_norm'])
  there, back = (
    jax.tree.map(lambda new, old, h=h: old + h * (new - old), state.params, _params())
    for h in (h, -h)
  )
  slope = (_mean_loss(there, _batch(1, 4)) - _mean_loss(back, _batch(1, 4))) / (2 * h)
  # Losses of 4 are rounded to 2e-7, their difference is about 2e-3 |g|; the rest is curvature.
  assert slope == pytest.approx(-(float(metrics['grad_norm']) ** 2), rel=2e-3)


def test_one_batch_can_be_overfitted_without_compiling_twice():
  config = config_lib.OptimizerConfig(
    learning_rate=2e-2, min_learning_rate=2e-3, warmup_steps=5, weight_decay=0.0
  )
  schedule = optimizer_lib.make_schedule(config, 120)
  optimizer = optimizer_lib.make_optimizer(config, schedule)
  train_step = step_lib.make_train_step(_model(), optimizer, schedule, jax.random.key(0))
  traces: list[None] = []

  def traced(state, batch):
    traces.append(None)
    return train_step(state, batch)

  compiled, batch = jax.jit(traced, donate_argnums=0), _batch(1, 4)
  state = _init(optimizer)(jax.random.key(0))
  losses = []
  for step in range(120):
    assert state.step == step
    state, metrics = compiled(state, batch)
    losses.append(float(metrics['loss']))
  assert len(traces) == 1
  assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.1)
  # All can be known from the first token of a sequence, so no two may begin alike.
  assert len(set(batch.inputs[0, :, 0].tolist())) == 4
  assert losses[-1] < 0.02


def test_dropout_is_a_function_of_key_step_and_micro_batch():
  step, batch = _descent_step(dropout=0.3), _batch(2, 2)

  def loss(at, batch=batch, seed=7):
    return float(step(_descent_state(at), batch, seed)[1]['loss'])

  assert loss(3) == loss(3)
  assert len({loss(at) for at in range(4)}) == 4
  assert loss(3, seed=8) != loss(3)
  # With equal dropout in every micro-batch their order would not matter.
  swapped = jax.tree.map(lambda x: x[::-1], batch)
  assert loss(3, swapped) != pytest.approx(loss(3), rel=1e-4)


@pytest.mark.parametrize('make_batch, targets', [(_full_batch, 32), (_uneven_batch, 13)])
def test_evaluation_sums_over_all_micro_batches_without_dropout(make_batch, targets):
  evaluate = jax.jit(step_lib.make_eval_step(_model(dropout=0.3)))
  batch = make_batch(2)
  sums = evaluate(_params(), batch)
  assert set(sums) == {'loss', 'targets'} and sums['loss'].dtype == jnp.float32
  assert sums['targets'] == targets and sums['targets'].dtype == jnp.int32
  np.testing.assert_allclose(sums['loss'] / targets, _mean_loss(_params(), batch), rtol=1e-6)


# Targets that are ignored.


@given(st.dictionaries(st.integers(0, 4 * BLOCK - 1), st.integers(0, VOCAB - 1), min_size=1))
@example({5: 0})
@example(dict.fromkeys(range(4 * BLOCK), 0))
def test_the_loss_is_the_mean_of_the_targets_that_count(targets):
  targets_N = np.full(4 * BLOCK, batch_lib.IGNORED, np.int32)
  targets_N[list(targets)] = list(targets.values())
  batch = _full_batch(1)._replace(targets=jnp.asarray(targets_N.reshape(1, 4, BLOCK)))
  _, metrics = _descent_step()(_descent_state(), batch)
  # Logits of up to 10, some roundings of 2^-24 deep; the mean may be over one target only.
  assert metrics['loss'] == pytest.approx(_mean_loss(_params(), batch), abs=1e-5)


def test_the_loss_of_packed_rows_is_the_mean_of_the_targets_that_count():
  _, metrics = _whole_batch(_uneven_batch)
  assert metrics['loss'] == pytest.approx(_mean_loss(_params(), _uneven_batch(1)), rel=1e-6)
  assert metrics['loss'] != pytest.approx(float(_whole_batch()[1]['loss']), rel=1e-3)


@pytest.mark.parametrize('parts', [1, 2])
def test_a_batch_without_targets_has_no_loss_and_changes_nothing(parts):
  batch = _uneven_batch(parts)
  batch = batch._replace(targets=jnp.full_like(batch.targets, batch_lib.IGNORED))
  state, metrics = _descent_step()(_descent_state(), batch)
  assert metrics['loss'] == metrics['grad_norm'] == 0
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), _params())


def test_cross_entropy_is_a_stable_sum_in_nats():
  logits_BLV = jnp.array([[[0.0, math.log(3.0), -jnp.inf], [1e4, 0.0, -jnp.inf]]])
  loss = output.cross_entropy(logits_BLV, jnp.array([[0, 1]]))
  assert float(loss) == pytest.approx(math.log(4) + 1e4, rel=1e-6)


def test_cross_entropy_has_a_gradient_only_where_a_target_counts():
  # The last entry of the vocabulary is padding, infinite, and what an index of -1 would take.
  logits_BLV = jnp.array([[[0.0, math.log(3.0), -jnp.inf]] * 3])
  targets_BL = jnp.array([[1, batch_lib.IGNORED, 0]])
  loss, gradient_BLV = jax.value_and_grad(output.cross_entropy)(logits_BLV, targets_BL)
  assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)
  expected_BLV = np.array([[[0.25, -0.25, 0], [0, 0, 0], [-0.75, 0.75, 0]]])
  np.testing.assert_allclose(gradient_BLV, expected_BLV, atol=1e-6)


def test_initial_state_is_a_function_of_its_key_at_step_0():
  init = _init(DESCENT)
  first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
  assert first.step == 0 and first.step.dtype == jnp.int32
  jax.tree.map(np.testing.assert_array_equal, first, again)
  kernels = [s.params['h_0']['attn']['c_attn']['kernel'] for s in (first, other)]
  assert not np.isclose(*kernels).any()


# Bad numbers.

RATES = config_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=3)
SCHEDULE = optimizer_lib.make_schedule(RATES, 40)
ADAMW = config_lib.OptimizerConfig()
MUON = config_lib.OptimizerConfig(kind='muon', cautious=True, ema_decay=0.9)


def _make_step(options):
  optimizer = optimizer_lib.make_optimizer(options, SCHEDULE)
  return jax.jit(step_lib.make_train_step(_model(0.2), optimizer, SCHEDULE, jax.random.key(3)))


_step = functools.cache(_make_step)


@functools.cache
def _state(options):
  """The state after two good steps."""
  optimizer = optimizer_lib.make_optimizer(options, SCHEDULE)
  state = step_lib.TrainState(jnp.int32(0), _params(), optimizer.init(_params()))
  for _ in range(2):
    state, _ = _step(options)(state, _batch(1, 4))
  return state


def _poisoned(kind):
  """A loss that isn't finite, or has such gradients, or has some that are far too large."""

  def loss(model, params, part, key):
    total = _LOSS(model, params, part, key)
    zero = total - jax.lax.stop_gradient(total)
    added = {'loss': jnp.full((), jnp.nan), 'gradients': jnp.sqrt(zero), 'large': 1e30 * zero}
    return total + added[kind]

  return loss


_LOSS = step_lib.objectives.loss


@pytest.mark.parametrize(
  ('kind', 'parts', 'options'),
  [('loss', 1, ADAMW), ('gradients', 2, ADAMW), ('large', 1, ADAMW), ('large', 1, MUON)],
)
def test_a_bad_batch_changes_nothing_but_the_step(kind, parts, options, monkeypatch):
  before = _state(options)
  with monkeypatch.context() as patch:
    patch.setattr(step_lib.objectives, 'loss', _poisoned(kind))
    skipped, metrics = _make_step(options)(before, _batch(parts, 4 // parts))
  assert metrics['skipped'] == 1
  assert np.isfinite(metrics['loss']) == (kind != 'loss')
  assert skipped.step == before.step + 1
  for one, other in ((skipped.params, before.params), (skipped.opt_state, before.opt_state)):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  # The next one is what it would have been without it, and so is its learning rate.
  after, metrics = _step(options)(skipped, _batch(2, 2))
  never, expected = _step(options)(before._replace(step=before.step + 1), _batch(2, 2))
  jax.tree.map(np.testing.assert_array_equal, (after, metrics), (never, expected))
  assert metrics['skipped'] == 0
  np.testing.assert_allclose(metrics['learning_rate'], SCHEDULE(2), rtol=1e-6)
  counts = optax.tree.get_all_with_path(after.opt_state, 'count')
  # Adam's, the schedule's, and Muon's.
  assert [int(count) for _, count in counts] == [3] * (2 if options == ADAMW else 3)


def test_parameters_beyond_all_reason_are_not_changed():
  state = _state(ADAMW)
  # Of tokens that don't exist, so that neither loss nor gradient shows it.
  wte = state.params['wte']['embedding'].at[VOCAB:].set(1e18)
  state = state._replace(params={**state.params, 'wte': {'embedding': wte}})
  after, metrics = _step(ADAMW)(state, _batch(1, 4))
  assert metrics['skipped'] == 1 and metrics['loss'] < 10 and metrics['grad_norm'] < 10
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
