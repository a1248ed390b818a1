"""Products with quantized weights are those with the rounded weights, for any number of rows.

Shapes in names: B batch, L length, N rows, D inputs, F outputs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.models import quantized
from tests.models import tiny


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _weights(dtype, w_FD):
  weights = quantized.quantize(jnp.asarray(w_FD), dtype)
  scale_F1 = 1 if weights.scale_F1 is None else weights.scale_F1
  return weights, np.asarray(weights.values_FD, np.float64) * scale_F1


@pytest.mark.parametrize(('dtype', 'step'), [('bfloat16', 2.0**-7), ('int8', 1 / 127)])
def test_each_weight_is_rounded_to_the_nearest(dtype, step):
  w_FD = _normal(0, 5, 40) * np.array([[1], [100], [1e-3], [1], [0]], np.float32)
  weights, rounded_FD = _weights(dtype, w_FD)
  assert weights.values_FD.dtype == dtype
  largest = np.abs(w_FD).max(axis=1, keepdims=True) if dtype == 'int8' else np.abs(w_FD)
  assert (np.abs(rounded_FD - w_FD) <= largest * step * 0.5001).all()


@pytest.mark.parametrize('rows', [1, 2, 7, 32, 33])
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_a_product_is_that_of_the_rounded_weights(dtype, rows):
  x_BLD = _normal(0, 1, rows, 48) * np.geomspace(1e-3, 100, rows, dtype=np.float32)[:, None]
  weights, rounded_FD = _weights(dtype, _normal(1, 24, 48))
  y_BLF = jax.jit(quantized.product)(x_BLD, weights)
  assert y_BLF.shape == (1, rows, 24) and y_BLF.dtype == jnp.float32
  # Of each row on its own: a small row isn't lost beside a large one.
  exact_BLF = x_BLD.astype(np.float64) @ rounded_FD.T
  sizes_BLF = np.abs(x_BLD).astype(np.float64) @ np.abs(rounded_FD).T
  rounds_x = dtype == 'bfloat16' and rows > 1 or rows > 32
  precision = 2.0**-9 if rounds_x else 2.0**-14 if rows > 1 else 2.0**-20
  assert (np.abs(y_BLF - exact_BLF) <= precision * sizes_BLF).all()


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_zeros_give_zeros_and_nan_is_not_hidden(dtype, rows):
  weights, _ = _weights(dtype, _normal(1, 24, 48))
  x_BLD = np.zeros((1, rows, 48), np.float32)
  assert (quantized.product(jnp.array(x_BLD), weights) == 0).all()
  x_BLD[0, 0, 0] = np.nan
  assert np.isnan(quantized.product(jnp.array(x_BLD), weights)[0, 0]).all()


@pytest.mark.parametrize('rows', [1, 8])
def test_no_program_holds_the_weights_in_a_larger_type(rows):
  weights, _ = _weights('int8', _normal(1, 256, 512))

  def loop(x_ND, weights):
    return jax.lax.fori_loop(
      0, 3, lambda _, x_ND: jnp.tile(quantized.product(x_ND, weights), (1, 2)), x_ND
    )

  compiled: Any = jax.jit(loop).lower(jnp.ones((rows, 512)), weights).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 256 * 512 * 2


@pytest.mark.parametrize('changes', [{}, {'scan_layers': True}, {'tie_embeddings': False}])
@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_a_model_computes_with_what_its_matrices_are_rounded_to(dtype, changes):
  config, params = tiny.make_config(**changes), tiny.make_params(**changes)
  small, quantized_params = models.for_inference(config, params, dtype)
  assert small.dtype == 'float32' and not small.tie_embeddings

  def rounded(path, x):
    if path[-1].key not in ('kernel', 'lm_head'):
      return x
    w_FD = jnp.swapaxes(x, -1, -2) if path[-1].key == 'kernel' else x
    values, scale = quantized.quantize(w_FD, dtype)
    w_FD = values.astype(jnp.float32) * (1 if scale is None else scale)
    return jnp.swapaxes(w_FD, -1, -2) if path[-1].key == 'kernel' else w_FD

  params = {**params, 'lm_head': params.get('lm_head', params['wte']['embedding'])}
  params = jax.tree_util.tree_map_with_path(rounded, params)
  for B, L, error in ((1, 1, 1e-5), (2, 8, 2e-2 if dtype == 'bfloat16' else 1e-3)):
    tokens_BL = tiny.make_tokens(B, L)
    found, _ = tiny.apply(models.make(small), quantized_params, tokens_BL)
    wanted, _ = tiny.apply(models.make(small), params, tokens_BL)
    np.testing.assert_allclose(found, wanted, atol=error * np.abs(wanted[wanted > -1e9]).max())


def test_float32_parameters_stay_as_they_are():
  config, params = tiny.make_config(dtype='bfloat16'), tiny.make_params()
  same, kept = models.for_inference(config, params, 'float32')
  assert same.dtype == 'float32' and same.tie_embeddings and kept is params


@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_the_layer_of_a_classifier_stays_as_it_is(dtype):
  config = tiny.make_config(classes='neg,pos')
  params = models.init(config, jax.random.key(0))
  _, quantized_params = models.for_inference(config, params, dtype)
  assert quantized_params['score'] == params['score']


def test_of_an_lstm_the_output_layer_alone_is_quantized():
  changes = {'kind': 'lstm', 'tie_embeddings': False, 'lstm_width': 8}
  config, params = tiny.make_config(**changes), tiny.make_params(**changes)
  small, quantized_params = models.for_inference(config, params, 'int8')
  assert isinstance(quantized_params['lm_head'], quantized.Weights)
  assert quantized_params['h_0'] == params['h_0']
  tokens_BL = tiny.make_tokens(2, 5)
  found, _ = tiny.apply(models.make(small), quantized_params, tokens_BL)
  wanted, _ = tiny.apply(models.make(config), params, tokens_BL)
  np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted[wanted > -1e9]).max())
