"""Beam search finds what the same search without a cache finds, and what transformers finds."""

import functools
import itertools

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import beam, engine, sampling, text
from gpt_jax.models import gpt
from tests import random_params
from tests.generation import sessions

BLOCK = 16
LETTERS = '\nabcdefghijk'
VOCAB = len(LETTERS)
_prompt = functools.partial(sessions.prompt, VOCAB)
END = 5
ARCHITECTURES = [{}, {'scan_layers': True, 'bias': False, 'tie_embeddings': False}]


@functools.cache
def _engine(**changes):
  """A tiny model whose every parameter is random, and which is seldom sure of a token."""
  config = config_lib.ModelConfig(
    n_layer=2, n_head=2, n_embd=8, block_size=BLOCK, vocab_size=VOCAB, pad_vocab_to=16
  )
  for name, value in changes.items():
    setattr(config, name, value)
  return engine.Engine(config, random_params.make(config, seed=2, std=0.4))


@functools.cache
def _forward(**changes):
  """Of one text without a cache: its token ids to log_probs_V of the next, in float64."""
  made = _engine(**changes)
  apply = jax.jit(gpt.GPT(made.config).apply)

  @functools.cache
  def log_probs_V(known):
    padded_BL = np.array([[*known, *[0] * (BLOCK - len(known))]])
    logits_BLV, _ = apply({'params': made.params}, padded_BL)
    logits_V = np.asarray(logits_BLV[0, len(known) - 1, :VOCAB], np.float64)
    return logits_V - np.log(np.exp(logits_V).sum())

  return log_probs_V


def _log_probs_V(known, architecture=None):
  return _forward(**(architecture or {}))(tuple(known)).copy()


PROMPTS = [_prompt(length) for length in (1, 6, 3)]


def _search(
  prompts,
  *,
  K=3,
  new=9,
  penalty=1.0,
  end=END,
  architecture=None,
  bias_V=None,
  vocab=VOCAB,
  **values,
):
  """New tokens of each prompt, with the end, and their log-probabilities."""
  settings = config_lib.GenerationConfig(**values)
  session = beam.Session(
    _engine(**(architecture or {})),
    prompts,
    sampling.make(settings, vocab_size=vocab, end_of_text=end, bias_V=bias_V),
    num_beams=K,
    length_penalty=penalty,
    max_new_tokens=new,
    log_probs=True,
  )
  assert not session.done
  added = session.advance(1)
  assert session.done
  return added


def _tokens(prompts, **options):
  return [tokens for tokens, _ in _search(prompts, **options)]


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


# Found by transformers 5.23: GPT2LMHeadModel with the parameters of `_engine()`, PROMPTS padded on
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
@pytest.mark.parametrize('penalty', [0.0, 1.0, 2.0, -1.0])
def test_ragged_prompts_give_what_each_gives_without_a_cache(architecture, penalty):
  for seed in range(4):
    prompts = [_prompt(length, seed) for length in (5, 1, 7)]
    results = _tokens(prompts, penalty=penalty, architecture=architecture)
    assert results == [
      _reference(prompt, penalty=penalty, architecture=architecture) for prompt in prompts
    ]


def test_texts_end_at_different_lengths():
  """Without which the tests here would prove little."""
  results = [tokens for s in range(4) for tokens in _tokens([_prompt(n, s) for n in (5, 1, 7)])]
  assert len({len(tokens) for tokens in results}) > 3
  assert {tokens[-1] == END for tokens in results} == {False, True}
  assert all(END not in tokens[:-1] for tokens in results)


@pytest.mark.parametrize('penalty', [2.0, 3.0])
def test_where_ends_are_likely_each_prompt_is_done_as_soon_as_the_rule_says(penalty):
  """Longer texts would have better scores then: stopping later gives other results."""
  bias_V = np.zeros(16, np.float32)
  bias_V[END] = 1
  for seed in range(8):
    prompts = [_prompt(length, seed) for length in (5, 1, 3)]
    results = _tokens(prompts, penalty=penalty, bias_V=bias_V)
    assert results == [
      _reference(prompt, penalty=penalty, adjust=lambda s_V, prompt, new: s_V + bias_V[:VOCAB])
      for prompt in prompts
    ]


@pytest.mark.parametrize('new', [1, 2, 5])
def test_other_numbers_of_beams_and_tokens(new):
  expected = [_reference(prompt, K=4, new=new) for prompt in PROMPTS]
  assert _tokens(PROMPTS, K=4, new=new) == expected


