"""JAX's splash attention for TPUs, interpreted, is the attention that XLA makes."""

import jax
import numpy as np
import pytest

from gpt_jax import models
from tests.models import tiny

L = 256


@pytest.mark.parametrize('kind', ['gpt', 'encoder'])
@pytest.mark.parametrize('packed', [False, True])
def test_splash_attention_is_xlas(splash_interpreted, packed, kind):
  del splash_interpreted
  sizes, tokens_BL = (
    {'n_layer': 1, 'n_embd': 128, 'block_size': L, 'kind': kind},
    tiny.make_tokens(2, L),
  )
  segments_BL = np.repeat([[1, 2, 2, 0], [1, 2, 3, 3]], L // 4, axis=1) if packed else None

  def loss_and_gradients(kernel):
    model = models.make(tiny.make_config(**sizes, attention=kernel))

    def loss(params):
      hidden_BLD, _ = model.apply(
        {'params': params}, tokens_BL, segments_BL=segments_BL, method='hidden'
      )
      return model.apply({'params': params}, hidden_BLD, tokens_BL, method='loss')

    return jax.jit(jax.value_and_grad(loss))(tiny.make_params(**sizes))

  (found, found_gradients), (wanted, gradients) = map(loss_and_gradients, ('splash', 'xla'))
  assert float(found) == pytest.approx(float(wanted), rel=1e-5)
  tiny.assert_close(found_gradients, gradients, rtol=1e-4)
