"""Small random models, and scorers that say what a test tells them."""

import functools
import json
import types

import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import scoring
from gpt_jax.generation import text
from tests import random_params

LETTERS = '\n abcdefghij'


@functools.cache
def _model(block_size, tokenizer):
  tokenizer = tokenizer or char.CharTokenizer(LETTERS)
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=block_size, vocab_size=tokenizer.vocab_size
  )
  return text.TextModel(config, random_params.make(config), tokenizer)


@pytest.fixture(scope='session')
def model():
  """A function that gives a model of characters, or of another tokenizer."""
  return lambda block_size=8, tokenizer=None: _model(block_size, tokenizer)


@pytest.fixture(scope='session')
def log_probs():
  """A function that gives log p(each token | all before), float64 (L, V), by a model's logits."""

  def of(model, tokens):
    logits_LV = np.asarray(model.logits([tokens])[0], np.float64)
    return logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))

  return of


@pytest.fixture(scope='session')
def scorer():
  """A function that gives a scorer; each is compiled once."""

  @functools.cache
  def make(block_size=8, batch_size=2):
    return scoring.Scorer(_model(block_size, None), batch_size=batch_size)

  return make


@pytest.fixture
def oracle(model):
  """A function that gives a scorer to whom each token has a log-probability, whatever is before.

  Tokens without one are not greedy.
  """

  def make(log_probs, tokenizer=None, block_size=8):
    def score(rows):
      found = []
      for number, row in enumerate(rows):
        tokens = [int(token) for token in row.tokens[row.first :]]
        scores = np.array([log_probs.get(token, -1.0) for token in tokens], np.float32)
        greedy = np.array([token in log_probs for token in tokens])
        found.append((number, scoring.Scores(scores, greedy)))
      return reversed(found)

    return types.SimpleNamespace(model=model(block_size, tokenizer), score=score)

  return make


@pytest.fixture
def lines(tmp_path):
  """A function that writes records as JSON lines and gives the path."""

  def write(*records, name='x.jsonl'):
    path = tmp_path / name
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return str(path)

  return write
