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
from tests import random_params

BLOCK = 8
LETTERS = '\nabcdefghij'


@functools.cache
def _parts(vocab_size, dtype='float32'):
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=8, block_size=BLOCK, vocab_size=vocab_size, dtype=dtype
  )
  return config, random_params.make(config)


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


def test_a_text_depends_on_its_prompt_and_which_copy_of_it_it_is_alone():
  def texts(prompts):
    return [s.text for s in _char_model().generate(prompts, max_new_tokens=12, seed=3)]

  mixed, alike = texts(['bad', 'j', 'bad', 'bad']), texts(['bad'] * 3)
  assert [mixed[0], mixed[2], mixed[3]] == alike and len(set(mixed)) == 4
  assert texts(['j']) == texts(['dad', 'j'])[1:] == mixed[1:2]
  assert texts([]) == []


def test_options_reach_the_decoder():
  def text_of(**values):
    values = {'temperature': 1.0, 'top_k': 0, **values}
    return _char_model().generate('bad', max_new_tokens=30, **values)[0].text

  greedy = text_of(temperature=0.0)
  assert text_of(temperature=np.float32(0)) == text_of(top_k=np.int64(1), seed=8) == greedy
  assert text_of() == text_of(top_k=10**6)
  other: list[dict[str, float]] = [
    {'seed': 2**32 - 1},
    {'temperature': 9.0},
    {'top_p': 0.3},
    {'min_p': 0.5},
  ]
  other += [{'typical_p': 0.2}, {'repetition_penalty': 3.0}, {'no_repeat_ngram': 1}]
  assert len({text_of(**values) for values in [{}, *other]}) >= 6
  assert not set('abcdefgh') & set(text_of(ban=list('abcdefgh')))
  assert set(text_of(logit_bias={'c': 100, 4: 100.0})) == {'c', 'd'}
  ever = text_of(logit_bias={'c': float('-inf'), 'd': -1e9})
  assert not {'c', 'd'} & set(ever)


def test_log_probabilities_come_on_request():
  generate = functools.partial(_char_model().generate, ['bad', 'j'], max_new_tokens=30)
  for sample, plain in zip(generate(log_probs=True), generate(), strict=True):
    assert plain.log_probs is None and plain.tokens == sample.tokens
    assert len(sample.log_probs) == 30 and max(sample.log_probs) < 0


def test_what_ended_a_text_is_told():
  whole = _char_model().generate('bad', max_new_tokens=30)[0]
  assert (whole.ended, whole.slides) == ('length', 5)  # 33 tokens, 5 more from each window on
  (short,) = _char_model().generate('bad', max_new_tokens=30, stop=['zzz', whole.text[9:11]])
  assert short.ended == 'stop' and short.text == whole.text[: whole.text.index(whole.text[9:11])]
  assert short.tokens == whole.tokens[: len(short.text) + 2]


@pytest.mark.parametrize('stop', [[], ['c'], ['ab', 'ja', 'fff']], ids=str)
@pytest.mark.parametrize('seed', range(3))
def test_a_stream_is_the_generated_text_in_parts(stop, seed):
  options = {'max_new_tokens': 40, 'seed': seed, 'stop': stop, 'temperature': 2.0}
  (sample,) = _char_model().generate('bad', **options)
  parts = list(_char_model().stream('bad', **options))
  assert ''.join(parts) == sample.text and '' not in parts
  assert len(parts) > 2 or len(sample.text) < 6
  bytes_model = _byte_model()
  (sample,) = bytes_model.generate('bad', **{**options, 'stop': []})
  parts = list(bytes_model.stream('bad', **{**options, 'stop': []}))
  assert ''.join(parts) == sample.text


def test_a_bad_option_of_a_stream_is_told_before_the_first_part():
  with pytest.raises(errors.UserError, match='seed: -1'):
    _char_model().stream('bad', seed=-1)
  with pytest.raises(errors.UserError, match='no tokenizer'):
    _bare_model().stream([1])


def test_a_sample_ends_before_end_of_text():
  prompts = ['bad'] * 3
  endless = _char_model().generate(prompts, max_new_tokens=20)
  end = endless[1].tokens[2]

  ending = char.CharTokenizer(LETTERS)
  ending.end_of_text = end
  model = _model(len(LETTERS), ending)
  for sample, whole in zip(model.generate(prompts, max_new_tokens=20), endless, strict=True):
    over = end in whole.tokens
    tokens = whole.tokens[: whole.tokens.index(end)] if over else whole.tokens
    assert sample.ended == ('end_of_text' if over else 'length')
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
  (line,) = str(caught.value).splitlines()
  assert line.strip().startswith('prompts[1]: ') and all(word in line for word in words)


def test_all_bad_prompts_come_at_once():
  with pytest.raises(errors.UserError) as caught:
    _bare_model().generate(['bad', [1], [99], [1.5]])
  lines = str(caught.value).splitlines()[1:]
  names = ['prompts[0]', 'prompts[2]', 'prompts[3]']
  assert [line.strip().partition(':')[0] for line in lines] == names
  assert 'has no tokenizer' in lines[0]


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


def test_an_embedding_is_the_mean_of_what_the_output_layer_reads():
  config, params = _parts(len(LETTERS))
  texts = ['bad', 'j', 'abcdefgh', [1, 2], 'cab', '']
  vectors = _char_model().embed(texts, batch_size=4)
  assert vectors.shape == (6, 8) and vectors.dtype == np.float32
  # Tied: logits = hidden · embeddingᵀ, and 11 rows of width 8 give the hidden state back.
  embedding_VD = np.asarray(params['wte']['embedding'])[: len(LETTERS)]
  for prompt, vector in zip(texts, vectors, strict=True):
    tokens = [LETTERS.index(c) for c in prompt or '\n'] if isinstance(prompt, str) else prompt
    logits_LV = np.asarray(_char_model().logits([tokens])[0], np.float64)
    hidden_LD = np.linalg.lstsq(embedding_VD.astype(np.float64), logits_LV.T, rcond=None)[0].T
    np.testing.assert_allclose(vector, hidden_LD.mean(0), atol=1e-4)
  np.testing.assert_allclose(_char_model().embed('bad'), vectors[:1], atol=1e-6)
  assert _char_model().embed([]).shape == (0, 8)
  with pytest.raises(errors.UserError, match=r'prompts\[1\]'):
    _char_model().embed(['bad', 'z'])
