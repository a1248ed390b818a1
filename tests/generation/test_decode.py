"""Decoding with a cache chooses what the plain forward pass would, whatever surrounds it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.generation import decode
from gpt_jax.generation import logits as logits_lib
from gpt_jax.models import gpt

BLOCK = 13  # neither even nor a power of two
VOCAB = 30
ARCHITECTURES = [{}, {'scan_layers': True}, {'bias': False, 'tie_embeddings': False}]


@functools.cache
def _model(**changes):
  """A tiny model whose every parameter is random and large enough for decided predictions."""
  config = config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=16, block_size=BLOCK, vocab_size=VOCAB, pad_vocab_to=128
  )
  for name, value in changes.items():
    setattr(config, name, value)
  model = gpt.GPT(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
  draw = np.random.default_rng(1).normal

  def random(path, leaf):
    mean, std = {'scale': (1, 0.2), 'bias': (0, 0.2)}.get(path[-1].key, (0, 0.8))
    return jnp.asarray(draw(mean, std, leaf.shape), leaf.dtype)

  return model, jax.tree_util.tree_map_with_path(random, shapes)


@functools.cache
def _decoder(**changes):
  return decode.Decoder(_model(**changes)[0].config)


@functools.cache
def _forward(**changes):
  model, params = _model(**changes)
  return functools.partial(jax.jit(model.apply), {'params': params})


def _prompt(length):
  return np.random.default_rng(length).integers(0, VOCAB, length)


def _generate(prompt_L, *, rows=(0,), new=20, architecture=None, **options):
  architecture = architecture or {}
  settings = {'temperature': 1.0, 'top_k': 0, 'seed': 5, 'end_of_text': None, **options}
  return _decoder(**architecture)(
    _model(**architecture)[1], prompt_L, rows_N=np.array(rows), max_new_tokens=new, **settings
  )


def _reference(prompt_L, *, row, new, choose, architecture=None):
  """Token by token through the uncached model, with the window's rule written out."""
  architecture = architecture or {}
  forward = _forward(**architecture)
  window, result = prompt_L.tolist(), []
  for t in range(new):
    if len(window) > BLOCK:
      window = window[-(BLOCK // 2) :]
    padded_BL = np.array([window + [0] * (BLOCK - len(window))])
    logits_BLV, _ = forward(padded_BL)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), row), t)
    result.append(int(choose(logits_BLV[0, len(window) - 1], key)))
    window.append(result[-1])
  return result


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
@pytest.mark.parametrize('length', [1, 5, BLOCK - 1, BLOCK])
def test_greedy_decoding_is_the_argmax_of_the_full_forward_pass(architecture, length):
  prompt_L = _prompt(length)
  result_NL = _generate(prompt_L, new=3 * BLOCK, temperature=0.0, architecture=architecture)
  expected = _reference(
    prompt_L, row=0, new=3 * BLOCK, choose=lambda x_V, _: x_V.argmax(), architecture=architecture
  )
  assert result_NL.tolist() == [expected]
  assert len(set(expected)) > 2  # a model that says the same whatever it reads proves nothing


def test_draws_use_the_key_of_seed_row_and_token():
  prompt_L = _prompt(3)
  result_NL = _generate(prompt_L, rows=(0, 4, 7), new=2 * BLOCK)
  for row, tokens in zip((0, 4, 7), result_NL.tolist(), strict=True):
    expected = _reference(
      prompt_L, row=row, new=2 * BLOCK, choose=lambda x_V, key: jax.random.categorical(key, x_V)
    )
    assert tokens == expected


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_cached_logits_are_those_of_the_full_forward_pass(architecture):
  model, params = _model(**architecture)
  forward = _forward(**architecture)
  tokens_BL = _prompt(BLOCK)[None]
  expected_BLV, _ = forward(tokens_BL)
  known = 5  # then 8 prefilled positions, of which the last 3 are padding
  padded_BL = np.where(np.arange(8) < known, tokens_BL[:, :8], VOCAB - 1)
  ended_N = jnp.zeros(2, bool)
  prefill = jax.jit(functools.partial(decode.prefill, model))
  cache = prefill(params, padded_BL, length=known, ended_N=ended_N, produced=0).cache
  assert cache.length == known - 1
  for position in range(known - 1, BLOCK):
    token_N1 = np.tile(tokens_BL[:, position : position + 1], (2, 1))
    logits_NLV, cache = forward(token_N1, cache=cache)
    for row in range(2):
      np.testing.assert_allclose(
        logits_NLV[row, 0, :VOCAB], expected_BLV[0, position, :VOCAB], atol=1e-5, rtol=1e-5
      )


