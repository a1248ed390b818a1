"""Generating in steps, with a cache, chooses what the plain forward pass would choose, whatever
else is in the batch."""

import functools

import jax
import jax.extend as jax_extend
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.generation import decode, language_model, loop, processors, sampling
from gpt_jax.generation import state as state_lib
from gpt_jax.models import gpt
from gpt_jax.parallel import sharding
from tests.generation import tiny

BLOCK, VOCAB, PROMPTS = tiny.BLOCK, tiny.VOCAB, tiny.PROMPTS
ARCHITECTURES = [
  {},
  {'n_layer': 2, 'scan_layers': True},
  {'n_layer': 2, 'bias': False, 'tie_embeddings': False},
]


def _argmax(logits_V, tokens):
  return logits_V.argmax()


# With a cache as without.


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_greedy_decoding_of_ragged_prompts_is_the_argmax_of_the_full_forward_pass(architecture):
  model = tiny.model(**architecture)
  results = tiny.samples(model, PROMPTS, new=3 * BLOCK, temperature=0.0)
  for prompt, sample in zip(PROMPTS, results, strict=True):
    log_probs = []

    def choose(logits_V, tokens, log_probs=log_probs):
      log_probs.append(jax.nn.log_softmax(logits_V).max())
      return logits_V.argmax()

    assert sample.tokens == tiny.reference(model, prompt, new=3 * BLOCK, choose=choose)
    np.testing.assert_allclose(sample.log_probs, log_probs, atol=1e-4, rtol=1e-4)
    assert len(set(sample.tokens)) > 2  # a model that always says the same proves nothing


def test_random_ragged_batches_are_decoded_as_without_a_cache():
  rng, model = np.random.default_rng(3), tiny.model()
  for batch in range(20):
    prompts = [tiny.prompt(n, seed=batch) for n in rng.integers(1, BLOCK + 1, 4).tolist()]
    new = int(rng.integers(1, 2 * BLOCK))
    results = tiny.tokens(model, prompts, new=new, temperature=0.0)
    assert results == [tiny.reference(model, p, new=new, choose=_argmax) for p in prompts]


def _draw(options, row_key, logits_V, tokens):
  """Draws as if all processors had the whole vocabulary, the most likely tokens first."""
  key, V = jax.random.fold_in(row_key, len(tokens)), 128
  logits_BV = np.full((1, V), -np.inf, np.float32)
  logits_BV[0, :VOCAB] = logits_V
  logits_BV = processors.temperature(logits_BV, options.get('temperature', 1.0))
  if not options:
    return jax.random.categorical(key, logits_BV[0])
  kept_BV = np.argsort(np.argsort(-logits_BV, kind='stable')) < options['top_k']
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
  """And log-probabilities are the model's own, whatever is processed."""
  model, drawn = tiny.model(), set()
  results = tiny.samples(model, PROMPTS, new=2 * BLOCK, seed=5, **options)
  for prompt, sample_index, sample in zip(PROMPTS, (0, 0, 0, 1), results, strict=True):
    row_key = jax.random.fold_in(jax.random.key(5, impl='threefry2x32'), sample_index)
    log_probs = []

    def choose(logits_V, tokens, row_key=row_key, log_probs=log_probs):
      token = int(_draw(options, row_key, logits_V, tokens))
      log_probs.append(jax.nn.log_softmax(logits_V)[token])
      return token

    assert sample.tokens == tiny.reference(model, prompt, new=2 * BLOCK, choose=choose)
    np.testing.assert_allclose(sample.log_probs, log_probs, atol=1e-4, rtol=1e-4)
    drawn |= set(sample.tokens)
  assert len(drawn) > 9


def test_the_smallest_context_decodes():
  model = tiny.model(block_size=1)
  results = tiny.tokens(model, [[3]] * 2, new=5, temperature=0.0)
  assert results == [tiny.reference(model, [3], new=5, choose=_argmax)] * 2


