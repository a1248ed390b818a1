"""Clusters of the vocabulary are an exact softmax, of which a loss computes a part."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.models import output
from tests import random_params
from tests.models import tiny

CLUSTERS = ['7', '1,2,29', '3,10,20']


def _make(clusters, **options):
  config = tiny.make_config(clusters=clusters, pad_vocab_to=16, **options)
  return models.make(config), random_params.make(config, std=0.5)


def _targets(shares):
  """Ids from ranges of the vocabulary with these numbers of targets; some positions have none."""
  random = np.random.default_rng(0)
  ids = [random.integers(start, stop, count) for (start, stop), count in shares.items()]
  flat = np.full(64, -1)
  flat[: sum(shares.values())] = np.concatenate(ids)
  return random.permutation(flat).reshape(8, 8)


FREQUENT = {(0, 7): 50, (7, 30): 5}
RARE = {(0, 7): 20, (7, 30): 40}  # more of the rare words than there is room for
NONE = {(0, 1): 60}


@pytest.mark.parametrize('kind', ['gpt', 'lstm'])
@pytest.mark.parametrize('clusters', CLUSTERS)
def test_logits_are_those_of_a_softmax_of_softmaxes(clusters, kind):
  model, params = _make(clusters, kind=kind, tie_embeddings=False)
  hidden_BLD, _ = tiny.apply(model, params, tiny.make_tokens(2, 8), method='hidden')
  logits_BLV = np.asarray(tiny.apply(model, params, hidden_BLD, method='logits'), np.float64)
  x_BLD = np.asarray(hidden_BLD, np.float64)
  raw_BLV = np.exp(x_BLD @ np.asarray(params['lm_head'], np.float64)[: tiny.VOCAB].T)
  gates_BLC = np.exp(x_BLD @ np.asarray(params['gates'], np.float64).T)
  starts = [*map(int, clusters.split(','))]
  first = raw_BLV[..., : starts[0]]
  total = first.sum(-1, keepdims=True) + gates_BLC.sum(-1, keepdims=True)
  parts = [first / total]
  for c, (start, stop) in enumerate(itertools.pairwise([*starts, tiny.VOCAB])):
    inside = raw_BLV[..., start:stop]
    parts.append(gates_BLC[..., c : c + 1] / total * inside / inside.sum(-1, keepdims=True))
  probs = np.exp(logits_BLV - logits_BLV.max(-1, keepdims=True))
  probs /= probs.sum(-1, keepdims=True)
  np.testing.assert_allclose(probs[..., : tiny.VOCAB], np.concatenate(parts, -1), rtol=1e-4)
  assert not probs[..., tiny.VOCAB :].any()


@pytest.mark.parametrize('shares', [FREQUENT, RARE, NONE], ids=['fits', 'too many', 'none'])
@pytest.mark.parametrize('clusters', ['', *CLUSTERS])
def test_the_loss_and_its_gradients_are_those_of_all_logits(clusters, shares):
  model, params = _make(clusters, tie_embeddings=False)
  hidden_BLD = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8, 16)), jnp.float32)
  targets_BL = jnp.asarray(_targets(shares))

  def quickly(params, hidden_BLD):
    return 2 * model.apply({'params': params}, hidden_BLD, targets_BL, method='loss')

  def slowly(params, hidden_BLD):
    logits_BLV = model.apply({'params': params}, hidden_BLD, method='logits')
    return 2 * output.cross_entropy(logits_BLV, targets_BL)

  assert float(jax.jit(quickly)(params, hidden_BLD)) == pytest.approx(
    float(jax.jit(slowly)(params, hidden_BLD)), rel=1e-5
  )
  fast, slow = (jax.jit(jax.grad(f, (0, 1)))(params, hidden_BLD) for f in (quickly, slowly))
  used = params.keys() & {'lm_head', 'gates'}
  tiny.assert_close({k: fast[0][k] for k in used}, {k: slow[0][k] for k in used}, rtol=1e-5)
  np.testing.assert_allclose(fast[1], slow[1], rtol=1e-4, atol=1e-5)


def _bfloat16_loss(x_BLD, table_VD):
  config = tiny.make_config(dtype='bfloat16', pad_vocab_to=16)
  return output.loss(output.Output(config, table_VD, None), x_BLD, jnp.zeros((4, 8), jnp.int32))


ABSTRACT = (jax.ShapeDtypeStruct((4, 8, 16), jnp.bfloat16), jax.ShapeDtypeStruct((32, 16), 'f4'))


def test_only_bfloat16_logits_wait_for_the_gradient():
  kept = jax.eval_shape(lambda *args: jax.vjp(_bfloat16_loss, *args)[1], *ABSTRACT)
  assert [x.dtype for x in jax.tree.leaves(kept) if x.size == 4 * 8 * 32] == [jnp.bfloat16]


def test_the_products_of_bfloat16_states_are_bfloat16_and_nothing_is_scattered():
  gradient = jax.jit(jax.value_and_grad(_bfloat16_loss, (0, 1)))
  text = gradient.trace(*ABSTRACT).lower(lowering_platforms=('cuda',)).as_text()
  products = re.findall(r'dot_general.*: \(tensor<.*x(\w+)>, tensor<.*x(\w+)>\)', text)
  assert products == [('bf16', 'bf16')] * 3
  assert 'scatter' not in text


def test_rare_words_cost_few_products():
  model, params = _make('7')
  targets_BL = jnp.zeros((8, 8), jnp.int32)

  def loss(hidden_BLD):
    return model.apply({'params': params}, hidden_BLD, targets_BL, method='loss')

  text = jax.jit(loss).lower(jnp.zeros((8, 8, 16))).as_text()
  products = [line for line in text.split('\n') if 'dot_general' in line]
  shapes = [line.rpartition('->')[2].strip() for line in products]
  # Frequent words and the gate; the others for an eighth of the positions, or for all.
  assert sorted(shapes) == ['tensor<64x23xf32>', 'tensor<64x8xf32>', 'tensor<8x23xf32>']
