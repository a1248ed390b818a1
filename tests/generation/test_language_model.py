"""A model takes text or token ids and returns text and token ids, or names what is invalid."""

import functools
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import (
  beam,
  decode,
  language_model,
  loop,
  options,
  prompts,
  speculative,
)
from tests.generation import tiny

BLOCK, LETTERS = tiny.BLOCK, tiny.LETTERS
PROMPTS = ['a', 'bad.', 'hello,worlds!', 'bad.']  # as many rows as other tests have


def _samples(prompts: Any = PROMPTS, **options: Any) -> Any:
  options = {'max_new_tokens': 30, 'log_probs': True, **options}
  return tiny.model().generate(prompts, **options)


def _ids(text):
  return [LETTERS.index(c) for c in text]


def test_text_is_the_decoded_tokens():
  for sample in _samples():
    assert len(sample.tokens) == 30 and all(type(token) is int for token in sample.tokens)
    assert sample.text == ''.join(LETTERS[token] for token in sample.tokens)


def test_text_and_its_token_ids_are_the_same_prompt():
  samples = _samples()
  assert _samples([_ids(prompt) for prompt in PROMPTS]) == samples
  bare = tiny.bare().generate([np.array(_ids(prompt)) for prompt in PROMPTS], max_new_tokens=30)
  found = [(sample.text, sample.tokens, sample.log_probs) for sample in bare]
  assert found == [(None, sample.tokens, None) for sample in samples]  # the others on request
  assert _samples(PROMPTS[0])[0].tokens == samples[0].tokens
  assert _samples([]) == []


def test_every_option_reaches_the_loop(monkeypatch):
  given: dict[str, Any] = {}

  def run(search, rows, sampling, **arguments):
    given.update(search=search, sampling=sampling, **arguments)
    return iter(())

  monkeypatch.setattr(loop, 'run', run)
  values = {'temperature': 0.5, 'top_p': 0.6, 'min_p': 0.1, 'typical_p': 0.7}
  values |= {'repetition_penalty': 1.5, 'presence_penalty': 0.3, 'frequency_penalty': 0.2}
  counts: dict[str, Any] = {'seed': 9, 'min_new_tokens': 3, 'top_k': 7, 'no_repeat_ngram': 2}
  model = tiny.model(ends=True)
  calls: list[Any] = [model.generate, lambda p, **options: list(model.stream(p, **options))]
  for call in calls:
    given.clear()
    call('bad', max_new_tokens=4, stop=['x'], ban=['a'], logit_bias={'b': 2}, **values, **counts)
    sampling = given['sampling']
    assert sampling.values == {name: np.float32(value) for name, value in values.items()}
    assert {name: getattr(sampling, name) for name in counts} == counts
    assert sampling.eos_id == tiny.END and given['max_new_tokens'] == 4 and given['at_most'] > 0
    assert sampling.bias_V[_ids('ab')].tolist() == [-np.inf, 2]
    assert given['search'].advance is decode.advance
  _samples('bad', num_beams=3, length_penalty=2.0, max_new_tokens=4)
  assert given['search'].advance.func is beam.advance
  assert given['search'].advance.keywords == {'num_beams': 3, 'length_penalty': 2.0}
  _samples('bad', draft=tiny.model(), draft_tokens=6)
  assert given['search'].advance.func is speculative.advance
  assert given['search'].advance.keywords == {'num_proposals': 7}


@pytest.mark.parametrize('drafted', [False, True])
def test_a_stop_string_ends_its_text_and_no_other(drafted):
  run = functools.partial(_samples, draft=tiny.model(noise=0.1) if drafted else None)
  whole = run()
  stop = whole[1].text[9:11]
  stopped = run(stop=['…', stop])
  for sample, before in zip(stopped, whole, strict=True):
    assert sample.ended == ('stop' if stop in before.text else 'length')
    assert sample.text == before.text.partition(stop)[0]
    count = len(sample.text) + 2 * (sample.ended == 'stop')
    assert sample.tokens == before.tokens[:count] and sample.log_probs == before.log_probs[:count]
  assert {sample.ended for sample in stopped} == {'stop', 'length'}