# What else is in the batch, and how many tokens come at a time, changes nothing.


def test_a_row_depends_on_seed_prompt_and_sample_index_alone():
  model, many = tiny.model(), tiny.tokens(tiny.model(), PROMPTS, new=50)
  assert len(set(map(tuple, many))) == 4
  for row in (0, 1, 2):
    assert tiny.tokens(model, PROMPTS[row : row + 1], new=50) == [many[row]]
  order = [2, 1, 0, 3]
  assert tiny.tokens(model, [PROMPTS[i] for i in order], new=50) == [many[i] for i in order]
  other = tiny.tokens(model, PROMPTS, new=50, seed=6)
  assert all(a != b for a, b in zip(many, other, strict=True))


def test_fewer_tokens_are_the_first_of_more():
  many = tiny.tokens(tiny.model(), PROMPTS, new=50)
  for new in (1, 5, BLOCK - 5, BLOCK - 4, 21, 49):  # within a context, at its end and beyond
    assert tiny.tokens(tiny.model(), PROMPTS, new=new) == [tokens[:new] for tokens in many]


def test_a_text_is_the_same_however_many_tokens_come_at_a_time(monkeypatch):
  arguments = {'new': 50, 'repetition_penalty': 1.3, 'no_repeat_ngram': 2, 'stop': ['…']}
  results = []
  for patience, interval in [(0, 1), (1e9, 3), (1e9, BLOCK), (1e9, 50)]:
    monkeypatch.setattr(language_model, '_BATCH_PATIENCE', patience)
    monkeypatch.setattr(language_model, '_STOP_INTERVAL', interval)
    results.append(tiny.tokens(tiny.model(), PROMPTS, **arguments))
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


def test_a_row_ends_with_eos_and_the_others_go_on():
  """Everything before the end is as without eos, also if a context shift lies between."""
  prompts = PROMPTS[1:]
  lengths = set()
  for seed in range(8):
    arguments = {'new': 60, 'temperature': 2.0, 'seed': seed}
    endless = tiny.tokens(tiny.model(), prompts, **arguments)
    for whole, sample in zip(
      endless, tiny.samples(tiny.model(ends=True), prompts, **arguments), strict=True
    ):
      ends = tiny.END in whole
      assert sample.tokens == (whole[: whole.index(tiny.END)] if ends else whole)
      assert sample.ended == ('eos' if ends else 'length')
      lengths.add(len(sample.tokens))
  assert min(lengths) < BLOCK - 4 < max(lengths) < 61 and len(lengths) > 4


def test_a_row_without_a_possible_token_ends_and_reports_it():
  options = {'ban': list(range(5, VOCAB)), 'no_repeat_ngram': 1, 'top_k': 5, 'top_p': 0.9}
  options |= {'min_p': 0.01, 'typical_p': 0.9}
  prompt = tiny.prompt(5)
  stuck, other = tiny.samples(tiny.model(), [prompt, [0, 1, 2, 3, 4]], new=BLOCK, **options)
  assert sorted(stuck.tokens) == sorted({0, 1, 2, 3, 4} - set(prompt)) and stuck.tokens
  assert (stuck.ended, other.ended, other.tokens) == ('no_token', 'no_token', [])
  # With as many as were asked for, it isn't known whether another was possible.
  count = len(stuck.tokens)
  whole, _ = tiny.samples(tiny.model(), [prompt, [0, 1, 2, 3, 4]], new=count, **options)
  assert (whole.tokens, whole.ended) == (stuck.tokens, 'length')


# Options.


def test_temperature_0_is_top_k_1():
  greedy = tiny.tokens(tiny.model(), PROMPTS, new=40, temperature=0.0)
  assert tiny.tokens(tiny.model(), PROMPTS, new=40, temperature=3.0, top_k=1) == greedy
  assert tiny.tokens(tiny.model(), PROMPTS, new=40, temperature=3.0) != greedy


