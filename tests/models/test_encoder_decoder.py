"""An encoder–decoder sees all of a source and the target so far, and decodes as it was trained.

Shapes in names: B batch, L length of a target, M length of a source, D width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.data.tokenizers import char
from gpt_jax.models import attention
from gpt_jax.training import objectives
from tests.generation import tiny as generation
from tests.models import tiny

WAYS = [{}, {'remat': True}, {'scan_layers': True}]
_sizes: Any = functools.partial(dict, kind='encoder_decoder')
SOURCES_BM = np.array([[3, 1, 4, 1, 5], [9, 2, -1, -1, -1]], np.int32)


def _model(**changes):
  config = tiny.make_config(**_sizes(**changes))
  params = tiny.make_params(**_sizes(**changes))
  return models.make(config), params


@pytest.mark.parametrize('changes', WAYS, ids=str)
def test_a_position_sees_its_source_and_the_target_before_it(changes):
  """By gradients in the embeddings, of which each token here has its own."""
  model, params = _model(**changes)
  tokens_BL = np.tile(np.arange(10, 18, dtype=np.int32), (2, 1))
  sources_BM = np.where(SOURCES_BM < 0, -1, np.arange(20, 25)).astype(np.int32)

  def states(table_VD):
    changed = {**params, 'wte': {'embedding': table_VD}}
    hidden, _ = tiny.apply(model, changed, tokens_BL, sources_BM=sources_BM, method='hidden')
    return (hidden**3).sum(-1)

  gradient_BLVD = jax.jit(jax.jacrev(states))(params['wte']['embedding'])
  seen_BLV = np.asarray(jnp.abs(gradient_BLVD).max(-1)) > 0
  for b, length in enumerate((5, 2)):
    assert seen_BLV[b, :, 20 : 20 + length].all() and not seen_BLV[b, :, 20 + length :].any()
    np.testing.assert_array_equal(seen_BLV[b, :, 10:18], np.tri(8, dtype=bool))


def test_scanned_layers_compute_what_unrolled_ones_do():
  tokens_BL = tiny.make_tokens(2, 6)
  model, params = _model()
  scanned, _ = _model(scan_layers=True)
  one, other = (
    tiny.apply(m, p, tokens_BL, sources_BM=SOURCES_BM)[0]
    for m, p in ((model, params), (scanned, tiny.stack(params)))
  )
  np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_decoding_with_both_caches_is_the_whole_computation(scan_layers):
  model, params = _model(scan_layers=scan_layers)
  tokens_BL = tiny.make_tokens(2, 7)
  whole_BLV, _ = tiny.apply(model, params, tokens_BL, sources_BM=SOURCES_BM)
  memory = tiny.apply(model, params, SOURCES_BM, method='remember')
  cache = attention.empty_cache(model.config, 2, 8)._replace(memory=memory)
  # The rows change places on the way, and their memories with them.
  swapped = jnp.array([1, 0])
  found = []
  for start, stop in ((0, 3), (3, 4), (4, 7)):
    logits_BLV, cache = tiny.apply(model, params, tokens_BL[:, start:stop], cache=cache)
    found.append(logits_BLV if start % 2 == 0 else logits_BLV[swapped])
    if start in (0, 3):
      cache, tokens_BL = attention.take_rows(cache, swapped), tokens_BL[swapped]
  np.testing.assert_allclose(jnp.concatenate(found, 1), whole_BLV, rtol=0, atol=2e-5)


def test_padding_behind_a_source_changes_nothing():
  model, params = _model()
  tokens_BL = tiny.make_tokens(2, 6)
  logits_BLV, _ = tiny.apply(model, params, tokens_BL, sources_BM=SOURCES_BM)
  alone_BLV, _ = tiny.apply(model, params, tokens_BL[1:], sources_BM=SOURCES_BM[1:, :2])
  np.testing.assert_allclose(logits_BLV[1:], alone_BLV, rtol=0, atol=1e-5)


def test_loss_and_exact_match_are_those_of_the_targets_and_greedy_decoding():
  model, params = _model()
  inputs_BL, targets_BL = tiny.make_tokens(2, 6), tiny.make_tokens(2, 6).copy()
  targets_BL[1, 4:] = batch_lib.IGNORED
  logits_BLV, _ = tiny.apply(model, params, inputs_BL, sources_BM=SOURCES_BM)
  targets_BL[1, :4] = np.asarray(logits_BLV.argmax(-1))[1, :4]
  rows = batch_lib.Batch(inputs_BL, targets_BL, None, SOURCES_BM)
  log_p_BLV = jax.nn.log_softmax(logits_BLV)
  wanted = -sum(log_p_BLV[b, i, targets_BL[b, i]] for b in (0, 1) for i in range(6 - 2 * b))
  sums = jax.jit(functools.partial(objectives.evaluate, model))(params, rows)
  assert float(sums['loss']) == pytest.approx(float(wanted), rel=1e-5)
  assert [int(sums[name]) for name in ('targets', 'rows', 'exact')] == [10, 2, 1]
  assert objectives.measures(jax.device_get(sums))['exact_match'] == 0.5
  loss = jax.jit(functools.partial(objectives.loss, model))(params, rows, jax.random.key(0))
  assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


# Text in, text out.


def _greedy(made, source, *, new, start=generation.END):
  """Decodes without a cache."""
  module, tokens = models.make(made.config), [start]
  for _ in range(new):
    padded_1L = np.array([tokens + [0] * (generation.BLOCK - len(tokens))])
    logits_1LV, _ = _forward(module, made.params, padded_1L, np.array([source]))
    tokens.append(int(logits_1LV[0, len(tokens) - 1, : generation.VOCAB].argmax()))
  return tokens[1:]


@functools.partial(jax.jit, static_argnums=0)
def _forward(module, params, tokens_BL, sources_BM):
  return module.apply({'params': params}, tokens_BL, sources_BM=sources_BM)


def test_greedy_decoding_is_that_without_a_cache():
  made = generation.model(kind='encoder_decoder', ends=True)
  prompts = [generation.prompt(n, seed=n) for n in (2, 5, 13, 5)]
  found = made.generate([*prompts, prompts[1]], max_new_tokens=9, temperature=0)
  assert found[1].tokens == found[4].tokens
  for prompt, sample in zip(prompts, found, strict=False):
    whole = _greedy(made, prompt, new=9)
    assert (sample.tokens, sample.ended) == generation.until_end(whole)
  assert len({str(sample.tokens) for sample in found}) > 2, 'they depend on the source'
  text = ''.join(made.stream(prompts[1], max_new_tokens=9, temperature=0))
  assert text == found[1].text


def test_beams_and_samples_carry_their_own_source():
  made = generation.model(kind='encoder_decoder', ends=True)
  prompts = [generation.prompt(n, seed=n) for n in (3, 6)]
  together = made.generate(prompts, max_new_tokens=5, num_beams=3)
  alone = [made.generate([prompt], max_new_tokens=5, num_beams=3)[0] for prompt in prompts]
  assert [sample.tokens for sample in together] == [sample.tokens for sample in alone]
  # One new token, of as many beams as there are tokens, is the most likely one.
  best = made.generate(prompts, max_new_tokens=1, num_beams=generation.VOCAB)
  for prompt, sample in zip(prompts, best, strict=True):
    assert generation.until_end(_greedy(made, prompt, new=1))[0] == sample.tokens
  samples = generation.samples(made, prompts * 2, new=5)
  for prompt, sample in zip(prompts * 2, samples, strict=True):
    again = generation.samples(made, [prompt] * 2, new=5)
    assert sample.tokens in [other.tokens for other in again]


def test_what_needs_no_source_is_refused():
  made = generation.model(kind='encoder_decoder')
  assert generation.refused(made.logits, [[1]]) == ['model']
  assert generation.refused(made.embed, ['a']) == ['model']
  assert generation.refused(made.generate, 'a', draft=made) == ['model']


def test_bos_begins_the_translation_and_not_the_source():
  made = generation.model(kind='encoder_decoder')
  tokenizer = char.CharTokenizer(generation.LETTERS[:-1], ['bos'])
  made = dataclasses.replace(made, tokenizer=tokenizer)
  for prompt in ('ab', 'hello', 'z'):
    source = made.encode(prompt)
    assert source == tokenizer.encode(prompt).tolist()
    expected = _greedy(made, source, new=6, start=tokenizer.bos_id)
    assert made.generate(prompt, max_new_tokens=6, temperature=0)[0].tokens == expected
