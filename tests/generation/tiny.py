"""Tiny models for the tests of generation, and generation without a cache to compare with.

Compiling takes most of the time, so tests share architectures and shapes: programs are kept for
each architecture, number of rows and set of processors.
"""

import functools
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
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
  **changes: Any,
) -> language_model.LanguageModel:
  """Returns a model with random parameters, of which some change the architecture."""
  sizes = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': BLOCK, 'pad_vocab_to': 128}
  config = config_lib.ModelConfig(**{**sizes, 'vocab_size': len(letters), **changes})
  tokenizer = char.CharTokenizer(letters)
  tokenizer.eos_id = END if ends else None
  params = random_params.make(config, std=std, noise=noise)
  return language_model.LanguageModel(config, params, tokenizer)


def prompt(length: int, seed: int = 0) -> list[int]:
  """Returns random token ids."""
  return np.random.default_rng([length, seed]).integers(0, VOCAB, length).tolist()


PROMPTS = [prompt(1), prompt(5), prompt(BLOCK), prompt(5)]


@functools.partial(jax.jit, static_argnums=0)
def _forward(module: gpt.GPT, params: Any, tokens_BL: jax.Array) -> jax.Array:
  return module.apply({'params': params}, tokens_BL)[0]


def logits_V(made: language_model.LanguageModel, known: list[int]) -> np.ndarray:
  """Returns the logits after `known`, at most `block_size` tokens, computed without a cache."""
  config = made.config
  padded_BL = np.array([known + [0] * (config.block_size - len(known))])
  logits_BLV = _forward(gpt.GPT(config), made.params, padded_BL)
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


def samples(
  made: language_model.LanguageModel, prompts: Any, *, new: int = 20, **arguments: Any
) -> Any:
  """Generates with log-probabilities, from the whole vocabulary at temperature 1 by default."""
  arguments = {'temperature': 1.0, 'top_k': 0, 'seed': 5, 'log_probs': True, **arguments}
  return made.generate(prompts, max_new_tokens=new, **arguments)


def tokens(made: language_model.LanguageModel, prompts: Any, **arguments: Any) -> list[list[int]]:
  """Returns the new tokens of `samples`."""
  return [sample.tokens for sample in samples(made, prompts, **arguments)]
