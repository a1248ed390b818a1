"""The LSTM is used as the transformer is: causal, cached, restarted by segments, generating."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.generation import language_model
from gpt_jax.models import attention
from tests import random_params
from tests.models import tiny

CONFIG = tiny.make_config(kind='lstm', lstm_width=12, tie_embeddings=False, pad_vocab_to=32)
PARAMS = random_params.make(CONFIG, std=0.5)
MODEL = models.make(CONFIG)


@jax.jit
def _apply(tokens_BL, **options):
  return MODEL.apply({'params': PARAMS}, tokens_BL, **options)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_a_cell_is_that_of_the_paper():
  """Equations of the LSTM with a forget gate (Gers et al. 2000), by NumPy."""
  tokens_BL = tiny.make_tokens(2, 5)
  x_BLD = np.asarray(PARAMS['wte']['embedding'])[tokens_BL]
  for layer in ('h_0', 'h_1'):
    cell = jax.tree.map(np.asarray, PARAMS[layer]['cell'])
    h_BW, c_BW, states = np.zeros((2, 12)), np.zeros((2, 12)), []
    for i in range(5):
      i_BW, f_BW, g_BW, o_BW = (
        x_BLD[:, i] @ cell[f'i{gate}']['kernel']
        + h_BW @ cell[f'h{gate}']['kernel']
        + cell[f'h{gate}']['bias']
        for gate in 'ifgo'
      )
      c_BW = _sigmoid(f_BW) * c_BW + _sigmoid(i_BW) * np.tanh(g_BW)
      h_BW = _sigmoid(o_BW) * np.tanh(c_BW)
      states.append(h_BW)
    x_BLD = np.stack(states, 1)
  logits_BLV, _ = _apply(tokens_BL)
  expected_BLV = x_BLD @ np.asarray(PARAMS['lm_head']).T
  np.testing.assert_allclose(logits_BLV[..., : tiny.VOCAB], expected_BLV[..., : tiny.VOCAB], 1e-4)
  assert np.isneginf(logits_BLV[..., tiny.VOCAB :]).all()


def test_no_gradient_comes_from_the_future():
  x_LD = np.asarray(PARAMS['wte']['embedding'])[:8]

  def logit(x_LD):
    table = PARAMS['wte']['embedding'].at[:8].set(x_LD)
    params = {**PARAMS, 'wte': {'embedding': table}}
    return MODEL.apply({'params': params}, jnp.arange(8)[None])[0][0, 4, 3]

  gradient_LD = np.abs(jax.jit(jax.grad(logit))(x_LD))
  assert (gradient_LD[:5].max(-1) > 0).all() and not gradient_LD[5:].any()


def test_cached_decoding_is_the_whole_pass_also_after_going_back():
  tokens_BL = tiny.make_tokens(3, 8)
  whole_BLV, _ = _apply(tokens_BL)
  cache = attention.empty_cache(CONFIG, 3, 8)
  first_BLV, cache = _apply(tokens_BL[:, :5], cache=cache)
  cache = attention.take_rows(cache._replace(length_B=jnp.array([3, 5, 0])), jnp.array([2, 0, 1]))
  for row, begin in enumerate((0, 3, 5)):
    source = (2, 0, 1)[row]
    alone = attention.take_rows(cache, jnp.array([row]))
    rest_BLV, _ = _apply(tokens_BL[source : source + 1, begin:], cache=alone)
    np.testing.assert_allclose(rest_BLV[0], whole_BLV[source, begin:], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(first_BLV, whole_BLV[:, :5], rtol=1e-5, atol=1e-5)


def test_a_segment_gets_the_states_that_it_gets_alone():
  tokens_BL = tiny.make_tokens(2, 8)
  segments_BL = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1, 2, 2, 2, 2, 3, 3, 3]], np.int32)
  packed_BLV, _ = _apply(tokens_BL, segments_BL=segments_BL)
  for row, begin, end in [(0, 0, 3), (0, 3, 6), (1, 0, 1), (1, 1, 5), (1, 5, 8)]:
    alone_BLV, _ = _apply(tokens_BL[row : row + 1, begin:end])
    np.testing.assert_allclose(packed_BLV[row, begin:end], alone_BLV[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('options', [{}, {'num_beams': 3}], ids=['greedy', 'beams'])
def test_it_generates_what_its_logits_say(options):
  model = language_model.LanguageModel(CONFIG, PARAMS, None)
  prompts = [[1, 2, 3], [4], [5, 6]]
  settings = {'max_new_tokens': 5, 'temperature': 0.0, 'top_k': 0, **options}
  samples = model.generate(prompts, **settings)
  assert [s.tokens for s in model.generate(prompts[:1], **settings)] == [samples[0].tokens]
  if not options:
    for prompt, sample in zip(prompts, samples, strict=True):
      logits_BLV = model.logits([[*prompt, *sample.tokens]])
      wanted = np.argmax(logits_BLV[0, len(prompt) - 1 : -1], -1)
      assert sample.tokens == wanted.tolist()
