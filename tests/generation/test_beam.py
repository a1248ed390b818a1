"""Beam search finds what the same search without a cache finds, and what transformers finds."""

import functools
import itertools
from typing import Any

import numpy as np
import pytest

from tests.generation import tiny

BLOCK, END = 16, tiny.END
LETTERS = '\nabcdefghijk'
VOCAB = len(LETTERS)
ARCHITECTURES = [{}, {'scan_layers': True, 'bias': False, 'tie_embeddings': False}]
SIZES: dict[str, Any] = {'n_layer': 2, 'n_embd': 8, 'block_size': BLOCK, 'pad_vocab_to': 16}
# Seldom sure of a token.
_model = functools.partial(tiny.model, letters=LETTERS, ends=True, seed=2, std=0.4, **SIZES)
_prompt = functools.partial(tiny.prompt, vocab_size=VOCAB)
PROMPTS = [_prompt(length) for length in (1, 6, 3)]


@functools.cache
def _log_probs_V(model, *known):
  """Of the next token, without a cache."""
  logits_V = tiny.logits_V(model, list(known)).astype(np.float64)
  return logits_V - np.log(np.exp(logits_V).sum())


def _samples(prompts, *, K=3, new=9, penalty=1.0, changes=None, **options):
  made = _model(**(changes or {}))
  options |= {'num_beams': K, 'max_new_tokens': new, 'length_penalty': penalty}
  return made.generate(prompts, log_probs=True, **options)


def _tokens(prompts, **options):
  """New tokens of each prompt, with the end."""
  samples = _samples(prompts, **options)
  return [sample.tokens + [END] * (sample.ended == 'eos') for sample in samples]


def _reference(prompt, *, K=3, new=9, penalty=1.0, changes=None, **options):
  """The rules of beam search on lists, one text at a time through the uncached model."""
  model = _model(**(changes or {}))
  end = model.tokenizer and model.tokenizer.eos_id
  beams: list = [(0.0, [])]
  finished: list = []
  for length in range(1, new + 1):
    candidates = []
    for score, tokens in beams:
      log_probs_V = _log_probs_V(model, *prompt, *tokens)
      scores_V = tiny.adjusted(log_probs_V, prompt, tokens, options)
      possible = np.flatnonzero(scores_V > -np.inf).tolist()
      candidates += [(score + scores_V[token], [*tokens, token]) for token in possible]
    if not candidates:
      break
    candidates = sorted(candidates, reverse=True)[: 2 * K]
    ends = [tokens[-1] == end or length == new for _, tokens in candidates]
    finished += [
      (score / length**penalty, tokens)
      for (score, tokens), ended in zip(candidates[:K], ends[:K], strict=True)
      if ended
    ]
    finished = sorted(finished, reverse=True)[:K]
    going = [c for c, ended in zip(candidates, ends, strict=True) if not ended][:K]
    if not going or (len(finished) == K and going[0][0] / length**penalty <= finished[-1][0]):
      break
    beams = going
  return finished[0][1] if finished else beams[0][1]


def _check(prompts, **options):
  """The result is that of the reference; it is returned."""
  found = _tokens(prompts, **options)
  assert found == [_reference(prompt, **options) for prompt in prompts]
  return found


# Found by transformers 5.23: GPT2LMHeadModel with the parameters of `_model()`, PROMPTS padded on
# the left, generate(num_beams=…, do_sample=False, early_stopping=False, eos_token_id=END, …).
LONG = [[8, 8, 8, 8, 8, 3, 10, 7, 7], [7, 3, 3, 8, 8, 8, 8, 8, 8]]
TRANSFORMERS = [
  (3, 0.0, [[8, 8, 8, 8, 8, 5], [7, 3, 3, 8, 8, 5], [8, 8, 8, 8, 5]]),
  (3, 1.0, [*LONG, [8, 8, 8, 8, 8, 8, 11, 5]]),
  (3, 2.0, [*LONG, [8, 8, 8, 8, 8, 8, 11, 10, 11]]),
  (4, 0.0, [[5], [11, 5], [8, 8, 8, 8, 5]]),
]


@pytest.mark.parametrize(('K', 'penalty', 'expected'), TRANSFORMERS)
def test_the_result_is_that_of_transformers(K, penalty, expected):
  assert _tokens(PROMPTS, K=K, penalty=penalty) == expected


@pytest.mark.parametrize('changes', ARCHITECTURES, ids=str)
def test_ragged_prompts_give_what_each_gives_without_a_cache(changes):
  found: list[list[int]] = []
  for penalty, seed in itertools.product((0.0, 1.0, 2.0, -1.0), range(4)):
    prompts = [_prompt(length, seed) for length in (5, 1, (7, 5)[seed % 2])]  # some are equal
    found += _check(prompts, penalty=penalty, changes=changes)
  # Otherwise this would prove little.
  assert len(set(map(len, found))) > 2 and {tokens[-1] == END for tokens in found} == {False, True}


