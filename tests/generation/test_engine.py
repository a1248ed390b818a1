"""Generating in steps, with a cache, chooses what the plain forward pass would, whatever else is
in the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.generation import beam, contrastive, engine, processors, sampling, speculative
from gpt_jax.models import gpt
from tests import random_params
from tests.generation import sessions

BLOCK = 13  # neither even nor a power of two
VOCAB = 30
_prompt = functools.partial(sessions.prompt, VOCAB)
ROOMY = {'n_layer': 1, 'block_size': 64}
ARCHITECTURES = [{}, {'scan_layers': True}, {'bias': False, 'tie_embeddings': False}]


@functools.cache
def _engine(**changes):
  """A tiny model whose every parameter is random and large enough for decided predictions."""
  config = config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=16, block_size=BLOCK, vocab_size=VOCAB, pad_vocab_to=128
  )
  for name, value in changes.items():
    setattr(config, name, value)
  return engine.Engine(config, random_params.make(config))


@functools.cache
def _forward(**changes):
  made = _engine(**changes)
  return functools.partial(jax.jit(gpt.GPT(made.config).apply), {'params': made.params})


def _sampling(*, end_of_text=None, bias_V=None, **options):
  settings = config_lib.GenerationConfig(**{'temperature': 1.0, 'top_k': 0, 'seed': 5, **options})
  return sampling.make(settings, vocab_size=VOCAB, end_of_text=end_of_text, bias_V=bias_V)


def _session(prompts, *, new=20, architecture=None, log_probs=False, **options):
  return engine.Session(
    _engine(**(architecture or {})),
    prompts,
    _sampling(**options),
    max_new_tokens=new,
    log_probs=log_probs,
  )


def _tokens(prompts, *, count=10**6, **options):
  return [tokens for tokens, _ in sessions.run(_session(prompts, **options), count)]


def _reference(prompt, *, new, choose, copy=0, architecture=None, seed=5):
  """Token by token through the uncached model, with the window's rule written out."""
  forward = _forward(**(architecture or {}))
  window, result = list(prompt), []
  for t in range(new):
    if len(window) > BLOCK:
      window = window[-(BLOCK // 2) :]
    padded_BL = np.array([window + [0] * (BLOCK - len(window))])
    logits_BLV, _ = forward(padded_BL)
    key = jax.random.key(seed, impl='threefry2x32')
    key = jax.random.fold_in(jax.random.fold_in(key, copy), t)
    result.append(int(choose(logits_BLV[0, len(window) - 1], key)))
    window.append(result[-1])
  return result


def _argmax(logits_V, _):
  return logits_V.argmax()


def _draw(logits_V, key):
  return jax.random.categorical(key, logits_V)


# Cached is uncached.


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_greedy_decoding_of_ragged_prompts_is_the_argmax_of_the_full_forward_pass(architecture):
  prompts = [_prompt(length) for length in (1, 5, BLOCK - 1, BLOCK, 2)]
  results = _tokens(prompts, new=3 * BLOCK, temperature=0.0, architecture=architecture)
  for prompt, result in zip(prompts, results, strict=True):
    expected = _reference(prompt, new=3 * BLOCK, choose=_argmax, architecture=architecture)
    assert result == expected
    assert len(set(expected)) > 2  # a model that says the same whatever it reads proves nothing


def test_fifty_random_ragged_batches_are_decoded_as_without_a_cache():
  rng = np.random.default_rng(3)
  for batch in range(50):
    lengths = rng.integers(1, BLOCK + 1, 4)
    prompts = [_prompt(length, seed=batch) for length in lengths.tolist()]
    new = int(rng.integers(1, 2 * BLOCK))
    results = _tokens(prompts, new=new, temperature=0.0)
    assert results == [_reference(prompt, new=new, choose=_argmax) for prompt in prompts]


def test_draws_use_the_key_of_seed_copy_and_token():
  prompts = [_prompt(3), _prompt(7), _prompt(3), _prompt(3)]
  for (prompt, copy), result in zip(
    zip(prompts, (0, 0, 1, 2), strict=True), _tokens(prompts, new=2 * BLOCK), strict=True
  ):
    assert result == _reference(prompt, new=2 * BLOCK, choose=_draw, copy=copy)


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_cached_logits_are_those_of_the_full_forward_pass(architecture):
  forward = _forward(**architecture)
  made = _engine(**architecture)
  tokens_BL = np.array([_prompt(BLOCK, seed) for seed in range(3)])
  expected_BLV, _ = forward(tokens_BL)
  known_B = np.array([5, 1, 7], np.int32)  # then padding, which must not count
  padded_BL = np.where(np.arange(8) < known_B[:, None], tokens_BL[:, :8], VOCAB - 1)
  window = made.prefill(made.params, padded_BL, known_B, np.arange(3, dtype=np.int32), size=BLOCK)
  cache = window.cache
  assert cache.length_B.tolist() == (known_B - 1).tolist()
  for _ in range(BLOCK - 6):
    position_B = np.array(cache.length_B)
    token_B1 = np.take_along_axis(tokens_BL, position_B[:, None], axis=1)
    logits_BLV, cache = forward(token_B1, cache=cache)
    wanted_BV = expected_BLV[np.arange(3), position_B]
    np.testing.assert_allclose(logits_BLV[:, 0, :VOCAB], wanted_BV[:, :VOCAB], atol=1e-5, rtol=1e-5)


def test_several_tokens_at_once_are_the_same_as_one_by_one():
  made, forward = _engine(), _forward()
  tokens_BL = np.array([_prompt(BLOCK, seed) for seed in range(2)])
  known_B, rows_B = np.array([3, 6], np.int32), np.arange(2, dtype=np.int32)
  window = made.prefill(made.params, tokens_BL[:, :8], known_B, rows_B, size=BLOCK)
  place_BL = np.array(window.cache.length_B)[:, None] + np.arange(5)
  more_BL = np.take_along_axis(tokens_BL, place_BL, axis=1)
  logits_BLV, cache = forward(more_BL, cache=window.cache)
  assert cache.length_B.tolist() == [7, 10]
  expected_BLV = np.take_along_axis(forward(tokens_BL)[0], place_BL[:, :, None], axis=1)
  np.testing.assert_allclose(
    logits_BLV[..., :VOCAB], expected_BLV[..., :VOCAB], atol=1e-5, rtol=1e-5
  )


# What else is in the batch, and how much is asked for at a time, changes nothing.


def test_a_row_is_the_same_alone_and_in_a_batch_first_or_last():
  prompts = [_prompt(length) for length in (6, 1, BLOCK, 9)]
  many = _tokens(prompts, new=50)
  assert len(set(map(tuple, many))) == 4
  for row, prompt in enumerate(prompts):
    assert _tokens([prompt], new=50) == [many[row]]
  assert _tokens(prompts[::-1], new=50) == many[::-1]


def test_copies_of_a_prompt_differ_wherever_they_stand():
  alike = _tokens([_prompt(6)] * 3, new=50)
  assert len(set(map(tuple, alike))) == 3
  mixed = _tokens([_prompt(2), _prompt(6), _prompt(2), _prompt(6), _prompt(6)], new=50)
  assert [mixed[1], mixed[3], mixed[4]] == alike


def test_fewer_tokens_are_the_first_of_more():
  prompts = [_prompt(6), _prompt(BLOCK)]
  many = _tokens(prompts, new=50)
  for new in (1, 5, BLOCK - 5, BLOCK - 4, 21, 49):  # within a window, on its edge and beyond
    assert _tokens(prompts, new=new) == [tokens[:new] for tokens in many]
  assert _tokens(prompts, new=50, seed=6) != many


@pytest.mark.parametrize('count', [1, 3, BLOCK, 50])
def test_a_text_is_the_same_however_many_tokens_come_at_a_time(count):
  prompts = [_prompt(6), _prompt(BLOCK), _prompt(1)]
  options = {'new': 50, 'repetition_penalty': 1.3, 'no_repeat_ngram': 2}
  assert _tokens(prompts, count=count, **options) == _tokens(prompts, **options)


def test_a_row_slides_when_it_is_full_itself():
  alone = _session([_prompt(2)], new=3 * BLOCK)
  both = _session([_prompt(2), _prompt(BLOCK)], new=3 * BLOCK)
  assert sessions.run(both)[0] == sessions.run(alone)[0]
  halves = BLOCK - BLOCK // 2 + 1  # tokens that fit between two slides
  slides = [-(-(length + 3 * BLOCK - 1 - BLOCK) // halves) for length in (2, BLOCK)]
  assert alone.slides == slides[:1] and both.slides == slides


# Ends.


def test_a_row_ends_with_the_end_of_text_and_the_others_go_on():
  """Everything but the end is as without an `end_of_text`, also when a window lies between."""
  prompts, options = [_prompt(4), _prompt(9), _prompt(4)], {'new': 60, 'temperature': 2.0}
  endless = _tokens(prompts, **options)
  lengths = set()
  for token in range(VOCAB):
    ends = [row.index(token) + 1 if token in row else 60 for row in endless]
    result = _tokens(prompts, **options, end_of_text=token)
    assert result == [row[:end] for row, end in zip(endless, ends, strict=True)]
    lengths.update(ends)
  assert min(lengths) < BLOCK - 4 < max(lengths)


def test_a_row_that_is_ended_by_hand_stays_as_it_is():
  prompts = [_prompt(4), _prompt(9)]
  whole = _tokens(prompts, new=40)
  session = _session(prompts, new=40)
  first = session.advance(4)
  session.end([0])
  rest = sessions.run(session)
  assert first[0][0] == whole[0][:4] and rest[0][0] == []
  assert first[1][0] + rest[1][0] == whole[1]


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_row_without_a_possible_token_ends(temperature):
  bias_V = np.full(128, -np.inf, np.float32)
  bias_V[[3, 4]] = 0
  options = {'bias_V': bias_V, 'no_repeat_ngram': 1, 'temperature': temperature}
  (tokens,) = _tokens([_prompt(4)], new=9, **options)
  assert sorted(tokens) == sorted({3, 4} - set(_prompt(4)))


# Options.


def test_temperature_0_is_top_k_1():
  greedy = _tokens([_prompt(4)], new=40, temperature=0.0)
  assert _tokens([_prompt(4)], new=40, temperature=3.0, top_k=1) == greedy
  assert _tokens([_prompt(4)], new=40, temperature=3.0) != greedy


@pytest.mark.parametrize(
  'options', [{}, {'top_k': 100}, {'top_p': 0.99}, {'typical_p': 0.99}, {'min_p': 1e-6}], ids=str
)
def test_the_padding_of_the_vocabulary_never_comes_out(options):
  results = _tokens([_prompt(4)] * 3, new=200, temperature=5.0, **options)
  drawn = {token for tokens in results for token in tokens}
  assert max(drawn) < VOCAB and len(drawn) > VOCAB * 0.8


def _processed(prompt, new, option):
  """A reference for options that ask about the text so far."""
  text = list(prompt)

  def choose(logits_V, _):
    produced = np.bincount(text[len(prompt) :], minlength=128)
    seen = np.bincount(text, minlength=128) > 0
    logits_BV = {
      'repetition_penalty': lambda x, v: processors.repetition_penalty(x, jnp.array(seen[None]), v),
      'presence_penalty': lambda x, v: processors.presence_penalty(x, jnp.array(produced[None]), v),
      'frequency_penalty': lambda x, v: processors.frequency_penalty(
        x, jnp.array(produced[None]), v
      ),
      'min_new_tokens': lambda x, v: x.at[:, 7].set(-jnp.inf) if len(text) < 2 + v else x,
    }[option[0]](logits_V[None], option[1])
    text.append(int(logits_BV[0].argmax()))
    return text[-1]

  result = _reference(prompt, new=new, choose=choose)
  return result[: result.index(7) + 1] if option[0] == 'min_new_tokens' and 7 in result else result


@pytest.mark.parametrize(
  'option',
  [
    ('repetition_penalty', 1.5),
    ('presence_penalty', 2.0),
    ('frequency_penalty', 0.7),
    ('min_new_tokens', 20),
  ],
  ids=str,
)
def test_penalties_know_prompt_and_text_over_all_windows(option):
  prompt, end = _prompt(2), 7 if option[0] == 'min_new_tokens' else None
  plain = _tokens([prompt], new=40, temperature=0.0, end_of_text=end)
  results = _tokens(
    [prompt, _prompt(5)], new=40, temperature=0.0, end_of_text=end, **dict([option])
  )
  assert results[0] == _processed(prompt, 40, option)
  if end is None:
    assert results[0] != plain[0]


def test_min_new_tokens_holds_the_end_back():
  prompts = [_prompt(n) for n in range(1, 9)]
  early = _tokens(prompts, new=40, temperature=2.0, end_of_text=7)
  assert min(map(len, early)) < 20
  late = _tokens(prompts, new=40, temperature=2.0, end_of_text=7, min_new_tokens=20)
  assert min(map(len, late)) > 20
  assert all(7 not in tokens[:20] for tokens in late)


def test_no_ngram_comes_twice_within_a_window():
  (tokens,) = _tokens([_prompt(2)], new=BLOCK - 2, temperature=0.0, no_repeat_ngram=2)
  pairs = list(zip(_prompt(2) + tokens, (_prompt(2) + tokens)[1:], strict=False))
  assert len(pairs) == len(set(pairs))


def test_log_probabilities_are_the_models_whatever_is_processed():
  prompts = [_prompt(3), _prompt(BLOCK)]
  options = {'new': 2 * BLOCK, 'temperature': 3.0, 'top_k': 5, 'presence_penalty': 1.0}
  rows = sessions.run(_session(prompts, log_probs=True, **options), 4)
  assert [tokens for tokens, _ in rows] == _tokens(prompts, **options)
  for prompt, (tokens, log_probs) in zip(prompts, rows, strict=True):
    expected: list[float] = []
    given = iter(tokens)

    def choose(logits_V, _, expected=expected, given=given):
      token = next(given)
      expected.append(float(jax.nn.log_softmax(logits_V)[token]))
      return token

    _reference(prompt, new=len(tokens), choose=choose)
    np.testing.assert_allclose(log_probs, expected, atol=1e-4, rtol=1e-4)


# Compilation.


def test_texts_that_fill_a_bucket_go_on_like_others():
  long = _tokens([_prompt(10)], new=30, architecture=ROOMY)
  for new in range(20, 26):  # the cache of 32 positions is full with 23, as the last needs none
    assert _tokens([_prompt(10)], new=new, architecture=ROOMY) == [long[0][:new]]


def test_only_buckets_rows_and_processors_compile():
  made: Any = engine.Engine(_engine().config, _engine().params)

  def compiled():
    return made.prefill._cache_size(), made.decode._cache_size()

  def run(lengths, new, **options):
    prompts = [_prompt(length) for length in lengths]
    sessions.run(engine.Session(made, prompts, _sampling(**options), max_new_tokens=new))

  run([5, 7], 3)
  first = compiled()
  assert min(first) == 1
  run([8, 1], 6, temperature=0.7, seed=9)
  run([6, 2], 1, temperature=0.3, seed=2**32 - 1, end_of_text=3)
  run([3, 12], 1)
  assert compiled() == first
  run([5, 7], 3, top_p=0.9)
  run([5, 7], 3, top_p=0.8)
  assert compiled() == (1, 2)
  run([5, 7], 3, temperature=0.0)
  assert compiled() == (1, 3)
  run([5, 7, 2], 3)
  assert compiled() == (2, 4)


@pytest.mark.parametrize(
  ('block_size', 'length', 'expected'),
  [(1024, 1, 32), (1024, 32, 32), (1024, 33, 64), (1024, 513, 1024), (1000, 600, 1000), (8, 3, 8)],
)
def test_lengths_are_filled_up_to_few_sizes(block_size, length, expected):
  config = config_lib.ModelConfig(block_size=block_size, vocab_size=VOCAB)
  assert engine.Engine(config, None).bucket(length) == expected


def test_equal_prompts_are_computed_once():
  made: Any = engine.Engine(_engine().config, _engine().params)
  shapes = []
  prefill = made.prefill

  def seen(params, tokens_UL, *args, **kwargs):
    shapes.append(tokens_UL.shape)
    return prefill(params, tokens_UL, *args, **kwargs)

  made.prefill = seen
  engine.Session(made, [_prompt(3), _prompt(4), _prompt(3)], _sampling(), max_new_tokens=2)
  assert shapes == [(2, BLOCK)]


def test_the_smallest_window_decodes():
  changes = {'block_size': 1}
  results = _tokens([[3]] * 2, new=5, temperature=0.0, architecture=changes)
  expected, token = [], 3
  for _ in range(5):
    token = int(_forward(**changes)(np.array([[token]]))[0][0, 0].argmax())
    expected.append(token)
  assert results == [expected, expected]


@pytest.mark.parametrize('search', ['draws', 'beams', 'contrast', 'guesses'])
def test_sharded_parameters_generate_as_whole_ones(search):
  def texts(model):
    settings: dict[str, Any] = {'max_new_tokens': 2 * BLOCK}
    session: engine.Session
    prompts, how = [_prompt(3), _prompt(9)], _sampling()
    if search == 'beams':
      settings = {'num_beams': 2, 'length_penalty': 1.0, 'max_new_tokens': 4}
      session = beam.Session(model, prompts, how, **settings)
    elif search == 'contrast':
      session = contrastive.Session(model, prompts, how, alpha=0.6, candidates=2, **settings)
    elif search == 'guesses':
      session = speculative.Session(model, model, prompts, how, draft_tokens=2, **settings)
    else:
      session = engine.Session(model, prompts, how, **settings)
    return sessions.run(session)

  whole = _engine(n_layer=1)
  assert texts(sessions.sharded(whole)) == texts(whole)
