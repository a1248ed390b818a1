"""Options are validated before anything is computed; each problem names its argument."""

import math
from typing import Any

import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import options, sampling
from gpt_jax.generation import settings as settings_lib
from tests.generation import tiny

LETTERS = 'abcdefgh'
CONFIG = config_lib.ModelConfig(vocab_size=8, pad_vocab_to=16)


INVALID: dict[str, list[Any]] = {
  'max_new_tokens': [0, 2.5, True],
  'min_new_tokens': [-1],
  'temperature': [-0.5, math.nan, math.inf, 'hot'],
  'top_k': [-1, None, 10**20],
  'top_p': [0.0, 1.01],
  'min_p': [-0.1],
  'typical_p': [2.0],
  'repetition_penalty': [0.0],
  'presence_penalty': [1e9],
  'frequency_penalty': [-1e9],
  'no_repeat_ngram': [-1],
  'num_beams': [0],
  'draft_tokens': [0],
  'seed': [-1, 2**32],
  'stop': ['text', [''], [1], 5, b'text'],
  'ban': ['xy', 5, [None], [1.5], [True]],
  'logit_bias': [[1], [('a', 1.0)], 5, 'a:1', {1.5: 1.0}, {None: 1.0}],
}


@pytest.mark.parametrize(('option', 'value'), [(k, v) for k, each in INVALID.items() for v in each])
def test_an_invalid_value_is_refused(option, value):
  with pytest.raises(errors.UserError) as e:
    options.make(**{option: value})
  assert e.value.key == option and str(value) in str(e.value)


def test_all_problems_come_at_once_and_unknown_names_get_a_hint():
  with pytest.raises(errors.UserError) as e:
    options.make(seed=-1, temprature=1.0, top_p=7.0, stop='x')
  assert {error.key for error in e.value.all} == {'temprature', 'top_p', 'seed', 'stop'}
  (unknown,) = (error for error in e.value.all if error.key == 'temprature')
  assert 'temperature' in unknown.fix


@pytest.mark.parametrize(
  ('key', 'values'),
  [
    ('min_new_tokens', {'min_new_tokens': 9, 'max_new_tokens': 8}),
    ('top_p', {'num_beams': 2, 'top_p': 0.9}),
    ('seed', {'num_beams': 2, 'seed': 3}),
    ('temperature', {'num_beams': 2, 'temperature': 0.5}),
    ('top_k', {'num_beams': 2, 'top_k': 5}),
    ('length_penalty', {'length_penalty': 2.0}),
  ],
)
def test_contradictions_are_refused(key, values):
  assert tiny.refused(options.make, **values) == [key]
  options.make(**{**values, key: getattr(settings_lib.Settings(), key)})


def test_numpy_scalars_are_numbers():
  made = options.make(seed=np.uint8(3), temperature=np.float32(0.5), top_p=np.int32(1))
  assert made.settings == settings_lib.Settings(seed=3, temperature=0.5, top_p=1.0)


def _bias(ban=(), logit_bias=None, tokenizer=None):
  return options.bias(CONFIG, tokenizer, options.make(ban=ban, logit_bias=logit_bias))


def test_biases_add_up_and_bans_win():
  letters = char.CharTokenizer(LETTERS)
  assert _bias() is None
  bias_V = _bias(ban=['b', 3], logit_bias={'a': 1.5, 0: 2, 'b': 7, 7: -math.inf}, tokenizer=letters)
  expected_V = np.zeros(16)
  expected_V[[0, 1, 3, 7]] = [3.5, -np.inf, -np.inf, -np.inf]
  np.testing.assert_array_equal(bias_V, expected_V)


@pytest.mark.parametrize(
  ('key', 'ban', 'logit_bias'),
  [
    ('ban', ['z'], {}),
    ('ban', ['ab'], {}),
    ('ban', [8], {}),
    ('ban', [-1], {}),
    ('ban', list(range(8)), {}),
    ('logit_bias', [], {'a': 'much'}),
    ('logit_bias', [], {'a': math.inf}),
    ('logit_bias', [], {1: math.nan}),
    ('logit_bias', [], {'z': 1.0}),
  ],
)
def test_an_invalid_ban_or_bias_is_refused(key, ban, logit_bias):
  assert tiny.refused(_bias, ban, logit_bias, char.CharTokenizer(LETTERS)) == [key]
  assert tiny.refused(_bias, ['a'], tokenizer=None) == ['ban']  # text is not a token then


def test_what_is_off_is_not_in_the_program():
  def made(**values):
    return sampling.make(settings_lib.Settings(**values), vocab_size=30)

  plain = made(temperature=0.0)
  assert not plain.values and not plain.top_k and plain.eos_id == -1 and not plain.counts_tokens
  assert made(temperature=0.0, top_p=0.5, min_p=0.5, typical_p=0.5).values == {}
  warm = made(temperature=2.0)
  assert set(warm.values) == {'temperature'} and not warm.counts_tokens
  assert made(top_k=30).top_k == made(top_k=31).top_k == 0 and made(top_k=29).top_k == 29
  assert made(presence_penalty=0.1).counts_tokens
