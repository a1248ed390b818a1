"""A draft model saves time and changes neither greedy text nor the chances of drawn text."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.generation import sampling, speculative
from gpt_jax.generation import settings as settings_lib
from gpt_jax.generation import state as state_lib
from tests.generation import tiny

BLOCK, VOCAB, PROMPTS, LETTERS = tiny.BLOCK, tiny.VOCAB, tiny.PROMPTS, tiny.LETTERS
NEW = 3 * BLOCK
NEAR = functools.partial(tiny.model, noise=0.1)
# Another architecture, a longer context, a vocabulary without padding.
SMALL: dict[str, Any] = {
  'n_head': 1,
  'n_embd': 8,
  'block_size': 20,
  'pad_vocab_to': 1,
  'scan_layers': True,
}


def _check_same(samples, expected):
  """But for the rounding of log-probabilities."""
  for sample, plain in zip(samples, expected, strict=True):
    assert dataclasses.replace(sample, log_probs=plain.log_probs) == plain
    np.testing.assert_allclose(sample.log_probs, plain.log_probs, atol=1e-4, rtol=1e-4)


def _share(samples):
  return sum(s.accepted for s in samples) / sum(len(s.tokens) for s in samples)


# If there is no choice, it is the same text.


def test_greedy_text_is_the_same_whatever_the_draft_proposes():
  run = functools.partial(tiny.samples, tiny.model(), PROMPTS, new=NEW, temperature=0.0)
  plain, shares = run(), []
  for draft, draft_tokens in [(tiny.model(**SMALL), 1), (NEAR(), 4), (tiny.model(), 4)]:
    samples = run(draft=draft, draft_tokens=draft_tokens)
    _check_same(samples, plain)
    shares.append(_share(samples))
  unrelated, near, same = shares
  assert unrelated < 0.2 < near < 0.95 and same == 1


@pytest.mark.parametrize('allowed', [range(VOCAB), [3, 4]], ids=str)
def test_processors_see_each_proposal_with_what_comes_before_it(allowed):
  """In the second case, no token is possible any more once all pairs of two tokens came."""
  model = tiny.model(ends=True)
  options: dict[str, Any] = {
    'temperature': 1e-30,  # draws, and always the most likely
    'repetition_penalty': 1.5,
    'presence_penalty': 2.0,
    'frequency_penalty': 0.7,
    'no_repeat_ngram': 2,
    'min_new_tokens': 20,
    'ban': [token for token in range(VOCAB) if token not in allowed],
    'logit_bias': {tiny.END: 3.0},
  }
  run = functools.partial(tiny.samples, model, PROMPTS, new=NEW, **options)
  expected = run()
  assert min(len(sample.tokens) for sample in expected) < NEW
  for draft in (NEAR(ends=True), model):
    samples = run(draft=draft)
    _check_same(samples, expected)
  # They hold for the draft too, or it would propose other tokens.
  assert _share(samples) == 1


# Drawn texts are as likely as without a draft.

SIX: dict[str, Any] = {'letters': LETTERS[:6], 'block_size': 8, 'pad_vocab_to': 8}
PROMPT = [1, 4, 2]


def _chances(options):
  """The probability of each text of 3 tokens, from the model without a cache."""
  model = tiny.model(**SIX)
  chances: dict[tuple[int, ...], float] = {(): 1.0}
  for _ in range(3):
    longer: dict[tuple[int, ...], float] = {}
    for known, p in chances.items():
      if options.get('ends') and tiny.END in known:
        longer[known] = p
        continue
      logits_V = tiny.logits_V(model, [*PROMPT, *known])
      logits_V = tiny.adjusted(logits_V, PROMPT, list(known), options) / options['temperature']
      order_V = np.argsort(-logits_V, kind='stable')
      p_V = np.exp(logits_V - logits_V.max()) * np.isin(range(6), order_V[: options['top_k'] or 6])
      p_V /= p_V.sum()
      before_V = np.cumsum(p_V[order_V]) - p_V[order_V]
      p_V *= np.isin(range(6), order_V[before_V < options.get('top_p', 1.0)])
      longer |= {(*known, t): p * p_t for t, p_t in enumerate(p_V / p_V.sum())}
    chances = longer
  return chances


def _texts(options):
  """Many texts, straight from the device, and the share of their tokens that the draft proposed."""
  options, rows_B = dict(options), np.zeros(20_000, np.int32)
  ends = options.pop('ends', False)
  model, draft = tiny.model(**SIX), tiny.model(**{**SIX, 'pad_vocab_to': 16}, noise=0.4)
  settings = settings_lib.Settings(draft_tokens=2, **options)
  how = sampling.make(settings, vocab_size=6, eos_id=tiny.END if ends else None)
  search = speculative.search(model, draft, settings)
  prompt = np.array([PROMPT], np.int32), np.array([3], np.int32)
  rows = rows_B, np.arange(len(rows_B), dtype=np.int32), np.uint32(5)
  fixed = {'size': 8 + search.lookahead, 'log_probs': False, 'counts': how.counts_tokens}
  state = state_lib.prefill(search.models, search.params, *prompt, *rows, **fixed)
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
  assert tiny.chi2_p(texts, _chances(options)) > 0.01
  assert 0.2 < share < 0.9  # all or nothing would prove little


def _verified(p_V, q_V, proposal_B, *, ids=None):
  """Of 20,000 rows; with `ids`, the choices are these tokens of 8."""
  rows, how = 20_000, sampling.make(settings_lib.Settings(top_k=0), vocab_size=8)
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
  chances: dict[tuple[int, ...], float] = {
    (int(token),): p for token, p in zip(tokens, p_V, strict=True)
  }
  assert tiny.chi2_p(token_B[:, None], chances) > 0.01
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


@pytest.mark.parametrize(
  ('key', 'draft', 'options'),
  [
    ('draft', lambda: tiny.model(letters=LETTERS[::-1]), {}),
    ('draft', lambda: tiny.model(letters=LETTERS + '?'), {}),
    ('draft', tiny.bare, {}),
    ('draft', lambda: tiny.model(block_size=7), {}),
    ('draft', lambda: 'runs/small', {}),
    ('draft', tiny.model, {'num_beams': 2}),
    ('draft_tokens', tiny.model, {'draft_tokens': 0}),
  ],
)
def test_a_draft_that_does_not_fit_is_refused(key, draft, options):
  for use in (tiny.model().generate, tiny.model().stream):
    assert tiny.refused(use, 'bad', draft=draft(), **options) == [key]


def test_models_without_tokenizers_need_the_same_number_of_tokens():
  run = functools.partial(tiny.tokens, tiny.bare(), PROMPTS, new=NEW, temperature=0.0)
  assert run(draft=tiny.bare(noise=0.1)) == run()
  assert tiny.refused(run, draft=tiny.bare(letters=LETTERS + '?')) == ['draft']
