"""A model takes text or token ids and gives text and token ids, or says what is amiss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import text
from gpt_jax.models import gpt

BLOCK = 8
LETTERS = '\nabcdefghij'


@functools.cache
def _parts(vocab_size, dtype='float32'):
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=BLOCK, vocab_size=vocab_size, dtype=dtype
  )
  key, tokens_BL = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(gpt.GPT(config).init, key, tokens_BL)['params']
  draw = np.random.default_rng(1).normal

  def random(path, leaf):
    mean, std = {'scale': (1, 0.2), 'bias': (0, 0.2)}.get(path[-1].key, (0, 0.8))
    return jnp.asarray(draw(mean, std, leaf.shape), leaf.dtype)

  return config, jax.tree_util.tree_map_with_path(random, shapes)


def _model(vocab_size, tokenizer):
  config, params = _parts(vocab_size)
  return text.TextModel(config, params, tokenizer)


@functools.cache
def _char_model(characters=LETTERS):
  return _model(len(characters), char.CharTokenizer(characters))


@functools.cache
def _byte_model():
  return _model(257, char.ByteTokenizer())


@functools.cache
def _bare_model():
  return _model(len(LETTERS), None)


def test_text_is_the_decoded_tokens():
  (sample,) = _char_model().generate('badcab', max_new_tokens=20)
  assert len(sample.tokens) == 20 and all(type(token) is int for token in sample.tokens)
  assert sample.text == ''.join(LETTERS[token] for token in sample.tokens)


def test_text_and_its_token_ids_are_the_same_prompt():
  samples = _char_model().generate(['bad', 'cab'], max_new_tokens=12)
  assert _char_model().generate([[2, 1, 4], [3, 1, 2]], max_new_tokens=12) == samples
  assert _char_model().generate(np.array([[2, 1, 4], [3, 1, 2]]), max_new_tokens=12) == samples
  assert _char_model().generate('bad', max_new_tokens=12) == samples[:1]
  bare = _bare_model().generate([[2, 1, 4], [3, 1, 2]], max_new_tokens=12)
  assert [s.tokens for s in bare] == [s.tokens for s in samples]
  assert [s.text for s in bare] == [None, None]


def test_a_result_depends_on_its_prompt_and_place_alone():
  mixed = _char_model().generate(['bad', 'j', 'bad', 'bad'], max_new_tokens=12, seed=3)
  alike = _char_model().generate(['bad'] * 3, max_new_tokens=12, seed=3)
  assert [mixed[0], mixed[2]] == [alike[0], alike[2]]
  assert len({sample.text for sample in mixed}) == 4
  assert _char_model().generate(['bad', 'j'], max_new_tokens=12, seed=3) == mixed[:2]
  assert _char_model().generate([], max_new_tokens=12) == []


def test_options_reach_the_decoder():
  generate = functools.partial(_char_model().generate, 'bad', max_new_tokens=30)
  greedy = generate(temperature=0.0)
  assert generate(temperature=0) == generate(top_k=1, seed=8) == greedy
  assert generate() == generate(temperature=1.0, top_k=0, seed=0) == generate(top_k=10**6)
  assert len({generate(**o)[0].text for o in ({}, {'seed': 2**32 - 1}, {'temperature': 9.0})}) == 3


def test_a_sample_ends_before_end_of_text():
  prompts = ['bad'] * 3
  endless = _char_model().generate(prompts, max_new_tokens=20)
  end = endless[1].tokens[2]

  ending = char.CharTokenizer(LETTERS)
  ending.end_of_text = end
  model = _model(len(LETTERS), ending)
  for sample, whole in zip(model.generate(prompts, max_new_tokens=20), endless, strict=True):
    tokens = whole.tokens[: whole.tokens.index(end)] if end in whole.tokens else whole.tokens
    assert sample.tokens == tokens
    assert sample.text == whole.text[: len(tokens)]


@pytest.mark.parametrize(
  ('model', 'empty', 'start'),
  [
    (_byte_model, '', [256]),
    (_char_model, '', [0]),
    (functools.partial(_char_model, 'ab\nc'), '', [2]),
    (functools.partial(_char_model, 'abc'), '', [0]),
    (_bare_model, [], [0]),
  ],
)
def test_an_empty_prompt_is_the_start_of_a_text(model, empty, start):
  result = model().generate([empty], max_new_tokens=40)
  assert result == model().generate([start], max_new_tokens=40)
  assert result[0].tokens != model().generate([[1]], max_new_tokens=40)[0].tokens


@pytest.mark.parametrize(
  ('option', 'value', 'allowed'),
  [
    ('max_new_tokens', 0, 'from 1 to'),
    ('max_new_tokens', 2.5, 'whole number'),
    ('temperature', -0.5, 'from 0 to'),
    ('temperature', float('nan'), 'from 0 to'),
    ('temperature', float('inf'), 'from 0 to'),
    ('temperature', 'hot', 'from 0 to'),
    ('top_k', -1, 'from 0 to'),
    ('top_k', None, '0 draws from the whole vocabulary'),
    ('seed', -1, 'from 0 to 4294967295'),
    ('seed', 2**32, 'from 0 to 4294967295'),
  ],
)
def test_a_bad_option_is_named_with_its_value_and_range(option, value, allowed):
  with pytest.raises(errors.UserError) as caught:
    _char_model().generate('bad', **{'max_new_tokens': 1, option: value})
  (line,) = str(caught.value).splitlines()[1:]
  assert line.strip().startswith(f'{option}: {value!r} must be ') and allowed in line


@pytest.mark.parametrize(
  ('prompt', 'words'),
  [
    ([1] * (BLOCK + 1), ['9 tokens', 'at most 8', 'block_size']),
    ('a' * (BLOCK + 1), ['9 tokens', 'at most 8', 'block_size']),
    ([1, len(LETTERS)], ['token id 11', '0 to 10']),
    ([-1], ['token id -1', '0 to 10']),
    ([1.5], ['float64', 'integers']),
    ([[1]], ['[[1]]', 'list of token ids']),
    (7, ['7', 'list of token ids']),
    ('axb', ["'x' at position 1"]),
  ],
)
def test_a_bad_prompt_is_named_with_what_is_wrong(prompt, words):
  with pytest.raises(errors.UserError) as caught:
    _char_model().generate(['bad', prompt], max_new_tokens=1)
  (line,) = str(caught.value).splitlines()[1:]
  assert line.strip().startswith('prompts[1]: ') and all(word in line for word in words)


def test_all_problems_come_at_once():
  with pytest.raises(errors.UserError) as caught:
    _bare_model().generate(['bad', [99]], max_new_tokens=0, temperature=-1, top_k=-1, seed=-1)
  lines = str(caught.value).splitlines()[1:]
  names = ['max_new_tokens', 'top_k', 'seed', 'temperature', 'prompts[0]', 'prompts[1]']
  assert [line.strip().partition(':')[0] for line in lines] == names
  assert 'has no tokenizer' in lines[4]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logits_are_the_models_without_the_padding(dtype):
  config, params = _parts(len(LETTERS), dtype)
  tokens_BL = [[1, 2, 3], [4, 5, 6]]
  result_BLV = text.TextModel(config, params, None).logits(tokens_BL)
  assert result_BLV.shape == (2, 3, len(LETTERS)) and result_BLV.dtype == jnp.float32
  expected_BLV, _ = jax.jit(gpt.GPT(config).apply)({'params': params}, jnp.array(tokens_BL))
  tolerance = 1e-5 if dtype == 'float32' else 0.05
  np.testing.assert_allclose(
    result_BLV, expected_BLV[..., : len(LETTERS)], atol=tolerance, rtol=tolerance
  )


@pytest.mark.parametrize(
  ('tokens_BL', 'words'),
  [
    ([1, 2], ['(2,)', '(batch, length)']),
    ([[]], ['(1, 0)', '(batch, length)']),
    ([[1], [11]], ['token id 11', '0 to 10']),
    ([[0.5]], ['float64']),
    ([[1] * (BLOCK + 1)], ['9 tokens', 'at most 8']),
  ],
)
def test_logits_of_what_the_model_cannot_read(tokens_BL, words):
  with pytest.raises(errors.UserError) as caught:
    _bare_model().logits(tokens_BL)
  assert all(word in str(caught.value) for word in words)