@pytest.mark.parametrize('penalty', [0.0, 1.0, 2.0])
def test_with_beams_for_all_texts_the_best_of_all_texts_is_found(penalty):
  new, allowed = 3, [1, 4, END, 9]
  bias_V = np.full(16, -np.inf, np.float32)
  bias_V[allowed] = 0
  for prompt in PROMPTS:
    scores = {}
    for tokens in itertools.product(allowed, repeat=new):
      tokens = tokens[: tokens.index(END) + 1] if END in tokens else tokens
      known = [_log_probs_V([*prompt, *tokens[:i]])[tokens[i]] for i in range(len(tokens))]
      scores[tokens] = sum(known) / len(tokens) ** penalty
    # None is ever dropped, nor are there hypotheses enough to stop early.
    (found,) = _tokens([prompt], K=len(allowed) ** new, new=new, penalty=penalty, bias_V=bias_V)
    assert tuple(found) == max(scores, key=scores.__getitem__)


def test_one_beam_is_greedy_decoding():
  greedy = sampling.make(
    config_lib.GenerationConfig(temperature=0.0), vocab_size=VOCAB, end_of_text=None, bias_V=None
  )
  session = engine.Session(_engine(), PROMPTS, greedy, max_new_tokens=9)
  expected = [tokens for tokens, _ in session.advance(9)]
  assert _tokens(PROMPTS, K=1, end=None) == expected
  assert _tokens(PROMPTS, K=4, end=None) != expected


def test_a_result_depends_on_its_prompt_alone():
  prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2]]
  for prompt, (tokens, log_probs) in zip(prompts, _search(prompts), strict=True):
    ((alone, log_probs_alone),) = _search([prompt])
    assert alone == tokens
    np.testing.assert_allclose(log_probs_alone, log_probs, atol=1e-4)


def test_log_probs_are_the_models_own():
  bias_V = np.random.default_rng(0).normal(0, 2, 16).astype(np.float32)
  for prompt, (tokens, log_probs) in zip(
    PROMPTS, _search(PROMPTS, bias_V=bias_V, repetition_penalty=1.5), strict=True
  ):
    expected = [_log_probs_V([*prompt, *tokens[:i]])[tokens[i]] for i in range(len(tokens))]
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_a_length_penalty_favours_long_texts():
  lengths = [sum(map(len, _tokens(PROMPTS, penalty=penalty))) for penalty in (-2.0, 0.0, 1.0, 3.0)]
  assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def _repeats(n, scores_V, text_so_far):
  if len(text_so_far) >= n:
    for i in range(len(text_so_far) - n + 1):
      if text_so_far[i : i + n - 1] == text_so_far[len(text_so_far) - n + 1 :]:
        scores_V[text_so_far[i + n - 1]] = -np.inf
  return scores_V


BIAS_V = np.zeros(16, np.float32)
BIAS_V[[2, END, 5]] = [1.5, 1.0, -np.inf]


@pytest.mark.parametrize(
  ('options', 'adjust'),
  [
    ({'bias_V': BIAS_V}, lambda s_V, prompt, new: s_V + BIAS_V[:VOCAB]),
    (
      {'repetition_penalty': 1.4},
      lambda s_V, prompt, new: np.where(np.isin(range(VOCAB), prompt + new), s_V * 1.4, s_V),
    ),
    (
      {'presence_penalty': 0.7},
      lambda s_V, prompt, new: s_V - 0.7 * np.isin(range(VOCAB), new),
    ),
    (
      {'frequency_penalty': 0.7},
      lambda s_V, prompt, new: s_V - 0.7 * np.bincount(new, minlength=VOCAB),
    ),
    ({'no_repeat_ngram': 2}, lambda s_V, prompt, new: _repeats(2, s_V, prompt + new)),
    (
      {'min_new_tokens': 5},
      lambda s_V, prompt, new: np.where((np.arange(VOCAB) == END) & (len(new) < 5), -np.inf, s_V),
    ),
  ],
  ids=lambda x: ' '.join(x) if isinstance(x, dict) else '',
)
def test_bias_penalties_and_bans_hold_for_each_beams_own_text(options, adjust):
  results = _tokens(PROMPTS, penalty=0.0, **options)
  assert results == [_reference(prompt, penalty=0.0, adjust=adjust) for prompt in PROMPTS]
  assert results != _tokens(PROMPTS, penalty=0.0)


