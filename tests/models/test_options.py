"""Options of the model change what they name and nothing else: remat, scan, padding, type, dropout.

Shapes in names: B batch, L length, M attended length, D width, V vocabulary.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax import models
from gpt_jax.models import attention
from tests.models import tiny

BLOCK, VOCAB = tiny.BLOCK, tiny.VOCAB


def _apply(params, tokens_BL, *, seed=None, **changes):
  """Returns the logits, with dropout if there is a seed."""
  model, options = models.make(tiny.make_config(**changes)), dict[str, Any]()
  if seed is not None:
    options = {'deterministic': False, 'rngs': {'dropout': jax.random.key(seed)}}
  return model.apply({'params': params}, tokens_BL, **options)[0]


def _logits(tokens_BL, **changes):
  params = tiny.make_params()
  return np.asarray(jax.jit(functools.partial(_apply, **changes))(params, tokens_BL))


def _loss(params, tokens_BL, **changes):
  """Returns the mean loss, the logits and the gradient."""

  def mean_loss(params):
    logits_BLV = _apply(params, tokens_BL[:, :-1], **changes)
    losses_BL = jax.nn.log_softmax(logits_BLV)
    return -jnp.take_along_axis(losses_BL, tokens_BL[:, 1:, None], axis=-1).mean(), logits_BLV

  (loss, logits_BLV), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
  return float(loss), np.asarray(logits_BLV), jax.device_get(gradients)


@functools.cache
def _plain_loss():
  return _loss(tiny.make_params(), tiny.make_tokens(4, BLOCK + 1))


@functools.cache
def _loss_with_dropout(**changes):
  params = tiny.make_params(**changes)
  return _loss(params, tiny.make_tokens(4, BLOCK + 1), seed=5, dropout=0.25, **changes)


def test_scanning_the_layers_changes_neither_loss_nor_gradients():
  params, tokens_BL = tiny.make_params(scan_layers=True), tiny.make_tokens(4, BLOCK + 1)
  loss, _, gradients = _loss(params, tokens_BL, scan_layers=True)
  # The same sums, which XLA may fuse otherwise: a few roundings of 6e-8.
  assert loss == pytest.approx(_plain_loss()[0], rel=1e-6)
  tiny.assert_close(gradients, tiny.stack(_plain_loss()[2]), rtol=3e-6)


@pytest.mark.parametrize('keep', ['nothing', 'products'])
@pytest.mark.parametrize('scan_layers', [False, True])
def test_remat_changes_neither_loss_nor_gradients_also_with_dropout(scan_layers, keep):
  loss, _, gradients = _loss_with_dropout(scan_layers=scan_layers, remat=True, remat_keep=keep)
  plain_loss, _, plain_gradients = _loss_with_dropout(scan_layers=scan_layers)
  assert loss == pytest.approx(plain_loss, rel=1e-6)
  tiny.assert_close(gradients, plain_gradients, rtol=3e-6)
  assert loss != pytest.approx(_plain_loss()[0], rel=1e-3), 'nothing was dropped'


@pytest.mark.parametrize('scan_layers', [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan_layers):
  def kept(**remat):
    changes = remat | {'scan_layers': scan_layers}
    apply = functools.partial(_apply, tokens_BL=tiny.make_tokens(16, BLOCK), **changes)
    params = models.abstract_params(tiny.make_config(**changes))
    backward = jax.eval_shape(lambda params: jax.vjp(apply, params)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  # Of a block: its input, D per token, instead of 3 D of c_attn, 4 D of c_fc, the weights and more.
  assert kept(remat=True) < kept() / 3
  # Its products have 3 D + D + D + 4 D + D per token.
  assert kept(remat=True) * 2 < kept(remat=True, remat_keep='products') < kept() / 1.5


def test_padding_of_the_vocabulary_changes_nothing():
  def with_table(change, params):
    return {**params, 'wte': jax.tree.map(change, params['wte'])}

  # Rows so large that a padding that took part would win every prediction.
  padding_VD = np.full((2, 16), 9, np.float32)
  params = with_table(lambda rows_VD: np.concatenate([rows_VD, padding_VD]), tiny.make_params())
  loss, logits_BLV, gradients = _loss(params, tiny.make_tokens(4, BLOCK + 1), pad_vocab_to=16)
  plain_loss, plain_BLV, plain_gradients = _plain_loss()
  assert logits_BLV.shape[-1] == 32
  np.testing.assert_allclose(logits_BLV[..., :VOCAB], plain_BLV, rtol=0, atol=1e-5)
  assert (jax.nn.softmax(logits_BLV)[..., VOCAB:] == 0).all()
  assert loss == pytest.approx(plain_loss, rel=1e-6)
  real = with_table(lambda rows_VD: rows_VD[:VOCAB], gradients)
  tiny.assert_close(real, plain_gradients, rtol=3e-6)
  assert (gradients['wte']['embedding'][VOCAB:] == 0).all()


# bfloat16.


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits_in_it():
  shapes = models.abstract_params(tiny.make_config(dtype='bfloat16'))
  assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {'float32'}
  tokens_BL = tiny.make_tokens(8, BLOCK)
  exact_BLV, rounded_BLV = _logits(tokens_BL), _logits(tokens_BL, dtype='bfloat16')
  assert rounded_BLV.dtype == np.float32
  # bfloat16 rounds by at most 2^-9 = 0.2 %; some 20 independent roundings one after the other make
  # √20 times that, 0.9 %. Less than a tenth of one rounding would not be bfloat16.
  error = np.sqrt(((rounded_BLV - exact_BLV) ** 2).mean()) / exact_BLV.std()
  assert 2e-4 < error < 0.02


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_module_but_the_embeddings_computes_in_the_compute_type(dtype):
  model = models.make(tiny.make_config(dtype=dtype))
  apply = functools.partial(model.apply, capture_intermediates=True, mutable=['intermediates'])
  variables = {'params': models.abstract_params(model.config)}
  _, captured = jax.eval_shape(apply, variables, tiny.make_tokens(1, 2))
  types = {path: leaf.dtype.name for path, leaf in tiny.by_path(captured).items()}
  for top in ('__call__/0/0', 'wte/__call__/0', 'wpe/__call__/0'):  # logits and embeddings
    assert types.pop(f'intermediates/{top}') == 'float32'
  # ln_f, a dropout, and two blocks of two norms, four products, three dropouts and themselves.
  assert len(types) >= 2 + 2 * (2 + 4 + 3)
  assert set(types.values()) == {dtype}


def test_the_softmax_of_attention_is_computed_in_float32():
  config = tiny.make_config(dtype='bfloat16')
  variables, tokens_BL = {'params': tiny.make_params()}, tiny.make_tokens(1, BLOCK)
  for cache in (None, attention.empty_cache(config, 1, BLOCK)):
    apply = functools.partial(models.make(config).apply, cache=cache)
    program = str(jax.make_jaxpr(apply)(variables, tokens_BL))
    assert set(re.findall(r':(\w+)\[[\d,]*\] = exp ', program)) == {'f32'}


def test_the_embedding_gradient_is_summed_in_float32():
  # Tokens as frequent as words of a text (Zipf), so that many gradients fall on the same row.
  vocab, shape = 500, (64, 32)
  frequencies = 1 / np.arange(1, vocab + 1)
  tokens_BL = np.random.default_rng(0).choice(vocab, shape, p=frequencies / frequencies.sum())
  table_VD = np.random.default_rng(1).normal(0, 0.3, (vocab, 16)).astype(np.float32)
  weights_BLD = np.random.default_rng(2).normal(size=(*shape, 16))

  params = tiny.make_params(block_size=32)

  def gradient(table_VD, tokens_BL):
    changes = {'vocab_size': len(table_VD), 'block_size': 32, 'tie_embeddings': False}
    model = models.make(tiny.make_config(dtype='bfloat16', **changes))

    def total(table_VD):
      variables = {'params': {**params, 'wte': {'embedding': table_VD}, 'lm_head': table_VD}}
      hidden_BLD, _ = model.apply(variables, tokens_BL, method='hidden')
      return (hidden_BLD * weights_BLD).sum()

    return np.asarray(jax.jit(jax.grad(total))(table_VD))

  # With a row for each position, nothing has to be summed.
  single_ND = gradient(table_VD[tokens_BL.ravel()], np.arange(tokens_BL.size).reshape(shape))
  exact_VD = np.zeros(table_VD.shape)
  np.add.at(exact_VD, tokens_BL.ravel(), single_ND)
  error = np.linalg.norm(gradient(table_VD, tokens_BL) - exact_VD) / np.linalg.norm(exact_VD)
  assert error < 1e-5


# Dropout.


def test_dropout_is_on_embeddings_attention_and_residual_branches():
  rate, config = 0.25, tiny.make_config(dropout=0.25)
  params, tokens_BL = tiny.make_params(), tiny.make_tokens(256, BLOCK)
  apply = functools.partial(
    models.make(config).apply,
    deterministic=False,
    capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
    mutable=['intermediates'],
  )
  _, variables = jax.jit(apply)({'params': params}, tokens_BL, rngs={'dropout': jax.random.key(0)})
  outputs = tiny.by_path(variables['intermediates'])
  shapes = sorted(leaf.shape for leaf in outputs.values())
  B, half = len(tokens_BL), BLOCK // 2  # the attention of half of the queries, then of the others
  weights = [(B, 2, half, half), (B, 2, half, BLOCK)]
  assert shapes == sorted([*[(B, BLOCK, 16)] * 5, *weights * 2])
  # The paths are part of the random keys: other names would change what a resumed run drops.
  block = ('attn/Dropout_0', 'attn/Dropout_1', 'mlp/Dropout_0')
  paths = ['Dropout_0', *(f'h_{i}/{name}' for i in range(2) for name in block)]
  calls = [f'{path}/__call__/0' for path in paths]
  assert sorted(outputs) == sorted([*calls, *(f'h_{i}/attn/Dropout_0/__call__/1' for i in (0, 1))])
  for name, leaf in outputs.items():
    leaf = np.asarray(leaf)
    if leaf.ndim == 4:
      # A row of attention weights sums to 1, and dropout keeps the mean. A sum of weights that are
      # each 0 or 4/3 of their value deviates by at most √(rate / (1 - rate)) = 0.58.
      rows = leaf.sum(-1)
      assert abs(rows.mean() - 1) < 5 * 0.58 / math.sqrt(rows.size), name
      L, M = rows.shape[-1], leaf.shape[-1]
      leaf = leaf[..., np.tri(L, M, M - L, dtype=bool)]
    # Five standard errors of a share of n draws.
    error = 5 * math.sqrt(rate * (1 - rate) / leaf.size)
    assert abs((leaf == 0).mean() - rate) < error, name

  table_BLD = params['wte']['embedding'][tokens_BL] + params['wpe']['embedding']
  embedded_BLD = next(leaf for name, leaf in outputs.items() if name.count('/') == 2)
  expected_BLD = np.where(embedded_BLD == 0, 0, table_BLD / (1 - rate))
  np.testing.assert_allclose(embedded_BLD, expected_BLD, rtol=1e-6)


def test_dropout_is_a_function_of_its_key_and_off_when_deterministic():
  tokens_BL = tiny.make_tokens(2, BLOCK)
  plain, first, again, other = (
    _logits(tokens_BL, dropout=0.25, seed=seed) for seed in (None, 0, 0, 1)
  )
  np.testing.assert_array_equal(plain, _logits(tokens_BL))
  np.testing.assert_array_equal(first, again)
  assert not np.isclose(first, other).any(-1).all()
  assert not np.isclose(first, plain).any(-1).all()


@pytest.mark.parametrize('scan_layers', [False, True])
def test_dropout_is_independent_in_each_layer(scan_layers):
  # Each layer adds mask / (1 - rate) to a stream of zeros, and nothing else. The last LayerNorm
  # keeps levels apart, and the output layer shows the stream itself.
  changes = {'vocab_size': 16, 'tie_embeddings': False, 'scan_layers': scan_layers}
  shapes = models.abstract_params(tiny.make_config(**changes))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  for layer in [params['h']] if scan_layers else [params['h_0'], params['h_1']]:
    layer['mlp']['c_proj']['bias'] += 1.0
  params['ln_f']['scale'] += 1.0
  params['lm_head'] += np.eye(16)
  apply = functools.partial(_apply, seed=0, dropout=0.5, **changes)
  streams = np.asarray(jax.jit(apply)(params, np.zeros((16, BLOCK), np.int32))).reshape(-1, 16)
  levels = [len(np.unique(stream.round(4))) for stream in streams]
  # 0, 2 or 4 by the two masks; that one of three is missing among 16 has a chance of 2 (3/4)^16.
  assert np.mean(np.array(levels) == 3) > 0.9