@pytest.mark.parametrize(
  'options', [{}, {'top_p': 0.99, 'typical_p': 0.99, 'min_p': 1e-6}], ids=str
)
def test_the_padding_of_the_vocabulary_is_never_generated(options):
  results = tiny.tokens(tiny.model(), PROMPTS, new=200, temperature=5.0, **options)
  drawn = {token for tokens in results for token in tokens}
  assert max(drawn) < VOCAB and len(drawn) > VOCAB * 0.8


def _penalised(prompt, options, logits_V, tokens):
  """Penalties and bans written out, in the usual order; the history has all contexts."""
  x_V = np.array(logits_V, np.float64)
  for token, value in options['logit_bias'].items():
    x_V[token] += value
  seen_V = np.isin(np.arange(VOCAB), prompt + tokens)
  penalty = options['repetition_penalty']
  x_V = np.where(seen_V, np.where(x_V > 0, x_V / penalty, x_V * penalty), x_V)
  counts_V = np.bincount(tokens, minlength=VOCAB)
  x_V -= options['presence_penalty'] * (counts_V > 0) + options['frequency_penalty'] * counts_V
  if len(tokens) < options['min_new_tokens']:
    x_V[tiny.END] = -np.inf
  return x_V.argmax()


def test_bias_penalties_and_minimum_know_prompt_and_text_over_all_contexts():
  model = tiny.model(ends=True)
  options = {
    'logit_bias': {tiny.END: 2.0, 9: -1.0},
    'repetition_penalty': 1.2,
    'presence_penalty': 0.7,
    'frequency_penalty': 0.4,
    'min_new_tokens': 2 * BLOCK,
  }

  def expected(prompt, options):
    choose = functools.partial(_penalised, prompt, options)
    result = tiny.reference(model, prompt, new=40, choose=choose)
    return result[: result.index(tiny.END)] if tiny.END in result else result

  prompts = [tiny.prompt(n, seed) for n, seed in [(2, 0), (5, 1), (BLOCK, 2), (1, 3)]]
  results = tiny.tokens(model, prompts, new=40, temperature=0.0, **options)
  assert results == [expected(prompt, options) for prompt in prompts]
  assert 2 * BLOCK <= min(map(len, results)) < 40
  off = {'logit_bias': {}, 'repetition_penalty': 1, 'presence_penalty': 0}
  off |= {'frequency_penalty': 0, 'min_new_tokens': 0}
  for name in options:  # each of them matters
    without = {**options, name: off[name]}
    assert results != [expected(prompt, without) for prompt in prompts], name


def test_no_ngram_occurs_twice_within_a_context():
  results = tiny.tokens(tiny.model(), PROMPTS[:2], new=8, temperature=0.0, no_repeat_ngram=2)
  for prompt, tokens in zip(PROMPTS, results, strict=False):
    text = prompt + tokens
    pairs = [pair for pair in zip(text, text[1:], strict=False)][max(0, len(prompt) - 1) :]
    assert len(pairs) == len(set(pairs))


# Programs.


def test_only_buckets_rows_and_processors_compile():
  model = tiny.model(block_size=40, n_embd=8)

  def compiled(lengths, **options):
    before = state_lib.prefill._cache_size(), decode.advance._cache_size()
    tiny.tokens(model, [tiny.prompt(length) for length in lengths], **options)
    after = state_lib.prefill._cache_size(), decode.advance._cache_size()
    return after[0] - before[0], after[1] - before[1]

  assert compiled([5, 7], new=3) == (1, 1)
  assert compiled([8, 1], new=6, temperature=0.7, seed=2**32 - 1) == (0, 0)
  assert compiled([3, 12], new=1, min_new_tokens=1) == (0, 0)
  assert compiled([5, 7], new=3, top_p=0.9) == (0, 1)
  assert compiled([5, 7], new=4, top_p=0.8) == (0, 0)
  assert compiled([5, 7, 2], new=3) == (1, 1)


