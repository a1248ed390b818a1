"""Beam search finds what the same search without a cache finds, and what transformers finds."""

import functools
import itertools

import numpy as np
import pytest

from gpt_jax import errors
from tests import random_params
from tests.generation import tiny

BLOCK = 16
LETTERS = '\nabcdefghijk'
VOCAB = len(LETTERS)
END = tiny.END
ARCHITECTURES = [{}, {'scan_layers': True, 'bias': False, 'tie_embeddings': False}]


def _prompt(length, seed=0):
  return np.random.default_rng([length, seed]).integers(0, VOCAB, length).tolist()


PROMPTS = [_prompt(length) for length in (1, 6, 3)]


@functools.cache
def _model(*, ends=True, **changes):
  """A model that is seldom sure of a token."""
  sizes = {'n_layer': 2, 'n_embd': 8, 'block_size': BLOCK, 'pad_vocab_to': 16}
  made = tiny.model(letters=LETTERS, ends=ends, **{**sizes, **changes})
  params = random_params.make(made.config, seed=2, std=0.4)
  return type(made)(made.config, params, made.tokenizer)


@functools.cache
def _known_log_probs_V(known, architecture):
  logits_V = tiny.logits_V(_model(**dict(architecture)), list(known)).astype(np.float64)
  return logits_V - np.log(np.exp(logits_V).sum())


def _log_probs_V(known, architecture=None):
  """Of the next token, without a cache."""
  return _known_log_probs_V(tuple(known), tuple((architecture or {}).items())).copy()


def _samples(prompts, *, K=3, new=9, penalty=1.0, ends=True, architecture=None, **options):
  return _model(ends=ends, **(architecture or {})).generate(
    prompts, num_beams=K, max_new_tokens=new, length_penalty=penalty, log_probs=True, **options
  )


def _tokens(prompts, **options):
  """New tokens of each prompt, with the end."""
  samples = _samples(prompts, **options)
  return [sample.tokens + [END] * (sample.ended == 'eos') for sample in samples]


def _reference(prompt, *, K=3, new=9, penalty=1.0, end=END, architecture=None, adjust=None):
  """The rules of beam search on lists, one text at a time through the uncached model."""
  beams: list = [(0.0, [])]
  finished: list = []
  for length in range(1, new + 1):
    candidates = []
    for score, tokens in beams:
      scores_V = _log_probs_V([*prompt, *tokens], architecture)
      scores_V = adjust(scores_V, prompt, tokens) if adjust else scores_V
      candidates += [
        (score + scores_V[token], [*tokens, token])
        for token in range(VOCAB)
        if scores_V[token] > -np.inf
      ]
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


# Found by transformers 5.23: GPT2LMHeadModel with the parameters of `_model()`, PROMPTS padded on
# the left, generate(num_beams=…, do_sample=False, early_stopping=False, eos_token_id=END, …).
TRANSFORMERS = [
  (
    {'K': 3, 'penalty': 0.0},
    [[8, 8, 8, 8, 8, 5], [7, 3, 3, 8, 8, 5], [8, 8, 8, 8, 5]],
  ),
  (
    {'K': 3, 'penalty': 1.0},
    [[8, 8, 8, 8, 8, 3, 10, 7, 7], [7, 3, 3, 8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 8, 8, 11, 5]],
  ),
  (
    {'K': 3, 'penalty': 2.0},
    [[8, 8, 8, 8, 8, 3, 10, 7, 7], [7, 3, 3, 8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 8, 8, 11, 10, 11]],
  ),
  ({'K': 4, 'penalty': 0.0}, [[5], [11, 5], [8, 8, 8, 8, 5]]),
]


@pytest.mark.parametrize(('options', 'expected'), TRANSFORMERS, ids=lambda x: str(x)[:60])
def test_the_result_is_that_of_transformers(options, expected):
  assert _tokens(PROMPTS, **options) == expected


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
def test_ragged_prompts_give_what_each_gives_without_a_cache(architecture):
  found = []
  for penalty, seed in itertools.product((0.0, 1.0, 2.0, -1.0), range(4)):
    prompts = [_prompt(length, seed) for length in (5, 1, 7)]
    options = {'penalty': penalty, 'architecture': architecture}
    found += (results := _tokens(prompts, **options))
    assert results == [_reference(prompt, **options) for prompt in prompts]
  # Otherwise this would prove little.
  assert len(set(map(len, found))) > 2 and {tokens[-1] == END for tokens in found} == {False, True}


@pytest.mark.parametrize('penalty', [2.0, 3.0])
def test_if_ends_are_likely_each_prompt_is_done_as_soon_as_the_rule_says(penalty):
  """Longer texts would have better scores then: stopping later gives other results."""

  def adjust(scores_V, prompt, tokens):
    return scores_V + (np.arange(VOCAB) == END)

  for seed in range(8):
    prompts = [_prompt(length, seed) for length in (5, 1, 3)]
    results = _tokens(prompts, penalty=penalty, logit_bias={END: 1.0})
    assert results == [_reference(prompt, penalty=penalty, adjust=adjust) for prompt in prompts]