def test_the_padding_of_a_prompt_changes_nothing():
  model, params = _model()
  sampling = decode.Sampling(
    np.uint32(5), np.arange(3, dtype=np.int32), np.float32(1), np.int32(-1)
  )
  prefill = jax.jit(functools.partial(decode.prefill, model))
  add_tokens = jax.jit(functools.partial(decode.decode, model), static_argnames='top_k')
  results = []
  for bucket, filler in [(5, 0), (8, 0), (8, VOCAB - 1), (BLOCK, 17)]:
    padded_BL = np.full((1, bucket), filler)
    padded_BL[0, :5] = _prompt(5)
    state = prefill(params, padded_BL, length=5, ended_N=jnp.zeros(3, bool), produced=0)
    state = add_tokens(params, state, sampling, steps=BLOCK - 4, top_k=0)
    results.append(state.tokens_NM.tolist())
    assert state.cache.length == BLOCK and state.produced == BLOCK - 4
  assert results[0] == results[1] == results[2] == results[3]


def test_a_sample_depends_on_seed_row_and_prompt_alone():
  prompt_L = _prompt(6)
  many_NL = _generate(prompt_L, rows=(0, 1, 2), new=50)
  assert len(set(map(tuple, many_NL.tolist()))) == 3
  for row in range(3):
    assert _generate(prompt_L, rows=(row,), new=50).tolist() == many_NL[row : row + 1].tolist()
  for new in (1, 5, BLOCK - 5, BLOCK - 4, 21, 49):  # within a window, on its edge and beyond
    assert _generate(prompt_L, rows=(0, 1, 2), new=new).tolist() == many_NL[:, :new].tolist()
  assert _generate(prompt_L, new=50, seed=6).tolist() != many_NL[:1].tolist()


def test_temperature_0_is_top_k_1():
  greedy_NL = _generate(_prompt(4), new=40, temperature=0.0)
  assert _generate(_prompt(4), new=40, temperature=3.0, top_k=1).tolist() == greedy_NL.tolist()
  assert _generate(_prompt(4), new=40, temperature=3.0).tolist() != greedy_NL.tolist()


@pytest.mark.parametrize('top_k', [0, 100])
def test_the_padding_of_the_vocabulary_never_comes_out(top_k):
  result_NL = _generate(_prompt(4), rows=range(3), new=200, temperature=5.0, top_k=top_k)
  assert result_NL.shape == (3, 200) and result_NL.dtype == np.int32
  assert result_NL.min() >= 0 and result_NL.max() < VOCAB
  assert len(np.unique(result_NL)) > VOCAB * 0.8


def test_decoding_ends_when_every_sample_has_ended():
  """Everything but the end is as without an `end_of_text`, also when a window lies between."""
  options = {'rows': (0, 1, 2), 'new': 60, 'temperature': 2.0}
  endless_NL = _generate(_prompt(4), **options)
  ends_as_expected = []
  for token in range(VOCAB):
    firsts = [row.index(token) if token in row else 59 for row in endless_NL.tolist()]
    ends = [max(firsts) < 59, min(firsts) < BLOCK - 4 < max(firsts)]
    if not any(ends):
      continue
    result_NL = _generate(_prompt(4), **options, end_of_text=token)
    expected_NL = endless_NL[:, : max(firsts) + 1].copy()
    for row, first in zip(expected_NL, firsts, strict=True):
      row[first + 1 :] = token
    assert result_NL.tolist() == expected_NL.tolist()
    ends_as_expected.append(ends)
  assert [True, True] in ends_as_expected


def test_only_bucket_number_of_samples_and_top_k_compile(monkeypatch):
  traced = {'prefill': 0, 'decode': 0}

  def counted(name, function):
    def wrapper(*args, **kwargs):
      traced[name] += 1
      return function(*args, **kwargs)

    return wrapper

  monkeypatch.setattr(gpt, 'empty_cache', counted('prefill', gpt.empty_cache))
  monkeypatch.setattr(logits_lib, 'temperature', counted('decode', logits_lib.temperature))
  model, params = _model()
  decoder = decode.Decoder(model.config)
  run = functools.partial(decoder, params, rows_N=np.arange(2))
  run(_prompt(5), max_new_tokens=3, temperature=1.0, top_k=0, seed=0, end_of_text=None)
  first = dict(traced)
  assert min(first.values()) > 0
  run(_prompt(8), max_new_tokens=6, temperature=0.0, top_k=0, seed=9, end_of_text=3)
  run(_prompt(6), max_new_tokens=1, temperature=0.3, top_k=0, seed=2**32 - 1, end_of_text=None)
  assert traced == first
  run(_prompt(9), max_new_tokens=3, temperature=1.0, top_k=0, seed=0, end_of_text=None)
  assert traced['prefill'] > first['prefill'] and traced['decode'] == first['decode']


def test_the_smallest_window_decodes():
  changes = {'block_size': 1}
  params = _model(**changes)[1]
  result_NL = _decoder(**changes)(
    params, np.array([3]), rows_N=np.arange(2), max_new_tokens=5, temperature=0.0, top_k=0,
    seed=0, end_of_text=None,
  )  # fmt: skip
  expected, token = [], 3
  for _ in range(5):
    token = int(_forward(**changes)(np.array([[token]]))[0][0, 0].argmax())
    expected.append(token)
  assert result_NL.tolist() == [expected, expected]
