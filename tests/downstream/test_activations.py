"""What is shown of a model is what the model computes."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.downstream import activations
from gpt_jax.generation import options
from tests.generation import tiny
from tests.models import tiny as tiny_models

IDS = tiny.prompt(9)


def _model(**changes):
  return tiny.model(n_layer=2, **changes)


def _scanned(model):
  """The same model, its layers as scanned ones."""
  config = dataclasses.replace(model.config, scan_layers=True)
  return dataclasses.replace(model, config=config, params=tiny_models.stack(model.params))


def _softmax(x):
  powers = np.exp(x - x.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def _guesses(logits_LV, follows=None, **how):
  follows = [None] * len(logits_LV) if follows is None else follows
  return activations.guesses(jnp.asarray(logits_LV), follows, int, **how)


@pytest.mark.parametrize('changes', [{}, {'bias': False}, {'n_head': 1}])
def test_the_weights_explain_what_attention_returns(changes):
  model = _model(**changes)
  weights_NHLM = activations.attention(model, IDS)
  config, module = model.config, models.make(model.config)
  assert weights_NHLM.shape == (2, config.n_head, len(IDS), len(IDS))
  capture: Any = {'capture_intermediates': True, 'mutable': 'intermediates'}
  _, captured = jax.jit(functools.partial(module.apply, **capture))(
    {'params': model.params}, np.array([IDS])
  )
  for i, weights_HLM in enumerate(weights_NHLM):
    attention = captured['intermediates'][f'h_{i}']['attn']
    v_MHK = attention['c_attn']['__call__'][0][0][:, 2]
    y_LD = jnp.einsum('HLM,MHK->LHK', weights_HLM, v_MHK).reshape(len(IDS), -1)
    project = model.params[f'h_{i}']['attn']['c_proj']
    found_LD = y_LD @ project['kernel'] + project.get('bias', 0)
    wanted_LD = attention['__call__'][0][0][0]
    np.testing.assert_allclose(found_LD, wanted_LD, rtol=0, atol=1e-5 * np.abs(wanted_LD).max())


def test_weights_are_shares_of_the_tokens_so_far():
  weights_NHLM = activations.attention(_model(), IDS)
  np.testing.assert_allclose(weights_NHLM.sum(-1), 1, atol=1e-6)
  assert (weights_NHLM >= 0).all() and not np.triu(weights_NHLM, 1).any()
  assert weights_NHLM.std(-1).max() > 0.1, 'nothing to see in equal weights'


def test_the_last_layer_says_what_the_model_says():
  model = _model()
  first_LV, *_, last_LV = layers = list(activations.lens(model, IDS))
  wanted_LV = model.logits([IDS])[0]
  assert len(layers) == 3 and wanted_LV.shape == last_LV.shape
  np.testing.assert_allclose(last_LV, wanted_LV, rtol=1e-5, atol=1e-5)
  module: Any = models.make(model.config)
  params = {'params': model.params}
  wte, wpe = (model.params[name]['embedding'] for name in ('wte', 'wpe'))
  x_BLD = (wte[np.array(IDS)] + wpe[: len(IDS)])[None]
  bare_BLV = module.apply(params, x_BLD, method=lambda m, x: m.logits(m.ln_f(x)))
  np.testing.assert_allclose(first_LV, bare_BLV[0, :, : tiny.VOCAB], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('changes', [{}, {'remat': True}])
def test_scanned_and_rematerialized_layers_show_the_same(changes):
  model = _model()
  other = _scanned(model)
  other = dataclasses.replace(other, config=dataclasses.replace(other.config, **changes))
  np.testing.assert_array_equal(
    activations.attention(other, IDS), activations.attention(model, IDS)
  )
  for found, wanted in zip(activations.lens(other, IDS), activations.lens(model, IDS), strict=True):
    np.testing.assert_array_equal(found, wanted)


def test_candidates_are_the_likeliest_tokens_in_order():
  logits_LV = np.random.default_rng(0).normal(0, 2, (4, 9)).astype(np.float32)
  follows = [3, 0, 8, None]
  for guess, logits_V, token in zip(_guesses(logits_LV, follows), logits_LV, follows, strict=True):
    p_V = _softmax(logits_V)
    best = np.argsort(-logits_V)
    assert [i for i, _ in guess.candidates] == best[:5].tolist()
    np.testing.assert_allclose([p for _, p in guess.candidates], p_V[best[:5]], rtol=1e-5)
    assert guess.follows == token
    if token is None:
      continue
    assert guess.probability == pytest.approx(p_V[token], rel=1e-5)
    assert best[guess.rank - 1] == token


def test_probabilities_are_those_of_sampling():
  logits_LV = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
  (guess,) = _guesses(logits_LV, [2], temperature=0.5, top_k=2)
  p_K = _softmax(logits_LV[0, :2] / 0.5)
  np.testing.assert_allclose([p for _, p in guess.candidates], [*p_K, 0, 0], rtol=1e-5)
  assert (guess.probability, guess.rank) == (0, 3)
  (greedy,) = _guesses(logits_LV, [0], temperature=0.0)
  assert [p for _, p in greedy.candidates] == [1, 0, 0, 0] and greedy.probability == 1


def test_a_vocabulary_smaller_than_the_list_is_all_listed():
  assert len(_guesses(np.zeros((1, 3), np.float32))[0].candidates) == 3


@pytest.mark.parametrize(
  'how', [{'temperature': 0.7, 'top_k': 4}, {'temperature': 0.0}, {'seed': 3}]
)
def test_generation_shows_the_tokens_of_generate_and_what_they_were_drawn_from(how):
  model = _model()
  request = options.make(max_new_tokens=4, **how)
  (sample,) = model.generate([IDS], request=request)
  found = activations.generation(model, IDS, request, int)
  assert [guess.follows for guess in found] == sample.tokens
  assert all(guess.probability > 0 for guess in found)
  for i, guess in enumerate(found):
    logits_V = tiny.logits_V(model, IDS + sample.tokens[:i])
    wanted = _guesses(
      logits_V[None],
      [sample.tokens[i]],
      **{'temperature': 0.8, 'top_k': 200}
      | {name: value for name, value in how.items() if name != 'seed'},
    )
    assert guess.rank == wanted[0].rank
    np.testing.assert_allclose(
      [p for _, p in guess.candidates], [p for _, p in wanted[0].candidates], rtol=1e-4, atol=1e-6
    )


def test_generation_ends_with_the_context_or_with_the_end_of_the_text():
  full = tiny.prompt(tiny.BLOCK)
  request = options.make(max_new_tokens=20)
  assert len(activations.generation(_model(), full, request, int)) == 1
  assert len(activations.generation(_model(), full[:-3], request, int)) == 4
  ends = _model(ends=True)
  surely = options.make(max_new_tokens=20, logit_bias={tiny.END: 1e3})
  assert [guess.follows for guess in activations.generation(ends, IDS, surely, int)] == [tiny.END]


def test_the_table_has_each_parameter_once():
  model = _model()
  rows = activations.parameters(model.params)
  leaves = jax.tree.leaves(model.params)
  assert len(rows) == len({row[:2] for row in rows}) < len(leaves)
  assert sum(copies for _, _, copies, _, _ in rows) == len(leaves)
  assert sum(count for *_, count, _ in rows) == sum(x.size for x in leaves)
  assert sum(size for *_, size in rows) == sum(x.nbytes for x in leaves)
  assert ('h_*/attn/c_attn/kernel', '16 × 48', 2, 2 * 16 * 48, 2 * 16 * 48 * 4) in rows
  assert ('ln_f/bias', '16', 1, 16, 64) in rows


def test_an_untrained_model_knows_nothing():
  model = activations.untrained(_model())
  logits_LV = model.logits([IDS])[0]
  loss = -jax.nn.log_softmax(logits_LV)[np.arange(8), np.array(IDS[1:])].mean()
  assert float(loss) == pytest.approx(math.log(tiny.VOCAB), abs=0.05)