@pytest.mark.parametrize('stop', [[], ['c'], ['ab', 'ja', 'fff'], 'drafted'], ids=str)
def test_a_stream_is_the_generated_text_in_parts(stop):
  for seed in range(3):
    options: dict[str, Any] = {'max_new_tokens': 30, 'seed': seed, 'temperature': 2.0}
    options |= {'draft': tiny.model(noise=0.1)} if stop == 'drafted' else {'stop': stop}
    (sample,) = _samples('bad', log_probs=False, **options)
    stream, parts = tiny.model().stream('bad', **options), []
    while True:
      try:
        parts.append(next(stream))
      except StopIteration as end:
        assert end.value == sample
        break
    assert ''.join(parts) == sample.text and '' not in parts
    assert len(parts) > 2 or len(sample.text) < 6


def test_progress_counts_the_tokens_of_the_longest_text():
  seen: list[Any] = []
  stop = _samples()[1].text[9:11]  # ends some of them
  _samples(progress=lambda *args: seen.append(args), stop=[stop])
  assert seen[-1] == ('tokens', 30, 30) and seen == sorted(seen)
  assert {phase for phase, _, _ in seen} == {'tokens'} and len(seen) > 1


@pytest.mark.parametrize(
  ('letters', 'special_tokens', 'start'),
  [('ab\nc', [], 2), ('abc', [], 0), ('abc', ['eos'], 3), ('a', ['bos', 'eos'], 1)],
)
def test_an_empty_prompt_is_the_start_of_a_text(letters, special_tokens, start):
  tokenizer = char.CharTokenizer(letters, special_tokens)
  config = config_lib.ModelConfig(vocab_size=tokenizer.vocab_size)
  model = language_model.LanguageModel(config, None, tokenizer)
  assert model.encode('') == model.encode([]) == [start]
  bos = [1] if 'bos' in special_tokens else []
  assert model.encode('a') == [*bos, letters.index('a')] and model.encode([0]) == [0]


@pytest.mark.parametrize(
  'prompt',
  [[1] * (BLOCK + 1), 'a' * (BLOCK + 1), [1, 30], [-1], [1.5], [[1]], [[1], [2, 3]], 7, 'a?b'],
  ids=str,
)
def test_invalid_prompts_are_named(prompt):
  model = tiny.model()
  several = ['bad', prompt, 'a', '?']
  assert tiny.refused(model.generate, several) == ['prompts[1]', 'prompts[3]']
  is_long = isinstance(prompt, str | list) and len(prompt) > BLOCK  # which can be embedded
  assert tiny.refused(model.embed, several) == ['texts[1]'] * (not is_long) + ['texts[3]']
  assert tiny.refused(model.stream, prompt) == tiny.refused(model.encode, prompt) == ['prompt']


def test_a_repeated_prompt_is_encoded_once(monkeypatch):
  tokenizer: Any = tiny.model().tokenizer
  encode = mock.Mock(wraps=tokenizer.encode)
  monkeypatch.setattr(tokenizer, 'encode', encode)
  _samples()
  assert encode.call_args_list == [mock.call(prompt) for prompt in PROMPTS[:3]]
  both = prompts.encode_all(tiny.model().config, char.CharTokenizer('[0]'), ['[0]', [0]])
  assert both == [[0, 1, 2], [0]]  # ids are no text


_LOAD: Any = gpt_jax.load


def _untyped() -> Any:
  return tiny.model()


