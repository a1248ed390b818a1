"""Adapters add nothing at first, then their product, and can be merged away.

Shapes in names: B batch, L length, D inputs, F outputs, R rank, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.models import layers, lora
from tests import random_params
from tests.models import tiny

TINY = tiny.make_config(lora_rank=3, lora_alpha=6.0)
TOKENS_BL = tiny.make_tokens(2, 8)
OPTIONS = [
  {},
  {'scan_layers': True, 'remat': True, 'lora_alpha': 1.0},
  {'bias': False, 'tie_embeddings': False, 'lora_rank': 16},
]
every_option = pytest.mark.parametrize('options', OPTIONS, ids=str)


def _params(config):
  return random_params.make(config, std=0.3)


def _apply(config, params):
  return models.make(config).apply({'params': params}, TOKENS_BL)[0]


def _logits(config, params):
  return jax.jit(functools.partial(_apply, config))(params)


def _layer(**options):
  layer: Any = layers.Dense(tiny.make_config(**options), (6,), ('embed', 'hidden'))
  return layer


def _without(config):
  return dataclasses.replace(config, lora_rank=0)


@pytest.mark.parametrize('rank, bias', [(1, True), (2, False), (5, True)])
@pytest.mark.parametrize('alpha', [0.1, 1.0, 16.0])
def test_a_layer_computes_the_formula_of_the_paper(rank, bias, alpha):
  rng = np.random.default_rng(3)
  x_BLD = rng.normal(size=(2, 3, 4)).astype(np.float32)
  shapes = {'kernel': (4, 6), 'bias': (6,), 'lora_a': (4, rank), 'lora_b': (rank, 6)}
  params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  if not bias:
    del params['bias']
  layer = _layer(bias=bias, lora_rank=rank, lora_alpha=alpha)
  y_BLF = layer.apply({'params': params}, x_BLD)
  change_DF = alpha / rank * np.float64(params['lora_a']) @ params['lora_b']
  wanted_BLF = x_BLD @ (params['kernel'] + change_DF) + (params['bias'] if bias else 0)
  np.testing.assert_allclose(y_BLF, wanted_BLF, rtol=1e-5, atol=1e-5 * (1 + alpha))


def test_a_layer_computes_in_its_type_with_parameters_in_float32():
  layer = _layer(dtype='bfloat16', lora_rank=2)
  params = layer.init(jax.random.key(0), jnp.ones((2, 4)))['params']
  assert {leaf.dtype.name for leaf in params.values()} == {'float32'}
  params['lora_b'] = jnp.ones((2, 6))
  apply = jax.make_jaxpr(lambda x_BD: layer.apply({'params': params}, x_BD))
  assert layer.apply({'params': params}, jnp.ones((2, 4))).dtype == jnp.bfloat16
  products = [line for line in str(apply(jnp.ones((2, 4)))).splitlines() if 'dot_general' in line]
  assert len(products) == 3 and all(':bf16[' in line for line in products)


def test_the_first_product_is_as_large_as_its_input():
  init = jax.jit(_layer(lora_rank=60).init)
  a_DR = np.asarray(init(jax.random.key(0), np.ones((1, 900)))['params']['lora_a'])
  assert a_DR.std() == pytest.approx(1 / math.sqrt(900), rel=0.02)
  assert np.abs(a_DR).max() > 3.5 * a_DR.std()  # Gaussian, its tails not cut


@every_option
def test_a_fresh_adapter_changes_no_bit_of_the_logits(options):
  config = dataclasses.replace(TINY, **options)
  params = jax.jit(models.make(config).init)(jax.random.key(0), TOKENS_BL)['params']
  adapters, base = lora.split(params)
  for path, leaf in tiny.by_path(adapters).items():
    assert bool((leaf == 0).all()) == path.endswith('lora_b'), path
  # Each has numbers of its own; with scanned layers, in each layer.
  firsts = [
    leaf[..., 0, 0].ravel() for path, leaf in tiny.by_path(adapters).items() if path[-1] == 'a'
  ]
  assert len(np.unique(np.concatenate(firsts))) == 4 * TINY.n_layer
  np.testing.assert_array_equal(_logits(config, params), _logits(_without(config), base))


@every_option
def test_merged_parameters_compute_the_same_in_the_tree_without_adapters(options):
  config = dataclasses.replace(TINY, **options)
  params = _params(config)
  kept = jax.tree.map(np.copy, params)
  merged = lora.merge(config, params)
  plain = models.abstract_params(_without(config))
  assert jax.tree.map(np.shape, merged) == jax.tree.map(np.shape, plain)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(merged)} == {'float32'}
  logits_BLV = _logits(config, params)
  np.testing.assert_allclose(_logits(_without(config), merged), logits_BLV, rtol=1e-5, atol=1e-5)
  base = lora.split(params)[1]
  assert np.abs(_logits(_without(config), base) - logits_BLV).max() > 0.1
  jax.tree.map(np.testing.assert_array_equal, params, kept)
  after, before = tiny.by_path(merged), tiny.by_path(base)
  changed = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
  assert changed == {path for path in before if path.endswith('kernel')}


@pytest.mark.parametrize('options', OPTIONS[:2], ids=str)
def test_the_gradient_is_that_of_the_merged_model(options):
  config = dataclasses.replace(TINY, **options)
  adapters, base = lora.split(_params(config))

  def loss(model_config, params):
    return jax.nn.logsumexp(_apply(model_config, params), axis=-1).mean()

  def product_form(adapters):
    return loss(config, lora.join(adapters, base))

  def merged_form(adapters):
    return loss(_without(config), lora.merge(config, lora.join(adapters, base)))

  gradients, wanted = (
    tiny.by_path(jax.jit(jax.grad(f))(adapters)) for f in (product_form, merged_form)
  )
  assert len(gradients) == 2 * 4 * (1 if config.scan_layers else TINY.n_layer)
  for path, gradient in gradients.items():
    assert np.abs(gradient).max() > 1e-4, path
    np.testing.assert_allclose(gradient, wanted[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_each_linear_layer_of_each_block_has_an_adapter_and_nothing_else():
  adapters, base = (tiny.by_path(tree) for tree in lora.split(models.abstract_params(TINY)))
  sizes = {'attn/c_attn': (16, 48), 'attn/c_proj': (16, 16), 'mlp/c_fc': (16, 64)}
  sizes['mlp/c_proj'] = (64, 16)
  assert {path: leaf.shape for path, leaf in adapters.items()} == {
    f'h_{layer}/{name}/{matrix}': shape
    for layer in range(2)
    for name, (inputs, outputs) in sizes.items()
    for matrix, shape in {'lora_a': (inputs, 3), 'lora_b': (3, outputs)}.items()
  }
  assert set(base) == set(tiny.by_path(models.abstract_params(_without(TINY))))


@every_option
def test_what_is_split_is_joined_again_and_only_adapters_are_trained(options):
  params = _params(dataclasses.replace(TINY, **options))
  adapters, base = lora.split(params)
  for parts in (lora.split(params), models.split_trained(TINY, params)):
    jax.tree.map(np.testing.assert_array_equal, parts, (adapters, base))
    for joined in (lora.join(*parts), lora.join(*parts[::-1])):
      jax.tree.map(np.testing.assert_array_equal, joined, params)
  jax.tree.map(np.testing.assert_array_equal, lora.split(base), ({}, base))
  # Without adapters everything is trained.
  jax.tree.map(np.testing.assert_array_equal, models.split_trained(TINY, base), (base, {}))
