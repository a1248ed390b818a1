"""Contrastive search chooses what its formula says, computed from the plain forward pass."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import contrastive, engine, sampling, text
from gpt_jax.models import gpt
from tests import random_params
from tests.generation import sessions

BLOCK = 13  # neither even nor a power of two
LETTERS = '\nabcdefghijklmnopqrs'
VOCAB = len(LETTERS)
_prompt = functools.partial(sessions.prompt, VOCAB)
ARCHITECTURES = [{}, {'n_layer': 2, 'scan_layers': True, 'bias': False, 'tie_embeddings': False}]


@functools.cache
def _engine(**changes):
  """A tiny model whose every parameter is random, and which is seldom sure of a token."""
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=BLOCK, vocab_size=VOCAB, pad_vocab_to=32
  )
  for name, value in changes.items():
    setattr(config, name, value)
  return engine.Engine(config, random_params.make(config, std=0.6))


@functools.cache
def _forward(**changes):
  """Of one text without a cache: its token ids to the last log_probs_V and all hidden_LD."""
  made = _engine(**changes)
  model = gpt.GPT(made.config)

  @jax.jit
  def both(tokens_BL):
    logits_BLV, _ = model.apply({'params': made.params}, tokens_BL)
    return logits_BLV[0, :, :VOCAB], gpt.with_hidden(model, made.params, tokens_BL)[1][0]

  @functools.cache
  def result(known):
    L = len(known)
    logits_LV, hidden_LD = both(np.array([[*known, *[0] * (BLOCK - L)]]))
    logits_V = np.asarray(logits_LV[L - 1], np.float64)
    return logits_V - np.log(np.exp(logits_V).sum()), np.asarray(hidden_LD[:L], np.float64)

  return result


PROMPTS = [_prompt(length) for length in (1, 6, BLOCK)]


def _session(
  prompts,
  *,
  new=20,
  alpha=0.6,
  k=4,
  architecture=None,
  end=None,
  bias_V=None,
  log_probs=False,
  **values,
):
  settings = config_lib.GenerationConfig(**values)
  return contrastive.Session(
    _engine(**(architecture or {})),
    prompts,
    sampling.make(settings, vocab_size=VOCAB, end_of_text=end, bias_V=bias_V),
    alpha=alpha,
    candidates=k,
    max_new_tokens=new,
    log_probs=log_probs,
  )


def _tokens(prompts, *, count=10**6, **options):
  return [tokens for tokens, _ in sessions.run(_session(prompts, **options), count)]


def _reference(
  prompt, *, new=20, alpha=0.6, k=4, architecture=None, end=None, adjust=None, log_probs=None
):
  """Su et al. 2022, equation 5, token by token, with the window's rule written out."""
  forward = _forward(**(architecture or {}))
  window, result = list(prompt), list[int]()
  for _ in range(new):
    if len(window) == BLOCK:  # a candidate must fit in
      window = window[-(BLOCK // 2) :]
    log_p_V, _ = forward(tuple(window))
    scores_V = adjust(log_p_V, result) if adjust else log_p_V
    if scores_V.max() == -np.inf:
      break
    p_V = np.exp(scores_V) / np.exp(scores_V).sum()
    values = {}
    for token in np.argsort(-p_V)[:k].tolist():
      _, hidden_LD = forward((*window, token))
      unit_LD = hidden_LD / np.linalg.norm(hidden_LD, axis=-1, keepdims=True)
      likeness = (unit_LD[:-1] @ unit_LD[-1]).max()
      if p_V[token] > 0:
        values[token] = (1 - alpha) * p_V[token] - alpha * likeness
    token = max(values, key=values.__getitem__)
    result.append(token)
    window.append(token)
    if log_probs is not None:
      log_probs.append(log_p_V[token])
    if token == end:
      break
  return result


@pytest.mark.parametrize('architecture', ARCHITECTURES, ids=str)
@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.6, 1.0])
def test_ragged_prompts_give_what_the_formula_gives_without_a_cache(architecture, alpha):
  results = []
  for seed in range(3):
    prompts = [_prompt(length, seed) for length in (5, BLOCK, 1)]
    results += _tokens(prompts, alpha=alpha, architecture=architecture)
    assert results[-3:] == [
      _reference(prompt, alpha=alpha, architecture=architecture) for prompt in prompts
    ]
  assert len({token for tokens in results for token in tokens}) > 3


@pytest.mark.parametrize('k', [1, 64])
def test_other_numbers_of_candidates(k):
  assert _tokens(PROMPTS, k=k) == [_reference(prompt, k=k) for prompt in PROMPTS]


def test_the_smallest_alpha_is_greedy_decoding():
  greedy = sampling.make(
    config_lib.GenerationConfig(temperature=0.0), vocab_size=VOCAB, end_of_text=None, bias_V=None
  )
  prompts = [_prompt(length) for length in (1, 6, 3)]
  session = engine.Session(_engine(), prompts, greedy, max_new_tokens=BLOCK - 6)
  expected = [tokens for tokens, _ in sessions.run(session)]
  assert _tokens(prompts, new=BLOCK - 6, alpha=1e-7) == expected
  assert _tokens(prompts, new=BLOCK - 6) != expected