@pytest.mark.parametrize(
  ('block_size', 'length', 'expected'),
  [(1024, 1, 32), (1024, 32, 32), (1024, 33, 64), (1024, 513, 1024), (1000, 600, 1000), (8, 3, 8)],
)
def test_lengths_are_padded_to_few_sizes(block_size, length, expected):
  assert loop.bucket(length, block_size) == expected


def test_equal_prompts_are_computed_once_and_no_context_before_it_is_full(monkeypatch):
  shapes, prefill = [], state_lib.prefill

  def seen(models, params, tokens_UL, *args, **kwargs):
    shapes.append(tokens_UL.shape)
    return prefill(models, params, tokens_UL, *args, **kwargs)

  monkeypatch.setattr(state_lib, 'prefill', seen)
  prompts = [tiny.prompt(BLOCK - 1), tiny.prompt(3), tiny.prompt(3), tiny.prompt(4)]
  tiny.tokens(tiny.model(), prompts, new=2)
  assert shapes == [(3, BLOCK)]
  tiny.tokens(tiny.model(), prompts, new=3)
  assert shapes[2:] == [(4, BLOCK)]


def _equations(jaxpr, name):
  """All equations of a primitive in a program, with those of its loops."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for inner in jax_extend.core.jaxprs_in_params(equation.params):
      yield from _equations(inner, name)


def _programs(**options):
  """Prefill and decoding of a batch, not compiled."""
  model = tiny.model()
  models, params = (gpt.GPT(model.config),), (model.params,)
  rows_B = np.zeros(2, np.int32)
  arguments = np.ones((1, BLOCK), np.int32), np.array([3], np.int32), rows_B, rows_B, np.uint32(0)
  fixed = {'size': BLOCK, 'log_probs': False, 'counts': False}
  prefill = functools.partial(state_lib.prefill, models, **fixed)
  how = sampling.make(config_lib.GenerationConfig(**options), vocab_size=VOCAB)
  state = jax.eval_shape(prefill, params, *arguments)
  advance = functools.partial(decode.advance, models)
  return (
    jax.make_jaxpr(prefill)(params, *arguments).jaxpr,
    jax.make_jaxpr(advance)(params, state, how, 5).jaxpr,
  )


def test_a_token_sorts_the_vocabulary_once():
  _, decoding = _programs(top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
  widths = [e.invars[0].aval.shape[-1] for e in _equations(decoding, 'top_k')]
  widths += [e.invars[0].aval.shape[-1] for e in _equations(decoding, 'sort')]
  assert sorted(widths) == [5, 5, 5, 128]


def test_prefill_computes_no_logits():
  for program, logits in zip(_programs(), (False, True), strict=True):
    shapes = [e.outvars[0].aval.shape for e in _equations(program, 'dot_general')]
    assert any(128 in shape for shape in shapes) == logits and shapes


@pytest.mark.parametrize('search', ['draws', 'beams', 'draft'])
def test_sharded_parameters_generate_as_whole_ones(search):
  mesh = jax.make_mesh(
    (1, 1, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:2],
  )

  def sharded(model):
    params = jax.device_put(model.params, sharding.tree_shardings(mesh, model.params))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
    return language_model.LanguageModel(model.config, params, model.tokenizer)

  model, draft = tiny.model(), tiny.model(noise=0.1)
  if search == 'draws':
    arguments, of_sharded = {'new': 2 * BLOCK}, {}
  elif search == 'beams':
    arguments, of_sharded = {'new': 8, 'num_beams': 3, 'seed': 0}, {}
  else:
    arguments, of_sharded = {'new': 2 * BLOCK, 'draft': draft}, {'draft': sharded(draft)}
  prompts = PROMPTS if search != 'beams' else [prompt[:5] for prompt in PROMPTS]
  expected = tiny.tokens(model, prompts, **arguments)
  assert tiny.tokens(sharded(model), prompts, **{**arguments, **of_sharded}) == expected
