"""A draft model saves time and changes neither greedy text nor the chances of drawn text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.generation import language_model, sampling, speculative
from gpt_jax.generation import state as state_lib
from tests.generation import tiny

BLOCK, VOCAB, PROMPTS, LETTERS = tiny.BLOCK, tiny.VOCAB, tiny.PROMPTS, tiny.LETTERS
NEW = 3 * BLOCK
NEAR = functools.partial(tiny.model, noise=0.1)
# Another architecture, a longer context, a vocabulary without padding.
SMALL = {'n_head': 1, 'n_embd': 8, 'block_size': 20, 'pad_vocab_to': 1, 'scan_layers': True}


def _samples(draft, prompts=PROMPTS, *, model=None, new=NEW, **options):
  draft = {} if draft is None else {'draft': draft}
  return tiny.samples(model or tiny.model(), prompts, new=new, **draft, **options)


def _tokens(*args, **options):
  return [sample.tokens for sample in _samples(*args, **options)]


def _share(samples):
  return sum(s.accepted for s in samples) / sum(len(s.tokens) for s in samples)


# At temperature 0 it is the same text.


def test_greedy_text_is_the_same_whatever_the_draft_proposes():
  plain = _samples(None, temperature=0.0)
  shares = []
  for draft, draft_tokens in [(tiny.model(**SMALL), 1), (NEAR(), 4), (tiny.model(), 4)]:
    samples = _samples(draft, temperature=0.0, draft_tokens=draft_tokens)
    for sample, expected in zip(samples, plain, strict=True):
      assert dataclasses.replace(sample, log_probs=None) == dataclasses.replace(
        expected, log_probs=None
      )
      np.testing.assert_allclose(sample.log_probs, expected.log_probs, atol=1e-4, rtol=1e-4)
    shares.append(_share(samples))
  unrelated, near, same = shares
  assert unrelated < 0.2 < near < 0.95 and same == 1


def test_random_ragged_batches_are_decoded_as_without_a_draft():
  rng = np.random.default_rng(3)
  for batch in range(20):
    prompts = [tiny.prompt(n, seed=batch) for n in rng.integers(1, BLOCK + 1, 4).tolist()]
    options = {'new': int(rng.integers(1, 2 * BLOCK)), 'temperature': 0.0}
    expected = _tokens(None, prompts, **options)
    assert _tokens(NEAR(), prompts, **options) == expected


@pytest.mark.parametrize('allowed', [range(VOCAB), [3, 4]], ids=str)
def test_processors_see_each_proposal_with_what_comes_before_it(allowed):
  """In the second case, no token is possible any more once all pairs of two tokens came."""
  options = {
    'temperature': 1e-30,  # draws, and always the most likely
    'repetition_penalty': 1.5,
    'presence_penalty': 2.0,
    'frequency_penalty': 0.7,
    'no_repeat_ngram': 2,
    'min_new_tokens': 20,
    'ban': [token for token in range(VOCAB) if token not in allowed],
    'logit_bias': {tiny.END: 3.0},
  }
  model = tiny.model(ends=True)
  expected = _samples(None, model=model, **options)
  assert min(len(sample.tokens) for sample in expected) < NEW
  for draft in (NEAR(ends=True), model):
    samples = _samples(draft, model=model, **options)
    for sample, plain in zip(samples, expected, strict=True):
      assert (sample.tokens, sample.ended) == (plain.tokens, plain.ended)
      np.testing.assert_allclose(sample.log_probs, plain.log_probs, atol=1e-4, rtol=1e-4)
  # They hold for the draft too, or it would propose other tokens.
  assert _share(samples) == 1


# What else is in the batch, and how many tokens come at a time, changes nothing.


def test_a_proposed_eos_ends_its_text():
  lengths = set()
  for seed in range(6):
    options = {'temperature': 1.5, 'seed': seed}
    endless = _tokens(NEAR(), **options)
    samples = _samples(NEAR(ends=True), model=tiny.model(ends=True), **options)
    for whole, sample in zip(endless, samples, strict=True):
      ends = tiny.END in whole
      assert sample.tokens == (whole[: whole.index(tiny.END)] if ends else whole)
      assert sample.ended == ('eos' if ends else 'length')
      lengths.add(len(sample.tokens))
  assert len(lengths) > 5


def test_a_text_is_the_same_however_many_tokens_come_at_a_time(monkeypatch):
  whole = _tokens(NEAR())
  monkeypatch.setattr(language_model, '_BATCH_PATIENCE', 0)
  assert _tokens(NEAR()) == whole
  options = {'max_new_tokens': NEW, 'top_k': 0, 'temperature': 1.0, 'seed': 5}
  parts = list(tiny.model().stream(PROMPTS[0], draft=NEAR(), **options))
  assert ''.join(parts) == ''.join(LETTERS[token] for token in whole[0]) and len(parts) > 1
  for new in (1, BLOCK, 20):
    assert _tokens(NEAR(), new=new) == [tokens[:new] for tokens in whole]


def test_a_row_depends_on_seed_prompt_and_sample_index_alone():
  many = _tokens(NEAR())
  assert len(set(map(tuple, many))) == 4
  order = [2, 1, 0, 3]
  assert _tokens(NEAR(), [PROMPTS[i] for i in order]) == [many[i] for i in order]
  assert _tokens(NEAR(), PROMPTS[:1]) == many[:1]
  other = _tokens(NEAR(), seed=6)
  assert all(a != b for a, b in zip(many, other, strict=True))


def test_a_stop_string_ends_its_text_and_no_other():
  whole = _samples(NEAR(), temperature=0.0)
  stop = [whole[0].text[4:6], whole[2].text[7:9]]
  stopped = _samples(NEAR(), stop=stop, temperature=0.0)
  assert {sample.ended for sample in stopped} == {'stop', 'length'}
  for sample, before in zip(stopped, whole, strict=True):
    places = [before.text.find(s) for s in stop if s in before.text]
    assert sample.text == before.text[: min(places, default=None)]


# Drawn texts are as likely as without a draft.

SIX = {'letters': LETTERS[:6], 'block_size': 8, 'pad_vocab_to': 8}
PROMPT = [1, 4, 2]


def _chances(options):
  """The probability of each text of 3 tokens, from the model without a cache."""
  model, chances = tiny.model(**SIX), {(): 1.0}
  for _ in range(3):
    longer: dict[tuple[int, ...], float] = {}
    for known, p in chances.items():
      if options.get('ends') and tiny.END in known:
        longer[known] = p
        continue
      logits_V = tiny.logits_V(model, [*PROMPT, *known])
      counts_V = np.bincount(np.array(known, int), minlength=6)
      if 'frequency_penalty' in options:
        logits_V = logits_V - np.float32(options['frequency_penalty']) * counts_V
      logits_V = logits_V / np.float32(options['temperature'])
      order_V = np.argsort(-logits_V, kind='stable')
      p_V = np.exp(logits_V - logits_V.max()) * np.isin(range(6), order_V[: options['top_k'] or 6])
      p_V /= p_V.sum()
      before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
      p_V *= np.isin(range(6), order_V[before_V < options.get('top_p', 1.0)])
      longer |= {(*known, t): p * p_t for t, p_t in enumerate(p_V / p_V.sum())}
    chances = longer
  return chances


def _chi2_p(texts, chances):
  """The chance of a deviation from `chances` that is at least as large."""
  drawn = dict.fromkeys(chances, 0)
  for tokens in texts:
    drawn[tuple(tokens)] += 1
  if any(times and not chances[known] for known, times in drawn.items()):
    return 0.0
  ranked = sorted(chances, key=lambda known: chances[known])
  expected = np.array([chances[known] for known in ranked]) * len(texts)
  observed = np.array([drawn[known] for known in ranked])
  rare = int(np.searchsorted(np.cumsum(expected), 5)) + 1  # which count as one
  expected = np.array([expected[:rare].sum(), *expected[rare:]])
  observed = np.array([observed[:rare].sum(), *observed[rare:]])
  chi2 = ((observed - expected) ** 2 / expected).sum()
  return float(jax.scipy.stats.chi2.sf(chi2, len(expected) - 1))


def _texts(options):
  """Many texts, straight from the device, and the share of their tokens that the draft proposed."""
  options, rows_B = dict(options), np.zeros(20_000, np.int32)
  ends = options.pop('ends', False)
  model, draft = tiny.model(**SIX), tiny.model(**SIX, noise=0.4)
  settings = config_lib.GenerationConfig(draft_tokens=2, **options)
  how = sampling.make(settings, vocab_size=6, eos_id=tiny.END if ends else None)
  search = speculative.search(model, draft, settings)
  state = state_lib.prefill(
    search.models,
    search.params,
    np.array([PROMPT], np.int32),
    np.array([3], np.int32),
    rows_B,
    np.arange(len(rows_B), dtype=np.int32),
    np.uint32(5),
    size=8 + search.lookahead,
    log_probs=False,
    counts=how.counts_tokens,
  )
  state = search.advance(search.models, search.params, state, how, 3)
  new_B3, count_B = np.asarray(state.tokens_BM[:, 3:6]), np.asarray(state.num_generated_B)
  texts = [tokens_3[:count] for tokens_3, count in zip(new_B3, count_B, strict=True)]
  return texts, int(state.accepted_B.sum()) / int(count_B.sum())


@pytest.mark.parametrize(
  'options',
  [
    {'temperature': 2.0, 'top_k': 4, 'top_p': 0.9},
    {'temperature': 2.0, 'top_k': 0, 'frequency_penalty': 3.0, 'ends': True},
  ],
  ids=str,
)
def test_texts_are_as_likely_as_without_a_draft(options):
  texts, share = _texts(options)
  assert _chi2_p(texts, _chances(options)) > 0.01
  assert 0.2 < share < 0.9  # all or nothing would prove little


def _verified(p_V, q_V, proposal_B, *, ids=None):
  """Of 20,000 rows; with `ids`, the choices are these tokens of 8."""
  rows, how = 20_000, sampling.make(config_lib.GenerationConfig(top_k=0), vocab_size=8)
  ids_BC = None if ids is None else jnp.tile(jnp.array(ids), (rows, 1))
  p, q = (
    sampling.Choices(jnp.tile(jnp.log(jnp.array(x_V)), (rows, 1)), ids_BC) for x_V in (p_V, q_V)
  )
  keys = tuple(jax.random.split(jax.random.key(seed), rows) for seed in (1, 2))
  vocab_size = len(p_V) if ids is None else 8
  return map(np.asarray, _verify(how, p, q, proposal_B, keys, vocab_size))


_verify = jax.jit(speculative.verify, static_argnums=5)


@pytest.mark.parametrize('ids', [None, [6, 0, 3, 5]], ids=['all', 'kept'])
def test_proposals_are_accepted_as_often_as_the_distributions_have_in_common(ids):
  p_V, q_V = np.array([0.5, 0.1, 0.4, 0.0]), np.array([0.1, 0.5, 0.3, 0.1])
  tokens = np.array(ids or range(4))
  proposal_B = tokens[np.random.default_rng(0).choice(4, 20_000, p=q_V)]
  token_B, accepted_B = _verified(p_V, q_V, proposal_B, ids=ids)
  assert abs(accepted_B.mean() - np.minimum(p_V, q_V).sum()) < 0.015
  chances = {(int(token),): p for token, p in zip(tokens, p_V, strict=True)}
  assert _chi2_p(token_B[:, None], chances) > 0.01
  assert (token_B == proposal_B)[accepted_B].all()
  assert set(token_B[~accepted_B]) == {tokens[0], tokens[2]}  # which the draft gives too little


def test_equal_distributions_accept_and_disjoint_ones_refuse():
  proposal_B = np.arange(20_000) % 3
  _, accepted_B = _verified([0.2, 0.5, 0.3, 0.0], [0.2, 0.5, 0.3, 0.0], proposal_B)
  assert accepted_B.all()
  token_B, accepted_B = _verified([0.0, 0.5, 0.0, 0.5], [0.7, 0.0, 0.3, 0.0], proposal_B % 2 * 2)
  assert not accepted_B.any() and set(token_B) == {1, 3}


def test_a_refused_proposal_is_replaced_from_p_if_nothing_is_left():
  p_V = [0.0, 0.0, 0.5, 0.5]
  token_B, accepted_B = _verified(p_V, p_V, np.zeros(20_000, int))
  assert not accepted_B.any() and set(token_B) == {2, 3}


# Drafts that fit.


def _bare(**changes):
  return dataclasses.replace(tiny.model(**changes), tokenizer=None)


@pytest.mark.parametrize(
  ('key', 'draft', 'options'),
  [
    ('draft', lambda: tiny.model(letters=LETTERS[::-1]), {}),
    ('draft', lambda: tiny.model(letters=LETTERS + '?'), {}),
    ('draft', _bare, {}),
    ('draft', lambda: tiny.model(block_size=7), {}),
    ('draft', lambda: 'runs/small', {}),
    ('draft', tiny.model, {'num_beams': 2}),
    ('draft_tokens', tiny.model, {'draft_tokens': 0}),
  ],
)
def test_a_draft_that_does_not_fit_is_refused(key, draft, options):
  for use in (tiny.model().generate, tiny.model().stream):
    with pytest.raises(errors.UserError) as e:
      use('bad', draft=draft(), **options)
    assert e.value.key == key


def test_models_without_tokenizers_need_the_same_number_of_tokens():
  options = {'model': _bare(), 'temperature': 0.0}
  assert _tokens(_bare(noise=0.1), **options) == _tokens(None, **options)
  with pytest.raises(errors.UserError) as e:
    _tokens(_bare(letters=LETTERS + '?'), **options)
  assert e.value.key == 'draft'
