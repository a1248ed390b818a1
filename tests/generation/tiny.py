"""Tiny models for the tests of generation, and generation without a cache to compare with.

Compiling takes most of the time, so tests share architectures and shapes: programs are kept for
each architecture, number of rows and set of processors.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, models
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import language_model
from gpt_jax.models import gpt
from tests import random_params

BLOCK = 13  # neither even nor a power of two
LETTERS = '\nabcdefghijklmnopqrstuvwxyz.,!'
VOCAB = len(LETTERS)
END = 5  # eos of models with `ends`


@functools.cache
def model(
  *,
  letters: str = LETTERS,
  ends: bool = False,
  noise: float = 0.0,
  std: float = 0.8,
  seed: int = 1,
  **changes: Any,
) -> language_model.LanguageModel:
  """Returns a model with random parameters, of which some change the architecture."""
  sizes = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': BLOCK, 'pad_vocab_to': 128}
  config = config_lib.ModelConfig(**{**sizes, 'vocab_size': len(letters), **changes})
  tokenizer = char.CharTokenizer(letters)
  tokenizer.eos_id = END if ends else None
  params = random_params.make(config, seed=seed, std=std, noise=noise)
  return language_model.LanguageModel(config, params, tokenizer)


@functools.cache
def bare(**changes: Any) -> language_model.LanguageModel:
  """Returns a model without a tokenizer."""
  return dataclasses.replace(model(**changes), tokenizer=None)


def prompt(length: int, seed: int = 0, *, vocab_size: int = VOCAB) -> list[int]:
  """Returns random token ids."""
  return np.random.default_rng([length, seed]).integers(0, vocab_size, length).tolist()


PROMPTS = [prompt(1), prompt(5), prompt(BLOCK), prompt(5)]


@functools.partial(jax.jit, static_argnums=0)
def _forward(module: gpt.GPT, params: Any, tokens_BL: jax.Array) -> jax.Array:
  return module.apply({'params': params}, tokens_BL)[0]


def logits_V(made: language_model.LanguageModel, known: list[int]) -> np.ndarray:
  """Returns the logits after `known`, at most `block_size` tokens, computed without a cache."""
  config = made.config
  padded_BL = np.array([known + [0] * (config.block_size - len(known))])
  logits_BLV = _forward(models.make(config), made.params, padded_BL)
  return np.asarray(logits_BLV[0, len(known) - 1, : config.vocab_size])


def reference(
  made: language_model.LanguageModel, known: list[int], *, new: int, choose: Any
) -> list[int]:
  """Generates token by token without a cache: `choose` has logits and the new tokens so far."""
  context, tokens = list(known), list[int]()
  for _ in range(new):
    if len(context) > made.config.block_size:
      context = context[-max(1, made.config.block_size // 2) :]
    tokens.append(int(choose(logits_V(made, context), tokens)))
    context.append(tokens[-1])
  return tokens


def adjusted(
  scores_V: np.ndarray, prompt: list[int], new: list[int], options: Mapping[str, Any]
) -> np.ndarray:
  """Applies bias, bans and penalties in the usual order; the history has all contexts."""
  scores_V, text = np.array(scores_V, np.float64), prompt + new
  for token, value in options.get('logit_bias', {}).items():
    scores_V[token] += value
  scores_V[options.get('ban', [])] = -np.inf
  penalty = options.get('repetition_penalty', 1.0)
  penalised_V = np.where(scores_V > 0, scores_V / penalty, scores_V * penalty)
  scores_V = np.where(np.isin(np.arange(scores_V.size), text), penalised_V, scores_V)
  counts_V = np.bincount(np.array(new, int), minlength=scores_V.size)
  scores_V -= options.get('presence_penalty', 0) * (counts_V > 0)
  scores_V -= options.get('frequency_penalty', 0) * counts_V
  n = options.get('no_repeat_ngram') or len(text) + 1
  for i in range(len(text) - n + 1):
    if text[i : i + n - 1] == text[len(text) - n + 1 :]:
      scores_V[text[i + n - 1]] = -np.inf
  if len(new) < options.get('min_new_tokens', 0):
    scores_V[END] = -np.inf
  return scores_V


def greedy(
  made: language_model.LanguageModel, known: list[int], *, new: int, **options: Any
) -> list[int]:
  """Generates the most likely tokens without a cache, up to the end if the model has one."""

  def choose(logits_V: np.ndarray, tokens: list[int]) -> Any:
    return adjusted(logits_V, known, tokens, options).argmax()

  tokens = reference(made, known, new=new, choose=choose)
  ends = made.tokenizer is not None and made.tokenizer.eos_id == END
  return until_end(tokens)[0] if ends else tokens


def samples(
  made: language_model.LanguageModel, prompts: Any, *, new: int = 20, **arguments: Any
) -> Any:
  """Generates with log-probabilities, from the whole vocabulary at temperature 1 by default."""
  arguments = {'temperature': 1.0, 'top_k': 0, 'seed': 5, 'log_probs': True, **arguments}
  return made.generate(prompts, max_new_tokens=new, **arguments)


def tokens(made: language_model.LanguageModel, prompts: Any, **arguments: Any) -> list[list[int]]:
  """Returns the new tokens of `samples`."""
  return [sample.tokens for sample in samples(made, prompts, **arguments)]


def until_end(whole: list[int]) -> tuple[list[int], str]:
  """Returns the tokens of an endless text before the first end, and why it ends there."""
  return (whole[: whole.index(END)], 'eos') if END in whole else (whole, 'length')


def chi2_p(drawn: Any, chances: Mapping[Any, float]) -> float:
  """Returns the chance that draws deviate at least as much from theirs (Pearson's χ²)."""
  times = collections.Counter(tuple(map(int, each)) for each in drawn)
  if any(not chances.get(each) for each in times):
    return 0.0
  ranked = sorted(chances, key=chances.__getitem__)
  expected = np.array([chances[each] for each in ranked]) * times.total()
  observed = np.array([times[each] for each in ranked])
  rare = int(np.searchsorted(np.cumsum(expected), 5)) + 1  # which count as one
  expected = np.array([expected[:rare].sum(), *expected[rare:]])
  observed = np.array([observed[:rare].sum(), *observed[rare:]])
  chi2 = ((observed - expected) ** 2 / expected).sum()
  return float(jax.scipy.stats.chi2.sf(chi2, len(expected) - 1))


def refused(call: Callable[..., Any], *args: Any, **arguments: Any) -> list[str]:
  """Returns the keys of the errors that a call raises."""
  with pytest.raises(errors.UserError) as e:
    call(*args, **arguments)
  return [error.key for error in e.value.all]
