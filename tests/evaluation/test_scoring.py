"""Every token of a row is scored as if the row were alone, whatever the batch."""

import dataclasses
import functools
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import models
from gpt_jax.evaluation import scoring
from gpt_jax.generation import loop
from tests import raised

BLOCK = 8


@st.composite
def _rows(draw):
  tokens = draw(st.lists(st.integers(0, 11), min_size=2, max_size=BLOCK + 1))
  return scoring.Row(np.array(tokens), draw(st.integers(1, len(tokens) - 1)))


@pytest.mark.parametrize(('batch_size', 'shortest'), [(1, 32), (3, 2)])
def test_a_row_is_scored_as_if_it_were_alone(scorer, log_probs, monkeypatch, batch_size, shortest):
  monkeypatch.setattr(loop, '_SMALLEST_BUCKET', shortest)
  scores_of = scorer(BLOCK, batch_size).score

  @hypothesis.given(st.lists(_rows(), max_size=8))
  def check(rows):
    found = dict(scores_of(rows))
    assert sorted(found) == list(range(len(rows)))
    for number, row in enumerate(rows):
      log_probs_LV = log_probs(row.tokens[:-1])
      scored = range(row.first, len(row.tokens))
      expected = [log_probs_LV[i - 1, row.tokens[i]] for i in scored]
      np.testing.assert_allclose(found[number].log_probs, expected, atol=1e-5)
      greedy = [log_probs_LV[i - 1].argmax() == row.tokens[i] for i in scored]
      assert found[number].greedy.tolist() == greedy

  check()


def test_probabilities_of_all_tokens_sum_to_one(scorer, model):
  vocab_size = model.config.vocab_size
  assert model.config.padded_vocab_size > vocab_size
  rows = [scoring.Row(np.array([1, 2, token]), 2) for token in range(vocab_size)]
  found = [scores for _, scores in scorer().score(rows)]
  assert sum(np.exp(scores.log_probs[0]) for scores in found) == pytest.approx(1, abs=1e-5)
  assert sum(int(scores.greedy[0]) for scores in found) == 1


def test_few_programs_serve_all_rows(model, monkeypatch):
  forward = mock.Mock(wraps=scoring._forward)
  monkeypatch.setattr(scoring, '_forward', forward)
  monkeypatch.setattr(loop, '_SMALLEST_BUCKET', 2)
  scorer = scoring.Scorer(model, batch_size=2)
  # Inputs, scored tokens, and both padded to 2, 4 or the block size.
  for length, scored, inputs, padded in (
    *((1, 1, 2, 2), (2, 2, 2, 2), (3, 1, 4, 2)),
    *((4, 4, 4, 4), (7, 2, 8, 2), (8, 8, 8, 8)),
  ):
    row = scoring.Row(np.ones(length + 1, int), length + 1 - scored)
    ((_, scores),) = scorer.score([row])
    assert len(scores.log_probs) == len(scores.greedy) == scored
    *_, tokens_BL, scored_BS = forward.call_args.args
    assert (tokens_BL.shape, scored_BS.shape) == ((2, inputs + 1), (2, padded))
  assert forward.call_count == 5  # traced


def test_no_logits_are_computed_for_the_context(model):
  forward = functools.partial(scoring._forward, models.make(model.config))
  tokens_BL, scored_BS = np.zeros((2, BLOCK + 1), np.int32), np.ones((2, 3), np.int32)
  program = str(jax.make_jaxpr(forward)(model.params, tokens_BL, scored_BS))
  assert 'f32[2,3,128]' in program and 'f32[2,8,128]' not in program


def test_rows_are_taken_as_they_are_needed(scorer):
  numbers = iter(range(100))
  next(scorer().score(scoring.Row(np.array([1, 2, 3]), 1) for _ in numbers))
  assert next(numbers) == 4, 'a batch to fetch, and one that runs meanwhile'


def test_a_row_that_cannot_be_scored_is_refused(scorer):
  for length, first in ((BLOCK + 2, 1), (3, 3), (3, 0), (1, 1)):
    with pytest.raises(ValueError, match=f'{length} tokens from {first}'):
      list(scorer().score([scoring.Row(np.ones(length, int), first)]))


def test_a_model_that_diverged_or_has_no_tokenizer_is_refused(model):
  params = jax.tree.map(lambda x: x * jnp.nan, model.params)
  scorer = scoring.Scorer(dataclasses.replace(model, params=params), batch_size=2)
  rows = [scoring.Row(np.array([1, 2]), 1)]
  assert raised.user_error(lambda: list(scorer.score(rows))).key == 'model'
  without = dataclasses.replace(model, tokenizer=None)
  assert raised.user_error(scoring.Scorer, without, batch_size=2).key == 'model'