@pytest.mark.parametrize(
  ('key', 'call'),
  [
    ('seed', lambda: tiny.model().stream('bad', seed=-1)),
    ('prompt', lambda: tiny.bare().stream([1])),
    ('prompt', lambda: tiny.bare().encode('a')),
    ('prompts[0]', lambda: tiny.bare().generate(['bad'])),
    ('stop', lambda: tiny.bare().generate([[1]], stop=['x'])),
    ('ban', lambda: tiny.bare().generate([[1]], ban=['x'])),
    ('batch_size', lambda: tiny.model().embed(['bad'], batch_size=0)),
    ('pooling', lambda: tiny.model().embed(['bad'], pooling='max')),
    ('model', lambda: tiny.model(classes='neg,pos').generate(['bad'])),
    ('model', lambda: tiny.model(classes='neg,pos').stream('bad')),
    ('tokens_BL', lambda: tiny.model().logits(np.array([1, 2]))),
    ('tokens_BL', lambda: tiny.model().logits(np.zeros((1, 0), int))),
    ('tokens_BL', lambda: tiny.model().logits([[1], [30]])),
    ('tokens_BL', lambda: tiny.model().logits(np.array([[0.5]]))),
    ('tokens_BL', lambda: tiny.model().logits([[1] * (BLOCK + 1)])),
    ('tokens_BL', lambda: tiny.model().logits([[1, 2], [3]])),
    *(('prompts', lambda wrong=x: _untyped().generate(wrong)) for x in (5, None, b'a', {'a': 1})),
    *(('texts', lambda wrong=x: _untyped().embed(wrong)) for x in (5, None, b'a', {'a': 1})),
    ('batch_size', lambda: _untyped().embed(['bad'], batch_size=1.5)),
    ('request', lambda: _untyped().generate('bad', request={'seed': 1})),
    ('request', lambda: tiny.model().stream('bad', request=options.make(), seed=1)),
    ('dtype', lambda: gpt_jax.load('nowhere', dtype='int4')),
    *(('path', functools.partial(_LOAD, path)) for path in (None, 5, b'run', 'ru\0n')),
  ],
)
def test_invalid_arguments_are_named_at_once(key, call):
  assert tiny.refused(call) == [key]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_logits_are_the_models_without_the_padding(dtype):
  model, tokens_BL = tiny.model(dtype=dtype), [[1, 2, 3], [4, 5, 6]]
  result_BLV = model.logits(tokens_BL)
  assert result_BLV.shape == (2, 3, 30) and result_BLV.dtype == jnp.float32
  apply = jax.jit(models.make(model.config).apply)
  expected_BLV, _ = apply({'params': model.params}, jnp.array(tokens_BL))
  tolerance = 1e-5 if dtype == 'float32' else 0.05
  np.testing.assert_allclose(result_BLV, expected_BLV[..., :30], atol=tolerance, rtol=tolerance)


def test_an_embedding_is_the_mean_of_what_the_output_layer_reads():
  model = tiny.model()
  texts: list[Any] = ['bad', 'j', 'abcdefgh', [1, 2], 'cab', '']
  vectors = model.embed(texts, batch_size=4)
  assert vectors.shape == (6, 16) and vectors.dtype == np.float32
  # Tied: logits = hidden · embeddingᵀ, and 30 rows of width 16 give the hidden state back.
  embedding_VD = np.asarray(model.params['wte']['embedding'], np.float64)[:30]
  for prompt, vector in zip(texts, vectors, strict=True):
    logits_LV = np.asarray(model.logits([model.encode(prompt)])[0], np.float64)
    hidden_LD = np.linalg.lstsq(embedding_VD, logits_LV.T, rcond=None)[0].T
    np.testing.assert_allclose(vector, hidden_LD.mean(0), atol=1e-4)
  np.testing.assert_allclose(model.embed('bad'), vectors[:1], atol=1e-6)
  assert model.embed([]).shape == (0, 16)


@pytest.mark.parametrize('kind', ['gpt', 'lstm'])
@pytest.mark.parametrize('pooling', ['mean', 'last'])
def test_a_long_text_is_read_in_windows_that_do_not_see_each_other(kind, pooling):
  tied = kind == 'gpt'
  model = tiny.model(kind=kind, tie_embeddings=tied, lstm_width=8, block_size=40)
  texts = [tiny.prompt(length) for length in (90, 1, 40, 41, 80)]  # rows of two lengths
  module, expected = models.make(model.config), []
  hidden = functools.partial(module.apply, {'params': model.params}, method='hidden')
  for text in texts:
    windows = [text[i : i + 40] for i in range(0, len(text), 40)]
    states_LD = np.concatenate([hidden(np.array([window]))[0][0] for window in windows])
    expected.append(states_LD.mean(0) if pooling == 'mean' else states_LD[-1])
  vectors = model.embed(texts, pooling=pooling, batch_size=3)
  assert vectors.shape == (5, model.config.hidden_width)
  np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_embedding_counts_the_windows_that_are_done():
  seen: list[Any] = []
  model = tiny.model()
  model.embed(['bad', 'a' * (2 * BLOCK + 1)], batch_size=2, progress=lambda *a: seen.append(a))
  assert seen == [('reading', 2, 4), ('reading', 4, 4)]