@pytest.mark.parametrize('penalty', [2.0, 3.0])
def test_if_ends_are_likely_each_prompt_is_done_as_soon_as_the_rule_says(penalty):
  """Longer texts would have better scores then: stopping later gives other results."""
  for seed in range(8):
    prompts = [_prompt(length, seed) for length in (5, 1, 3)]
    _check(prompts, penalty=penalty, logit_bias={END: 1.0})


@pytest.mark.parametrize('new', [1, 2, 5])
def test_other_numbers_of_beams_and_tokens(new):
  _check(PROMPTS, K=4, new=new)


def test_with_beams_for_all_texts_the_best_of_all_texts_is_found():
  # None is ever dropped, and there are never enough hypotheses to stop early, whatever the penalty.
  new, allowed = 2, [1, END, 9]
  banned = [token for token in range(VOCAB) if token not in allowed]
  for penalty in (0.0, 1.0, 2.0):
    results = _tokens(PROMPTS, K=len(allowed) ** new, new=new, penalty=penalty, ban=banned)
    for prompt, found in zip(PROMPTS, results, strict=True):
      scores = {}
      for tokens in itertools.product(allowed, repeat=new):
        tokens = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        known = [_log_probs_V(_model(), *prompt, *tokens[:i])[t] for i, t in enumerate(tokens)]
        scores[tokens] = sum(known) / len(tokens) ** penalty
      assert tuple(found) == max(scores, key=scores.__getitem__)


def test_bias_penalties_and_bans_hold_for_each_beams_own_text():
  options: dict[str, Any] = {'logit_bias': {2: 1.5}, 'ban': [9], 'repetition_penalty': 1.4}
  options |= {'presence_penalty': 0.7, 'frequency_penalty': 0.3, 'no_repeat_ngram': 2}
  options |= {'min_new_tokens': 5, 'penalty': 0.0}
  _check(PROMPTS, **options)
  results = _samples(PROMPTS, **options)
  for prompt, sample in zip(PROMPTS, results, strict=True):
    # The model's own, not adjusted.
    before = [(*prompt, *sample.tokens[:i]) for i in range(len(sample.tokens))]
    known = zip(before, sample.tokens, strict=True)
    expected = [_log_probs_V(_model(), *tokens)[token] for tokens, token in known]
    np.testing.assert_allclose(sample.log_probs, expected, atol=1e-4)
  assert {sample.ended for sample in results} == {'eos', 'length'}


def test_if_no_token_is_left_the_best_beam_is_the_result():
  prompts = [[0, 1, 2, 3, 4, 5], [0]]  # the other goes on
  options = {'no_repeat_ngram': 1, 'changes': {'ends': False}}
  stuck, other = _check(prompts, **options)
  assert sorted(prompts[0] + stuck) == list(range(VOCAB)) and len(other) == 9
  assert [sample.ended for sample in _samples(prompts, **options)] == ['no_token', 'length']


def test_a_hypothesis_beats_beams_that_have_no_token_left():
  banned = [token for token in range(VOCAB) if token not in (3, END)]
  # After 1, both may come; after 3, neither.
  stuck = [3, END, 3, 3, 1]
  options = {'ban': banned, 'logit_bias': {END: -20.0}, 'no_repeat_ngram': 2}
  assert _tokens([stuck, [1]], **options)[0] == [END]


def test_a_stream_is_the_text_in_one_piece_and_a_stop_string_cuts_it():
  (whole,) = _samples(['bad'])
  assert list(_model().stream('bad', num_beams=3, max_new_tokens=9)) == [whole.text]
  stop = whole.text[1:3]
  (cut,) = _samples(['bad'], stop=[stop])
  assert cut.text == whole.text.partition(stop)[0] and cut.ended == 'stop'
  assert cut.log_probs == whole.log_probs[: len(cut.tokens)]


@pytest.mark.parametrize(
  ('length', 'key', 'values'),
  [
    (5, 'max_new_tokens', {'max_new_tokens': 12}),
    (BLOCK, 'max_new_tokens', {'max_new_tokens': 1}),
    (5, 'num_beams', {'max_new_tokens': 3, 'num_beams': 13}),
  ],
)
def test_what_does_not_fit_is_refused(length, key, values):
  options, prompt = {'num_beams': 2, **values}, _prompt(length)
  assert tiny.refused(_model().generate, [[1], prompt], **options) == [key]
  assert tiny.refused(_model().stream, prompt, **options) == [key]
  _model().stream([1], num_beams=VOCAB, max_new_tokens=BLOCK - 1)  # just fits


def test_prompt_and_new_tokens_may_fill_the_context():
  _check([_prompt(BLOCK - 3)], new=3, changes={'ends': False})
