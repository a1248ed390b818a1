"""Every token of a row is scored as if the row were alone, whatever stands beside it."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import errors
from gpt_jax.evaluation import scoring

BLOCK = 8


@st.composite
def _rows(draw):
  tokens = draw(st.lists(st.integers(0, 11), min_size=2, max_size=BLOCK + 1))
  return scoring.Row(np.array(tokens), draw(st.integers(1, len(tokens) - 1)))


@pytest.mark.parametrize(('batch_size', 'shortest'), [(1, 32), (3, 2)])
def test_a_row_is_scored_as_if_it_were_alone(
  scorer, model, log_probs, monkeypatch, batch_size, shortest
):
  monkeypatch.setattr(scoring, '_SHORTEST', shortest)
  scores_of = scorer(BLOCK, batch_size).score

  @hypothesis.given(st.lists(_rows(), max_size=8))
  @hypothesis.settings(deadline=None, max_examples=30)
  def check(rows):
    found = dict(scores_of(rows))
    assert sorted(found) == list(range(len(rows)))
    for number, row in enumerate(rows):
      log_probs_LV = log_probs(model(BLOCK), row.tokens[:-1])
      scored = range(row.first, len(row.tokens))
      expected = [log_probs_LV[i - 1, row.tokens[i]] for i in scored]
      np.testing.assert_allclose(found[number].log_probs, expected, atol=1e-5)
      greedy = [log_probs_LV[i - 1].argmax() == row.tokens[i] for i in scored]
      assert found[number].greedy.tolist() == greedy

  check()


def test_probabilities_of_all_tokens_add_up_to_one(scorer, model):
  vocab_size = model(BLOCK).config.vocab_size
  assert model(BLOCK).config.padded_vocab_size > vocab_size
  rows = [scoring.Row(np.array([1, 2, token]), 2) for token in range(vocab_size)]
  found = dict(scorer(BLOCK).score(rows))
  assert sum(np.exp(scores.log_probs[0]) for scores in found.values()) == pytest.approx(1, abs=1e-5)
  assert sum(int(scores.greedy[0]) for scores in found.values()) == 1


def test_few_programs_serve_all_lengths(model, monkeypatch):
  monkeypatch.setattr(scoring, '_SHORTEST', 2)
  compiled = set()
  jit = jax.jit

  def recording(function):
    run = jit(function)

    def call(params, tokens_BL):
      compiled.add(tokens_BL.shape)
      found = run(params, tokens_BL)
      assert all(out.shape == (3, tokens_BL.shape[1] - 1) for out in found)
      return found

    return call

  monkeypatch.setattr(jax, 'jit', recording)
  scorer = scoring.Scorer(model(6), batch_size=3)
  for length, padded in ((1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)):
    compiled.clear()
    found = dict(scorer.score([scoring.Row(np.ones(length + 1, int), 1)]))
    assert len(found[0].log_probs) == length
    assert compiled == {(3, padded + 1)}, 'to a power of two or the block size'


def test_rows_are_taken_as_they_are_needed(scorer):
  taken = []

  def rows():
    for i in range(100):
      taken.append(i)
      yield scoring.Row(np.array([1, 2, 3]), 1)

  next(scorer(BLOCK, 2).score(rows()))
  assert len(taken) == 4, 'a batch to fetch, and one that runs meanwhile'


@pytest.mark.parametrize(('length', 'first'), [(BLOCK + 2, 1), (3, 3), (3, 0), (1, 1)])
def test_a_row_that_cannot_be_scored_is_refused(scorer, length, first):
  with pytest.raises(ValueError, match=f'{length} tokens from {first}'):
    list(scorer(BLOCK).score([scoring.Row(np.ones(length, int), first)]))


def test_a_model_that_diverged_is_told(model):
  broken = dataclasses.replace(
    model(BLOCK), params=jax.tree.map(lambda x: x * jnp.nan, model(BLOCK).params)
  )
  with pytest.raises(errors.UserError, match='not finite.*earlier checkpoint'):
    list(scoring.Scorer(broken, batch_size=1).score([scoring.Row(np.array([1, 2]), 1)]))


def test_perplexity_of_any_loss_is_a_number():
  assert scoring.perplexity(0.0) == 1 and scoring.perplexity(np.log(50.0)) == pytest.approx(50)
  assert scoring.perplexity(1e4) == np.inf