# Models on disk.


@pytest.fixture(scope='module')
def untied(request):
  return request.config.rootpath / 'tests/weights/fixtures/huggingface/untied'


@pytest.mark.parametrize('name', ['untied', 'tied'])
@pytest.mark.parametrize('dtype', ['auto', 'bfloat16', 'int8'])
def test_matrices_have_the_requested_type_the_rest_is_float32_on_a_cpu(untied, name, dtype):
  whole = gpt_jax.load(untied.with_name(name), dtype='float32')
  model = gpt_jax.load(untied.with_name(name), dtype=dtype)
  assert model.config.dtype == 'float32' and model.step is None
  leaves = jax.tree_util.tree_leaves_with_path(whole.params)
  paths = {tuple(key.key for key in path) for path, _ in leaves} | {('lm_head',)}
  for path in paths:
    leaf: Any = functools.reduce(lambda tree, key: tree.get(key), path, model.params)
    if dtype != 'auto' and path[-1] in ('kernel', 'lm_head'):
      assert leaf.values_FD.dtype == dtype and (leaf.scale_F1 is None) == (dtype == 'bfloat16')
    elif path != ('lm_head',) or name == 'untied':
      assert leaf.dtype == 'float32', path


@pytest.mark.parametrize('name', ['untied', 'tied'])
@pytest.mark.parametrize(('dtype', 'bits'), [('bfloat16', 8), ('int8', 7)])
def test_quantized_matrices_change_logits_by_their_rounding_alone(untied, name, dtype, bits):
  whole, model = (gpt_jax.load(untied.with_name(name), dtype=d) for d in ('float32', dtype))
  for tokens_BL in (np.array([[3]]), np.arange(14).reshape(2, 7)):
    exact, rounded = np.asarray(whole.logits(tokens_BL)), np.asarray(model.logits(tokens_BL))
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 2.0 ** -(bits + 8) < error < 2.0 ** -(bits - 3)


def test_a_hugging_face_model_generates_without_optax_and_orbax(request):
  code = (
    'import sys, gpt_jax\n'
    'model = gpt_jax.load("tests/weights/fixtures/huggingface/tied")\n'
    'assert len(model.generate([[1, 2]], max_new_tokens=3)[0].tokens) == 3\n'
    'print(sorted({"optax", "orbax", "jax"} & {name.partition(".")[0] for name in sys.modules}))\n'
  )
  run = functools.partial(subprocess.run, capture_output=True, check=True, text=True)
  done = run([sys.executable, '-c', code], cwd=request.config.rootpath)
  assert done.stdout == "['jax']\n"


def test_an_encoder_embeds_texts_as_alone_and_predicts_no_next_token():
  made = tiny.model(kind='encoder')
  texts = [tiny.prompt(n, seed=n) for n in (3, 9, 13, 20)]
  together = made.embed(texts)
  for text, vector_D in zip(texts, together, strict=True):
    windows = [text[i : i + tiny.BLOCK] for i in range(0, len(text), tiny.BLOCK)]
    model = models.make(made.config)
    states = [
      model.apply({'params': made.params}, np.array([window]), method='hidden')[0][0]
      for window in windows
    ]
    np.testing.assert_allclose(vector_D, np.concatenate(states).mean(0), rtol=0, atol=1e-5)
  assert tiny.refused(made.generate, 'a') == ['model']
  assert tiny.refused(tiny.model().generate, 'a', draft=made) == ['draft']
