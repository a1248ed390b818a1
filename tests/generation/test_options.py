"""Options are checked before anything is computed; problems are named with what is allowed."""

import math

import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import options, sampling

LETTERS = 'abcdefgh'


def _lines(values):
  with pytest.raises(errors.UserError) as caught:
    options.make(values)
  lines = str(caught.value).splitlines()
  return [line.strip() for line in (lines[1:] if 'must be mended' in lines[0] else lines)]


@pytest.mark.parametrize(
  ('option', 'value', 'allowed'),
  [
    ('max_new_tokens', 0, 'at least 1 and at most 2147483647'),
    ('max_new_tokens', 2.5, 'must be int'),
    ('max_new_tokens', True, 'must be int'),
    ('min_new_tokens', -1, 'at least 0'),
    ('temperature', -0.5, 'at least 0 and at most 1e+37'),
    ('temperature', math.nan, 'finite'),
    ('temperature', math.inf, 'finite'),
    ('temperature', 'hot', 'must be float'),
    ('top_k', -1, 'at least 0'),
    ('top_k', None, 'must be int'),
    ('top_p', 0.0, 'above 0 and at most 1'),
    ('top_p', 1.01, 'above 0 and at most 1'),
    ('min_p', -0.1, 'at least 0 and at most 1'),
    ('typical_p', 2.0, 'above 0 and at most 1'),
    ('repetition_penalty', 0.0, 'at least 0.001 and at most 1000'),
    ('presence_penalty', 1e9, 'at least -1000.0 and at most 1000.0'),
    ('frequency_penalty', -1e9, 'at least -1000.0 and at most 1000.0'),
    ('no_repeat_ngram', -1, 'at least 0'),
    ('num_beams', 0, 'at least 1'),
    ('contrastive_alpha', 1.5, 'at least 0 and at most 1'),
    ('draft_tokens', 0, 'at least 1 and at most 64'),
    ('seed', -1, 'at least 0 and at most 4294967295'),
    ('seed', 2**32, 'at least 0 and at most 4294967295'),
  ],
)
def test_a_bad_value_is_named_with_what_is_allowed(option, value, allowed):
  (line,) = _lines({option: value})
  assert line.startswith(f'{option}: ') and str(value) in line and allowed in line


def test_all_problems_come_at_once_and_unknown_names_get_a_hint():
  lines = _lines({'seed': -1, 'temprature': 1.0, 'top_p': 7.0})
  assert [line.partition(':')[0] for line in lines] == ['temprature', 'top_p', 'seed']
  assert 'did you mean temperature?' in lines[0]


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'min_new_tokens': 9, 'max_new_tokens': 8}, ['min_new_tokens: 9', 'max_new_tokens (8)']),
    ({'contrastive_alpha': 0.6}, ['top_k: 200', 'from 2 to 64']),
    ({'contrastive_alpha': 0.6, 'top_k': 4, 'num_beams': 2}, ['contrastive_alpha', 'num_beams']),
    ({'num_beams': 2, 'top_p': 0.9}, ['top_p', 'num_beams']),
    ({'num_beams': 2, 'seed': 3}, ['seed', 'num_beams']),
    ({'contrastive_alpha': 0.6, 'top_k': 4, 'min_p': 0.1}, ['min_p', 'contrastive_alpha']),
  ],
)
def test_contradictions_are_named(values, words):
  (line,) = _lines(values)
  assert all(word in line for word in words)


def test_numbers_of_numpy_are_numbers():
  made = options.make({'seed': np.uint8(3), 'temperature': np.float32(0.5), 'top_p': np.int32(1)})
  assert made == config_lib.GenerationConfig(seed=3, temperature=0.5, top_p=1.0)


def _bias(ban=(), logit_bias=None, tokenizer=None):
  return options.bias(tokenizer, 8, 16, ban=ban, logit_bias=logit_bias or {})


def test_biases_add_up_and_bans_win():
  letters = char.CharTokenizer(LETTERS)
  assert _bias() is None
  bias_V = _bias(ban=['b', 3], logit_bias={'a': 1.5, 0: 2, 'b': 7, 7: -math.inf}, tokenizer=letters)
  expected_V = np.zeros(16)
  expected_V[[0, 1, 3, 7]] = [3.5, -np.inf, -np.inf, -np.inf]
  np.testing.assert_array_equal(bias_V, expected_V)


@pytest.mark.parametrize(
  ('ban', 'logit_bias', 'words'),
  [
    (['z'], {}, ['ban', "'z'", 'not in the vocabulary']),
    (['ab'], {}, ['ban', "'ab'", '2 tokens']),
    ([8], {}, ['ban', '8', '0 to 7']),
    ([-1], {}, ['ban', '-1', '0 to 7']),
    ([], {'a': 'much'}, ['logit_bias', "'much'", 'number']),
    ([], {'a': math.inf}, ['logit_bias', 'inf', 'number']),
    ([], {1: math.nan}, ['logit_bias', 'nan', 'number']),
    (list(range(8)), {}, ['ban', 'no token is left']),
  ],
)
def test_a_bad_ban_or_bias_is_named(ban, logit_bias, words):
  with pytest.raises(errors.UserError) as caught:
    _bias(ban, logit_bias, char.CharTokenizer(LETTERS))
  assert all(word in str(caught.value) for word in words)


def test_text_is_no_token_where_there_is_no_tokenizer():
  with pytest.raises(errors.UserError, match='no tokenizer'):
    _bias(['a'])


def test_what_is_off_is_not_in_the_program():
  def made(**values):
    settings = config_lib.GenerationConfig(**values)
    return sampling.make(settings, vocab_size=30, end_of_text=None, bias_V=None)

  plain = made(temperature=0.0, top_k=0)
  off = [name for name, value in vars(plain).items() if value is None]
  assert set(off) == {
    'temperature', 'top_p', 'min_p', 'typical_p', 'repetition_penalty', 'presence_penalty',
    'frequency_penalty', 'min_new_tokens', 'bias_V',
  }  # fmt: skip
  assert plain.end_of_text == -1 and not plain.counts_tokens
  assert made(top_k=30).top_k == made(top_k=31).top_k == 0 and made(top_k=29).top_k == 29
  assert made(presence_penalty=0.1).counts_tokens