@pytest.mark.parametrize('new', [1, 2, 5])
def test_other_numbers_of_beams_and_tokens(new):
  expected = [_reference(prompt, K=4, new=new) for prompt in PROMPTS]
  assert _tokens(PROMPTS, K=4, new=new) == expected


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
        known = [_log_probs_V([*prompt, *tokens[:i]])[tokens[i]] for i in range(len(tokens))]
        scores[tokens] = sum(known) / len(tokens) ** penalty
      assert tuple(found) == max(scores, key=scores.__getitem__)


def test_a_result_depends_on_its_prompt_alone():
  several = _samples([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
  assert several[0] == several[2]
  for prompt, sample in zip(PROMPTS[:2], several, strict=False):
    (alone,) = _samples([prompt])
    assert alone.tokens == sample.tokens
    np.testing.assert_allclose(alone.log_probs, sample.log_probs, atol=1e-4)


def test_a_length_penalty_favours_long_texts():
  lengths = [sum(map(len, _tokens(PROMPTS, penalty=penalty))) for penalty in (-2.0, 0.0, 1.0, 3.0)]
  assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def _no_repeats(n, scores_V, text):
  for i in range(len(text) - n + 1):
    if text[i : i + n - 1] == text[len(text) - n + 1 :]:
      scores_V[text[i + n - 1]] = -np.inf
  return scores_V


def _adjusted(scores_V, prompt, tokens, *, n=2):
  """What all options of the next test do, in their order."""
  scores_V[2] += 1.5
  scores_V[9] = -np.inf
  scores_V = np.where(np.isin(np.arange(VOCAB), prompt + tokens), scores_V * 1.4, scores_V)
  counts_V = np.bincount(np.array(tokens, int), minlength=VOCAB)
  scores_V = scores_V - 0.7 * (counts_V > 0) - 0.3 * counts_V
  scores_V = _no_repeats(n, scores_V, prompt + tokens)
  return np.where((np.arange(VOCAB) == END) & (len(tokens) < 5), -np.inf, scores_V)


def test_bias_penalties_and_bans_hold_for_each_beams_own_text():
  options = {'logit_bias': {2: 1.5}, 'ban': [9], 'repetition_penalty': 1.4, 'no_repeat_ngram': 2}
  options |= {'presence_penalty': 0.7, 'frequency_penalty': 0.3, 'min_new_tokens': 5}
  results = _samples(PROMPTS, penalty=0.0, **options)
  for prompt, sample in zip(PROMPTS, results, strict=True):
    tokens = sample.tokens + [END] * (sample.ended == 'eos')
    assert tokens == _reference(prompt, penalty=0.0, adjust=_adjusted)
    # The model's own, not adjusted.
    expected = [
      _log_probs_V([*prompt, *tokens[:i]])[token] for i, token in enumerate(sample.tokens)
    ]
    np.testing.assert_allclose(sample.log_probs, expected, atol=1e-4)
  assert {sample.ended for sample in results} == {'eos', 'length'}


def test_if_no_token_is_left_the_best_beam_is_the_result():
  prompt = [0, 1, 2, 3, 4, 5]
  results = _samples([prompt, [0]], no_repeat_ngram=1, ends=False)  # the other goes on
  assert [sample.ended for sample in results] == ['no_token', 'length']
  stuck, other = (sample.tokens for sample in results)
  assert sorted(prompt + stuck) == list(range(VOCAB)) and len(other) == 9

  def adjust(scores_V, prompt, tokens):
    return _no_repeats(1, scores_V, prompt + tokens)

  assert stuck == _reference(prompt, end=None, adjust=adjust)
  assert other == _reference([0], end=None, adjust=adjust)


def test_a_hypothesis_beats_beams_that_have_no_token_left():
  banned = [token for token in range(VOCAB) if token not in (3, END)]
  # After 1, both may come; after 3, neither.
  stuck = [3, END, 3, 3, 1]
  options = {'ban': banned, 'logit_bias': {END: -20.0}, 'no_repeat_ngram': 2}
  assert _tokens([stuck, [1]], **options)[0] == [END]


def test_options_that_only_draws_have_are_ignored():
  plain, other = (
    _samples(PROMPTS, **options) for options in ({}, {'temperature': 0.0, 'top_k': 1})
  )
  assert plain == other and [sample.context_shifts for sample in plain] == [0, 0, 0]


def test_a_stream_is_the_text_in_one_piece_and_a_stop_string_cuts_it():
  (whole,) = _samples(['bad'])
  options = {'num_beams': 3, 'max_new_tokens': 9}
  assert list(_model().stream('bad', **options)) == [whole.text]
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
  options = {'num_beams': 2, **values}
  for call in (_model().generate, lambda prompts, **o: _model().stream(prompts[1], **o)):
    with pytest.raises(errors.UserError) as e:
      call([[1], _prompt(length)], **options)
    assert e.value.key == key


def test_prompt_and_new_tokens_may_fill_the_context():
  prompt = _prompt(BLOCK - 3)
  (sample,) = _samples([prompt], new=3, ends=False)
  assert sample.tokens == _reference(prompt, new=3, end=None) and sample.ended == 'length'