def test_the_bias_counts_before_penalties():
  options = {'bias_V': BIAS_V, 'repetition_penalty': 1.2}
  expected = [
    _reference(
      prompt,
      adjust=lambda s_V, prompt, new: np.where(
        np.isin(range(VOCAB), prompt + new), (s_V + BIAS_V[:VOCAB]) * 1.2, s_V + BIAS_V[:VOCAB]
      ),
    )
    for prompt in PROMPTS
  ]
  assert _tokens(PROMPTS, **options) == expected


def test_where_no_token_is_left_the_best_beam_is_the_result():
  prompt = [0, 1, 2, 3, 4, 5]
  # The other goes on.
  stuck, other = _tokens([prompt, [0]], no_repeat_ngram=1, end=None)
  assert sorted(prompt + stuck) == list(range(VOCAB)) and len(other) == 9

  def adjust(scores_V, prompt, new):
    return _repeats(1, scores_V, prompt + new)

  assert stuck == _reference(prompt, end=None, adjust=adjust)
  assert other == _reference([0], end=None, adjust=adjust)


def test_a_hypothesis_beats_beams_that_have_no_token_left():
  bias_V = np.full(16, -np.inf, np.float32)
  bias_V[[3, END]] = 0, -20
  # After 1, both may come; after 3, neither.
  stuck = [3, END, 3, 3, 1]
  assert _tokens([stuck, [1]], bias_V=bias_V, no_repeat_ngram=2)[0] == [END]


# Text in, text out.


@functools.cache
def _model():
  tokenizer = char.CharTokenizer(LETTERS)
  tokenizer.end_of_text = END
  made = _engine()
  return text.TextModel(made.config, made.params, tokenizer)


def test_options_that_only_draws_have_are_ignored():
  prompts = ['bad', 'e', 'be']
  generate = functools.partial(_model().generate, prompts, num_beams=3, max_new_tokens=9)
  samples = generate()
  assert [s.text for s in samples] == [
    s.text for s in generate(temperature=0.0, top_k=1, log_probs=True)
  ]
  assert samples[0].log_probs is None and [s.slides for s in samples] == [0, 0, 0]
  for sample, tokens in zip(samples, _tokens([[2, 1, 4], [END], [2, END]]), strict=True):
    assert sample.ended == ('end_of_text' if tokens[-1] == END else 'length')
    assert sample.tokens == [token for token in tokens if token != END]
    assert sample.text == ''.join(LETTERS[token] for token in sample.tokens)


def test_options_reach_the_search():
  settings = {'num_beams': 4, 'length_penalty': 0.0, 'max_new_tokens': 9}
  samples = _model().generate(PROMPTS, **settings)
  for sample, tokens in zip(samples, _tokens(PROMPTS, K=4, penalty=0.0), strict=True):
    assert sample.tokens == [token for token in tokens if token != END]


def test_a_stream_is_the_text_in_one_piece():
  (sample,) = _model().generate('bad', num_beams=3, max_new_tokens=9)
  assert list(_model().stream('bad', num_beams=3, max_new_tokens=9)) == [sample.text]


def test_a_stop_string_cuts_the_best_text():
  (whole,) = _model().generate('bad', num_beams=3, max_new_tokens=9, log_probs=True)
  stop = whole.text[1:3]
  (sample,) = _model().generate('bad', num_beams=3, max_new_tokens=9, stop=[stop], log_probs=True)
  assert sample.text == whole.text.partition(stop)[0] and sample.ended == 'stop'
  assert sample.log_probs == whole.log_probs[: len(sample.tokens)]


@pytest.mark.parametrize(
  ('length', 'values', 'words'),
  [
    (5, {'max_new_tokens': 12}, ['max_new_tokens: 12 must be from 1 to 11', '5 tokens', '16']),
    (BLOCK, {'max_new_tokens': 1}, ['16 tokens', 'block_size', 'num_beams']),
    (5, {'max_new_tokens': 3, 'num_beams': 13}, ['num_beams: 13 must be at most', '12']),
  ],
)
def test_what_does_not_fit_is_named(length, values, words):
  options = {'num_beams': 2, **values}
  for call in (_model().generate, lambda prompts, **o: _model().stream(prompts[1], **o)):
    with pytest.raises(errors.UserError) as caught:
      call([[1], _prompt(length)], **options)
    assert all(word in str(caught.value) for word in words)


def test_a_prompt_may_fill_the_context_together_with_the_new_tokens():
  prompt = _prompt(BLOCK - 3)
  assert _tokens([prompt], new=3, end=None) == [_reference(prompt, new=3, end=None)]
  (sample,) = _model().generate([prompt], num_beams=3, max_new_tokens=3)
  assert sample.ended == 'end_of_text' or len(sample.tokens) == 3
