"""Decoding on the device, with a cache, chooses what the plain forward pass would choose, whatever
else is in the batch, however many tokens come at a time, and whatever a draft proposes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.generation import language_model, processors
from tests.generation import tiny

BLOCK, VOCAB, PROMPTS = tiny.BLOCK, tiny.VOCAB, tiny.PROMPTS
ARCHITECTURES: list[dict[str, Any]] = [
  {},
  {'n_layer': 2, 'scan_layers': True},
  {'n_layer': 2, 'bias': False, 'tie_embeddings': False},
]


@pytest.fixture(params=[{}, {'noise': 0.1}], ids=['no draft', 'draft'])
def draft(request: pytest.FixtureRequest) -> dict[str, Any]:
  """Arguments without and with a draft, which makes another program."""
  return {'draft': tiny.model(**request.param)} if request.param else {}


# With a cache as without.


def _check(model, prompt, sample, choose):
  """The sample has the tokens that `choose` finds, with the model's own log-probabilities."""
  log_probs = []

  def recorded(logits_V, tokens):
    token = int(choose(logits_V, tokens))
    log_probs.append(jax.nn.log_softmax(logits_V)[token])
    return token

  assert sample.tokens == tiny.reference(model, prompt, new=len(sample.tokens), choose=recorded)
  np.testing.assert_allclose(sample.log_probs, log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_greedy_decoding_of_ragged_prompts_is_the_argmax_of_the_full_forward_pass(architecture):
  model = tiny.model(**architecture)
  results = tiny.samples(model, PROMPTS, new=3 * BLOCK, temperature=0.0)
  for prompt, sample in zip(PROMPTS, results, strict=True):
    _check(model, prompt, sample, lambda logits_V, tokens: logits_V.argmax())
    assert len(sample.tokens) == 3 * BLOCK
    assert len(set(sample.tokens)) > 2  # a model that always says the same proves nothing


def test_random_ragged_batches_are_decoded_as_without_a_cache(draft):
  rng, model = np.random.default_rng(3), tiny.model()
  for batch in range(20):
    prompts = [tiny.prompt(n, seed=batch) for n in rng.integers(1, BLOCK + 1, 4).tolist()]
    new = int(rng.integers(1, 2 * BLOCK))
    results = tiny.tokens(model, prompts, new=new, temperature=0.0, **draft)
    assert results == [tiny.greedy(model, prompt, new=new) for prompt in prompts]


def _draw(options, row_key, logits_V, tokens):
  """Draws as if all processors had the whole vocabulary, the most likely tokens first."""
  key = jax.random.fold_in(row_key, len(tokens))
  logits_BV = jnp.full((1, 128), -jnp.inf).at[0, :VOCAB].set(logits_V)
  logits_BV = processors.temperature(logits_BV, options.get('temperature', 1.0))
  if not options:
    return jax.random.categorical(key, logits_BV[0])
  kept_BV = jnp.argsort(jnp.argsort(-logits_BV, stable=True)) < options['top_k']
  logits_BV = processors.top_p(jnp.where(kept_BV, logits_BV, -jnp.inf), options['top_p'])
  logits_BV = processors.min_p(logits_BV, options['min_p'])
  logits_BV = processors.typical(logits_BV, options['typical_p'])
  kept_BK, ids_BK = jax.lax.top_k(logits_BV, options['top_k'])
  return ids_BK[0, jax.random.categorical(key, kept_BK[0])]


@pytest.mark.parametrize(
  'options',
  [{}, {'temperature': 4.0, 'top_k': 9, 'top_p': 0.95, 'min_p': 0.02, 'typical_p': 0.7}],
  ids=['all', 'kept'],
)
def test_draws_use_the_key_of_seed_sample_and_token(options):
  model = tiny.model()
  results = tiny.samples(model, PROMPTS, new=2 * BLOCK, seed=5, **options)
  for prompt, sample_index, sample in zip(PROMPTS, (0, 0, 0, 1), results, strict=True):
    row_key = jax.random.fold_in(jax.random.key(5, impl='threefry2x32'), sample_index)
    _check(model, prompt, sample, functools.partial(_draw, options, row_key))
    assert len(sample.tokens) == 2 * BLOCK
  assert len({token for sample in results for token in sample.tokens}) > 9


def test_the_smallest_context_decodes():
  model = tiny.model(block_size=1)
  results = tiny.tokens(model, [[3]] * 2, new=5, temperature=0.0)
  assert results == [tiny.greedy(model, [3], new=5)] * 2


# What else is in the batch, and how many tokens come at a time, changes nothing.


def test_a_row_depends_on_seed_prompt_and_sample_index_alone(draft):
  run: Any = functools.partial(tiny.tokens, tiny.model(), new=50, **draft)
  many = run(PROMPTS)
  assert len(set(map(tuple, many))) == 4
  for row in (0, 1, 2):
    assert run(PROMPTS[row : row + 1]) == [many[row]]
  order = [2, 1, 0, 3]
  assert run([PROMPTS[i] for i in order]) == [many[i] for i in order]
  assert all(a != b for a, b in zip(many, run(PROMPTS, seed=6), strict=True))


def test_fewer_tokens_are_the_first_of_more(draft):
  many = tiny.tokens(tiny.model(), PROMPTS, new=50, **draft)
  for new in (1, 5, BLOCK - 5, BLOCK - 4, BLOCK, 21, 49):  # within a context, at its end and beyond
    assert tiny.tokens(tiny.model(), PROMPTS, new=new, **draft) == [each[:new] for each in many]


def test_a_text_is_the_same_however_many_tokens_come_at_a_time(draft, monkeypatch):
  options = {'repetition_penalty': 1.3, 'no_repeat_ngram': 2, 'stop': ['…'], **draft}
  results = []
  for patience, interval in [(0, 1), (1e9, 3), (1e9, BLOCK), (1e9, 50)]:
    monkeypatch.setattr(language_model, '_BATCH_PATIENCE', patience)
    monkeypatch.setattr(language_model, '_STOP_INTERVAL', interval)
    results.append(tiny.tokens(tiny.model(), PROMPTS, new=50, **options))
  assert results == results[:1] * 4


def test_a_context_shifts_when_its_own_row_is_full():
  def shifts(prompts):
    results = tiny.samples(tiny.model(), prompts, new=3 * BLOCK)
    return [sample.context_shifts for sample in results]

  halves = BLOCK - BLOCK // 2 + 1  # tokens that fit between two shifts
  expected = [-(-(len(p) + 3 * BLOCK - 1 - BLOCK) // halves) for p in PROMPTS]
  assert shifts(PROMPTS) == expected and len(set(expected)) > 1
  assert shifts(PROMPTS[:1]) == expected[:1]


def test_texts_that_fill_a_bucket_go_on_like_others():
  model, prompts = tiny.model(block_size=64), [tiny.prompt(10)]
  ((long),) = tiny.tokens(model, prompts, new=30)
  for new in range(21, 26):  # the cache of 32 positions is full with 23, as the last needs none
    assert tiny.tokens(model, prompts, new=new) == [long[:new]]


# Ends.


def test_a_row_ends_with_eos_and_the_others_go_on(draft):
  """Everything before the end is as without eos, also if a context shift lies between."""
  lengths = set()
  for seed in range(8):
    run = functools.partial(tiny.samples, prompts=PROMPTS, new=60, temperature=2.0, seed=seed)
    endless = run(tiny.model(), **draft)
    ending: dict[str, Any] = {name: tiny.model(noise=0.1, ends=True) for name in draft}
    for whole, sample in zip(endless, run(tiny.model(ends=True), **ending), strict=True):
      assert (sample.tokens, sample.ended) == tiny.until_end(whole.tokens)
      lengths.add(len(sample.tokens))
  assert min(lengths) < BLOCK - 4 < max(lengths) and len(lengths) > 4


def test_a_row_without_a_possible_token_ends_and_reports_it():
  options: dict[str, Any] = {'ban': list(range(5, VOCAB)), 'no_repeat_ngram': 1, 'top_k': 5}
  options |= {'top_p': 0.9, 'min_p': 0.01, 'typical_p': 0.9}
  prompt = tiny.prompt(5)
  run = functools.partial(tiny.samples, tiny.model(), [prompt, [0, 1, 2, 3, 4]], **options)
  stuck, other = run(new=BLOCK)
  assert sorted(stuck.tokens) == sorted({0, 1, 2, 3, 4} - set(prompt)) and stuck.tokens
  assert (stuck.ended, other.ended, other.tokens) == ('no_token', 'no_token', [])
  # With as many as were asked for, it isn't known whether another was possible.
  whole, _ = run(new=len(stuck.tokens))
  assert (whole.tokens, whole.ended) == (stuck.tokens, 'length')


# Options.


def test_bias_penalties_and_minimum_know_prompt_and_text_over_all_contexts():
  model = tiny.model(ends=True)
  options: dict[str, Any] = {
    'logit_bias': {tiny.END: 2.0, 9: -1.0},
    'repetition_penalty': 1.2,
    'presence_penalty': 0.7,
    'frequency_penalty': 0.4,
    'min_new_tokens': 2 * BLOCK,
  }

  def expected(**options):
    return [tiny.greedy(model, prompt, new=40, **options) for prompt in prompts]

  prompts = [tiny.prompt(n, seed) for seed, n in enumerate([2, 5, BLOCK, 1])]
  results = tiny.tokens(model, prompts, new=40, temperature=0.0, **options)
  assert results == expected(**options)
  assert 2 * BLOCK <= min(map(len, results)) < 40
  for name in options:  # each of them matters
    without = {key: value for key, value in options.items() if key != name}
    assert results != expected(**without), name


def test_no_ngram_occurs_twice_within_a_context():
  options: dict[str, Any] = {'new': 8, 'no_repeat_ngram': 2}
  results = tiny.tokens(tiny.model(), PROMPTS[:2], temperature=0.0, **options)
  assert results == [tiny.greedy(tiny.model(), prompt, **options) for prompt in PROMPTS[:2]]
