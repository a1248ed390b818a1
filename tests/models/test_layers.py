"""The product that all layers share is a product, and its gradients are of full precision.

Shapes in names: B batch, L length, D inputs, F and G outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.models import layers


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  'shape, contracted, einsum',
  [((5, 6), 0, 'BLD,DF->BLF'), ((6, 5), 1, 'BLD,FD->BLF'), ((5, 3, 2), 0, 'BLD,DFG->BLFG')],
)
def test_it_and_its_gradients_are_those_of_einsum(shape, contracted, einsum):
  x_BLD, w = _normal(0, 2, 3, 5), _normal(1, *shape)
  ours, vjp = jax.vjp(lambda x, w: layers.product(x, w, (None,) * w.ndim, contracted), x_BLD, w)
  wanted, wanted_vjp = jax.vjp(lambda x, w: jnp.einsum(einsum, x, w), x_BLD, w)
  np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
  dy = _normal(2, *wanted.shape)
  for found, gradient in zip(vjp(dy), wanted_vjp(dy), strict=True):
    np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(128, 384), (128, 3, 4, 32)])
def test_gradients_of_bfloat16_products_are_float32_on_a_cpu_too(shape):
  x_BLD, w = jnp.bfloat16(_normal(0, 2, 32, 128)), _normal(1, *shape)
  dy = jnp.bfloat16(_normal(2, 2, 32, *shape[1:]))

  @jax.jit
  def gradient(x_BLD, w, dy):
    _, vjp = jax.vjp(lambda w: layers.product(x_BLD, w, (None,) * w.ndim), w)
    return vjp(dy)[0]

  dw = gradient(x_BLD, w, dy)
  assert dw.dtype == jnp.float32
  wanted = np.tensordot(
    np.float32(x_BLD).reshape(64, 128).T, np.float32(dy).reshape(64, *shape[1:]), 1
  )
  np.testing.assert_allclose(dw, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_of_weights_are_summed_in_float32():
  # In bfloat16, of the 1,000 ones that are added to 256 none would count.
  x_BLD = jnp.ones((1, 1256, 1), jnp.bfloat16)
  gradient = jax.grad(lambda w: layers.product(x_BLD, w, (None, None)).sum().astype(jnp.float32))
  assert gradient(jnp.ones((1, 1)))[0, 0] == 1256


def test_the_result_may_have_another_type():
  x_BLD, w_VD = _normal(0, 2, 3, 5).astype(jnp.bfloat16), _normal(1, 6, 5)
  y_BLV = layers.product(x_BLD, w_VD, (None, None), 1, jnp.float32)
  assert y_BLV.dtype == jnp.float32
  assert layers.product(x_BLD, w_VD, (None, None), 1).dtype == jnp.bfloat16
  exact = jnp.einsum('BLD,VD->BLV', x_BLD.astype(float), w_VD.astype(jnp.bfloat16).astype(float))
  np.testing.assert_allclose(y_BLV, exact, rtol=1e-5, atol=1e-5)
