"""Tiny random models, each compiled once, and a scorer whose scores a test decides."""

import functools
import json
import types

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import scoring
from gpt_jax.generation import language_model
from tests import random_params

LETTERS = '\n abcdefghij'


@functools.cache
def _model(block_size):
  tokenizer = char.CharTokenizer(LETTERS)
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=block_size, vocab_size=tokenizer.vocab_size
  )
  return language_model.LanguageModel(config, random_params.make(config), tokenizer)


@pytest.fixture(scope='session')
def model():
  """A model of the 12 LETTERS that reads 8 tokens."""
  return _model(8)


@pytest.fixture(scope='session')
def log_probs():
  """A function: log p(each token | all before it), float64 (L, V), by a full forward pass."""
  forward = functools.cache(
    lambda block_size: jax.jit(models.make(_model(block_size).config).apply)
  )

  def of(tokens, block_size=8):
    tokens_BL = np.zeros((1, block_size), np.int32)
    tokens_BL[0, : len(tokens)] = tokens
    logits_BLV, _ = forward(block_size)({'params': _model(block_size).params}, tokens_BL)
    logits_LV = np.asarray(logits_BLV[0, : len(tokens)], np.float64)
    return logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))

  return of


@pytest.fixture(scope='session')
def scorer():
  """A function: a scorer of the model; each is compiled once."""
  make = functools.cache(lambda block, batch: scoring.Scorer(_model(block), batch_size=batch))
  return lambda block_size=8, batch_size=2: make(block_size, batch_size)


@pytest.fixture(scope='session')
def oracle():
  """A function: a scorer in which each token has a log-probability, whatever comes before it.

  Tokens without one have -1 and are not greedy. Rows are scored in reverse.
  """

  def make(log_probs=(), tokenizer=None):
    log_probs = dict(log_probs)

    def score(rows):
      for number, row in reversed(list(enumerate(rows))):
        tokens = [int(token) for token in row.tokens[row.first :]]
        scores = np.array([log_probs.get(token, -1.0) for token in tokens], np.float32)
        yield number, scoring.Scores(scores, np.array([token in log_probs for token in tokens]))

    tokenizer = tokenizer or char.CharTokenizer(LETTERS)
    config = config_lib.ModelConfig(block_size=8, vocab_size=tokenizer.vocab_size)
    return types.SimpleNamespace(config=config, tokenizer=tokenizer, score=score)

  return make


@pytest.fixture
def lines(tmp_path):
  """A function: the path of a file with records as JSON lines."""

  def write(*records):
    path = tmp_path / 'x.jsonl'
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return str(path)

  return write