@pytest.mark.parametrize('count', [1, 3])
def test_a_text_is_the_same_however_many_tokens_are_asked_for_at_a_time(count):
  assert _tokens(PROMPTS, count=count) == _tokens(PROMPTS)


def test_a_result_depends_on_its_prompt_alone():
  prompts = [PROMPTS[1], PROMPTS[2], PROMPTS[1], PROMPTS[0]]
  together = sessions.run(_session(prompts, log_probs=True))
  for prompt, (tokens, log_probs) in zip(prompts, together, strict=True):
    ((alone, log_probs_alone),) = sessions.run(_session([prompt], log_probs=True))
    assert alone == tokens
    np.testing.assert_allclose(log_probs_alone, log_probs, atol=1e-4)


def test_log_probs_are_the_models_own():
  rows = sessions.run(_session(PROMPTS, log_probs=True, bias_V=BIAS_V))
  for prompt, (tokens, log_probs) in zip(PROMPTS, rows, strict=True):
    expected: list[float] = []
    assert tokens == _reference(prompt, adjust=_biased, log_probs=expected)
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


BIAS_V = np.random.default_rng(2).normal(size=32).astype(np.float32) * 2
BIAS_V[:8] = -np.inf


def _biased(log_p_V, _):
  return log_p_V + BIAS_V[:VOCAB]


def test_a_text_ends_with_the_end():
  endless = _tokens(PROMPTS)
  end = endless[1][3]
  results = _tokens(PROMPTS, end=end)
  assert results == [_reference(prompt, end=end) for prompt in PROMPTS]
  assert len({len(tokens) for tokens in results}) > 1 and results[1][-1] == end
  assert _tokens(PROMPTS, end=end, count=1) == results


def test_of_fewer_possible_tokens_than_candidates_one_is_chosen():
  bias_V = np.full(32, -np.inf, np.float32)
  bias_V[[3, 8]] = 0
  results = _tokens(PROMPTS, bias_V=bias_V, alpha=1.0)
  assert {token for tokens in results for token in tokens} == {3, 8}
  # At alpha = 1, an improbable candidate is as good as another.
  bias_V[3] = -300
  assert _tokens(PROMPTS, bias_V=bias_V, alpha=1.0) == results
  # Each token may come once, and then the text ends.
  results = _tokens([[0], [1, 1]], bias_V=bias_V, no_repeat_ngram=1)
  assert [sorted(tokens) for tokens in results] == [[3, 8], [3, 8]]


def test_penalties_hold():
  def adjust(log_p_V, new):
    return log_p_V - 2.5 * np.bincount(new, minlength=VOCAB)

  options = {'alpha': 0.2}
  expected = [_reference(prompt, adjust=adjust, **options) for prompt in PROMPTS]
  assert _tokens(PROMPTS, frequency_penalty=2.5, **options) == expected
  assert _tokens(PROMPTS, **options) != expected


# Text in, text out.


def _model(made=None):
  made = made or _engine()
  return text.TextModel(made.config, made.params, char.CharTokenizer(LETTERS))


def test_options_reach_the_search():
  model = _model()
  settings = {'contrastive_alpha': 0.9, 'top_k': 9, 'max_new_tokens': 15}
  samples = model.generate(PROMPTS, **settings)
  assert [s.tokens for s in samples] == _tokens(PROMPTS, alpha=0.9, k=9, new=15)
  hot = model.generate(PROMPTS, temperature=5.0, **settings)
  assert hot == samples == model.generate(PROMPTS, temperature=0.0, **settings)
  assert _tokens(PROMPTS, alpha=0.9, k=4, new=15) != _tokens(PROMPTS, alpha=0.9, k=9, new=15)
  # The context of 13 slides to 6: before the first token if it is full, else when it gets so.
  assert [s.slides for s in samples] == [1, 2, 3]


def test_a_stream_is_the_text():
  settings = {'contrastive_alpha': 0.4, 'top_k': 5, 'max_new_tokens': 15}
  (sample,) = _model().generate('bad', **settings)
  parts = list(_model().stream('bad', **settings))
  assert len(parts) > 1 and ''.join(parts) == sample.text


def test_a_context_of_one_token_is_refused():
  model = _model(_engine(block_size=1))
  for call in (model.generate, model.stream):
    with pytest.raises(errors.UserError, match=r'contrastive_alpha: .*block_size.* at least 2'):
      call('a', contrastive_alpha=0.5, top_k=4, max_new_tokens=3)


def test_a_context_of_two_tokens_is_enough():
  (sample,) = _model(_engine(block_size=2)).generate(
    'ab', contrastive_alpha=0.5, top_k=4, max_new_tokens=3
  )
  assert len(sample.tokens) == sample.slides == 3
