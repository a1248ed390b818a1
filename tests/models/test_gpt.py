"""The model is GPT-2: sizes, names, numbers, no gradient from the future; options change no result.

Shapes in names: B batch, L length, J length again (of the inputs), D width, H heads, K head width,
M cached length, V vocabulary.
"""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import attention, gpt

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
BLOCK = 8
VOCAB = 30

# Half of the time of these tests would go into optimising programs that run once.
_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def _config(**changes):
  tiny = {'n_layer': 2, 'n_head': 2, 'n_embd': 16, 'block_size': BLOCK, 'vocab_size': VOCAB}
  return config_lib.ModelConfig(**{**tiny, 'pad_vocab_to': 1, **changes})


def _draw(shapes):
  """Random parameters, none of them 0 or 1 as some are initially, which would hide mistakes."""
  rng = np.random.default_rng(1)

  def one(path, leaf):
    mean, std = {'scale': (1, 0.2), 'bias': (0, 0.2)}.get(path[-1].key, (0, 0.3))
    return rng.normal(mean, std, leaf.shape).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(one, shapes)


def _params(config):
  """Random parameters; those of scanned layers are the unrolled ones', stacked."""
  if not config.scan_layers:
    return _draw(gpt.abstract_params(config))
  return _stack(_params(_config(bias=config.bias)))


def _stack(params):
  layers = [params[f'h_{i}'] for i in range(2)]
  rest = {name: leaf for name, leaf in params.items() if not name.startswith('h_')}
  return {**rest, 'h': jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


def _tokens(*shape):
  return np.random.default_rng(2).integers(0, VOCAB, shape).astype(np.int32)


@functools.cache
def _jitted(**changes):
  model = gpt.GPT(_config(**changes))
  return _jit(model.apply, static_argnames='deterministic')


def _logits(params, tokens_BL, **changes):
  return np.asarray(_jitted(**changes)({'params': params}, tokens_BL)[0])


def _paths(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _close(actual, expected, *, rtol):
  """Trees equal to `rtol` of each array's largest entry: sums are rounded in another order."""
  found = _paths(actual)
  assert found.keys() == _paths(expected).keys()
  for name, leaf in _paths(expected).items():
    atol = rtol * float(np.abs(leaf).max())
    np.testing.assert_allclose(found[name], leaf, rtol=0, atol=atol, err_msg=name)


# The published architecture.


def _reference_forward(params, tokens_BL, n_head):
  """GPT-2 as Radford et al. (2019) and its published code describe it, in NumPy and float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

  def linear(x, layer):
    return x @ layer['kernel'] + layer.get('bias', 0)

  def norm(x_BLD, layer):
    centred = x_BLD - x_BLD.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * layer['scale'] + layer.get('bias', 0)

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

  def attention(x_BLD, layer):
    B, L, D = x_BLD.shape
    q, k, v = np.split(linear(x_BLD, layer['c_attn']), 3, axis=-1)
    y_BLD = np.zeros((B, L, D))
    for head in np.split(np.arange(D), n_head):
      scores_BLL = q[..., head] @ k[..., head].swapaxes(1, 2) / math.sqrt(D // n_head)
      weights_BLL = np.exp(scores_BLL) * np.tril(np.ones((L, L)))
      y_BLD[..., head] = weights_BLL / weights_BLL.sum(-1, keepdims=True) @ v[..., head]
    return linear(y_BLD, layer['c_proj'])

  x_BLD = p['wte']['embedding'][tokens_BL] + p['wpe']['embedding'][: tokens_BL.shape[1]]
  for i in range(2):
    h = p[f'h_{i}']
    x_BLD = x_BLD + attention(norm(x_BLD, h['ln_1']), h['attn'])
    x_BLD = x_BLD + linear(
      gelu(linear(norm(x_BLD, h['ln_2']), h['mlp']['c_fc'])), h['mlp']['c_proj']
    )
  return norm(x_BLD, p['ln_f']) @ p.get('lm_head', p['wte']['embedding']).T


@pytest.mark.parametrize(
  'changes', [{'n_head': 4}, {'bias': False}, {'tie_embeddings': False}], ids=str
)
def test_logits_are_those_of_a_plain_numpy_gpt2(changes):
  config = _config(**changes)
  params, tokens_BL = _params(config), _tokens(3, BLOCK - 1)
  logits_BLV = _logits(params, tokens_BL, **changes)
  expected_BLV = _reference_forward(params, np.asarray(tokens_BL), config.n_head)
  assert logits_BLV.dtype == np.float32 and expected_BLV.std() > 1
  # Logits are about 10 at most and some 20 roundings deep, each of 2^-24: 10 × 20 × 6e-8 = 1.2e-5.
  np.testing.assert_allclose(logits_BLV, expected_BLV, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
  'name, count',
  [
    ('gpt2_small', 124_439_808),
    ('gpt2_medium', 354_823_168),
    ('gpt2_large', 774_030_080),
    ('gpt2_xl', 1_557_611_200),
  ],
)
def test_parameters_are_as_many_as_published(name, count):
  model = runpy.run_path(str(CONFIGS / f'{name}.py'))['get_config']().model
  model.vocab_size = 50257
  model.pad_vocab_to = 1
  assert sum(leaf.size for leaf in jax.tree.leaves(gpt.abstract_params(model))) == count


def _published_shapes(D):
  block = {
    'ln_1/scale': (D,),
    'ln_1/bias': (D,),
    'attn/c_attn/kernel': (D, 3 * D),
    'attn/c_attn/bias': (3 * D,),
    'attn/c_proj/kernel': (D, D),
    'attn/c_proj/bias': (D,),
    'ln_2/scale': (D,),
    'ln_2/bias': (D,),
    'mlp/c_fc/kernel': (D, 4 * D),
    'mlp/c_fc/bias': (4 * D,),
    'mlp/c_proj/kernel': (4 * D, D),
    'mlp/c_proj/bias': (D,),
  }
  outside = {'wte/embedding': (VOCAB, D), 'wpe/embedding': (BLOCK, D)}
  return {**outside, 'ln_f/scale': (D,), 'ln_f/bias': (D,)}, block


def _shapes(config):
  return {name: leaf.shape for name, leaf in _paths(gpt.abstract_params(config)).items()}


def test_parameters_have_the_published_names_and_shapes():
  outside, block = _published_shapes(16)
  layers = {f'h_{i}/{name}': shape for i in range(2) for name, shape in block.items()}
  assert _shapes(_config()) == {**outside, **layers}


def test_scanned_layers_have_the_same_names_and_one_more_axis():
  outside, block = _published_shapes(16)
  layers = {f'h/{name}': (2, *shape) for name, shape in block.items()}
  assert _shapes(_config(scan_layers=True)) == {**outside, **layers}


def test_without_bias_there_is_none_and_nothing_else_changes():
  with_bias, without = _shapes(_config()), _shapes(_config(bias=False))
  assert without == {k: shape for k, shape in with_bias.items() if not k.endswith('/bias')}
  assert len(with_bias) - len(without) == 2 * 6 + 1


def test_untied_embeddings_are_one_more_table():
  tied, untied = _config(pad_vocab_to=16), _config(pad_vocab_to=16, tie_embeddings=False)
  assert _shapes(untied) == {**_shapes(tied), 'lm_head': (32, 16)}


@pytest.mark.parametrize('tie_embeddings', [True, False])
def test_padding_does_not_count_as_parameters(tie_embeddings):
  shapes = _shapes(_config(tie_embeddings=tie_embeddings))
  padded = _config(tie_embeddings=tie_embeddings, pad_vocab_to=128)
  assert gpt.parameter_count(padded) == sum(map(math.prod, shapes.values()))


# Initialisation.


@pytest.fixture(scope='module', params=[False, True], ids=['unrolled', 'scanned'])
def initialised(request):
  config = _config(n_embd=64, pad_vocab_to=128, scan_layers=request.param)
  params = _jit(gpt.GPT(config).init)(jax.random.key(0), _tokens(1, 1))['params']
  return config, jax.device_get(params)


def test_initial_values_are_gpt2s(initialised):
  _, params = initialised
  for name, leaf in _paths(params).items():
    assert leaf.dtype == jnp.float32, name
    if name.endswith('bias'):
      assert (leaf == 0).all(), name
    elif name.endswith('scale'):
      assert (leaf == 1).all(), name
    else:
      # Four such additions to the residual stream in two layers: 0.02 / sqrt(4).
      std = 0.01 if 'c_proj' in name else 0.02
      # Five standard errors: of n normal draws, the mean's is σ/√n, the deviation's σ/√(2n).
      error = 5 * std / math.sqrt(leaf.size)
      assert abs(leaf.mean()) < error, name
      assert abs(leaf.std() - std) < error / math.sqrt(2), name


def test_no_two_layers_begin_alike(initialised):
  _, params = initialised
  layers = params['h'] if 'h' in params else _stack(params)['h']
  for name, (first, second) in _paths(layers).items():
    if name.endswith('kernel'):
      correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
      assert abs(correlation) < 5 / math.sqrt(first.size), name


def test_initial_loss_is_that_of_guessing(initialised):
  config, params = initialised
  tokens_BL = _tokens(128, BLOCK + 1)
  logits_BLV, _ = _jit(gpt.GPT(config).apply)({'params': params}, tokens_BL[:, :-1])
  losses_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), tokens_BL[:, 1:, None], axis=-1)
  # ln_f's output has the norm √64, so logits have a deviation σ of 0.02 √64 = 0.16. Their expected
  # loss is ln V + σ²/2, 0.013 more than guessing, and the mean of 1024 has a standard error of
  # σ/√1024 = 0.005. The 98 rows of padding would cost ln(128/30) = 1.45.
  assert abs(losses_BL.mean() - math.log(VOCAB)) < 0.013 + 4 * 0.005


# Causality.


@pytest.mark.parametrize('scan_layers', [False, True])
def test_no_gradient_comes_from_the_future(scan_layers):
  # Row j of wpe enters the model at position j and nowhere else.
  config = _config(scan_layers=scan_layers)
  params, tokens_BL = _params(config), _tokens(1, BLOCK)

  def logits_LV(wpe_JD):
    logits_BLV, _ = gpt.GPT(config).apply(
      {'params': {**params, 'wpe': {'embedding': wpe_JD}}}, tokens_BL
    )
    return logits_BLV[0]

  gradients_LVJD = _jit(jax.jacrev(logits_LV))(params['wpe']['embedding'])
  size_LJ = np.abs(gradients_LVJD).max(axis=(1, 3))
  past_LJ = np.tril(np.ones((BLOCK, BLOCK), bool))
  assert (size_LJ[~past_LJ] == 0).all()
  assert (size_LJ[past_LJ] > 1e-3).all()


def test_a_token_changes_the_predictions_from_its_position_on_only():
  tokens_L = _tokens(BLOCK)
  changed_JL = np.where(np.eye(BLOCK, dtype=bool), (tokens_L + 1) % VOCAB, tokens_L)
  logits_BLV = _logits(_params(_config()), np.concatenate([tokens_L[None], changed_JL]))
  differs_JL = (logits_BLV[1:] != logits_BLV[0]).any(-1)
  np.testing.assert_array_equal(differs_JL, np.triu(np.ones((BLOCK, BLOCK), bool)))


# Decoding with a cache.


@pytest.mark.parametrize('changes', [{}, {'scan_layers': True}], ids=str)
@pytest.mark.parametrize('chunks', [[1] * BLOCK, [3, 4, 1]], ids=str)
def test_cached_decoding_is_the_full_forward(changes, chunks):
  config = _config(**changes)
  params, tokens_BL = _params(config), _tokens(3, BLOCK)
  cache, pieces, start = attention.empty_cache(config, 3, BLOCK), [], 0
  for length in chunks:
    piece_BL = tokens_BL[:, start : start + length]
    logits_BLV, cache = _jitted(**changes)({'params': params}, piece_BL, cache=cache)
    start += length
    assert cache.length_B.tolist() == [start] * 3
    pieces.append(logits_BLV)
  # Only the order of the sums over positions differs, in numbers of up to 10.
  np.testing.assert_allclose(
    np.concatenate(pieces, axis=1), _logits(params, tokens_BL, **changes), rtol=0, atol=1e-5
  )


def test_what_stands_in_the_unfilled_cache_does_not_count():
  params, tokens_BL = _params(_config()), _tokens(3, 3)
  empty = attention.empty_cache(_config(), 3, BLOCK)
  used = attention.KVCache(jax.tree.map(lambda x: x + 1e3, empty.layers), empty.length_B)
  results = [_jitted()({'params': params}, tokens_BL, cache=cache)[0] for cache in (empty, used)]
  np.testing.assert_array_equal(*results)


def test_without_a_cache_none_comes_back():
  assert _jitted()({'params': _params(_config())}, _tokens(3, BLOCK))[1] is None


# Options that must change nothing.


def _loss(params, config):
  """A loss in which every logit of the real vocabulary counts, the logits, and the gradient."""
  tokens_BL = _tokens(4, BLOCK + 1)

  def mean_loss(params):
    logits_BLV, _ = gpt.GPT(config).apply({'params': params}, tokens_BL[:, :-1])
    log_probs_BLV = jax.nn.log_softmax(logits_BLV)
    targets_BL1 = tokens_BL[:, 1:, None]
    return -jnp.take_along_axis(log_probs_BLV, targets_BL1, axis=-1).mean(), logits_BLV

  (loss, logits_BLV), gradients = _jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
  return np.asarray(loss), np.asarray(logits_BLV), jax.device_get(gradients)


@functools.cache
def _plain_loss():
  return _loss(_params(_config()), _config())


@pytest.mark.parametrize(
  'changes',
  [{'remat': True}, {'scan_layers': True}, {'remat': True, 'scan_layers': True}],
  ids=str,
)
def test_remat_and_scan_change_neither_loss_nor_gradients(changes):
  config = _config(**changes)
  loss, _, gradients = _loss(_params(config), config)
  expected_loss, _, expected = _plain_loss()
  # The same sums, which XLA may fuse otherwise: a few roundings of 6e-8.
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
  _close(gradients, _stack(expected) if config.scan_layers else expected, rtol=3e-6)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_remat_keeps_less_for_the_backward_pass(scan_layers):
  def kept(remat):
    config = _config(remat=remat, scan_layers=scan_layers)
    params = gpt.abstract_params(config)

    def logits_BLV(params):
      return gpt.GPT(config).apply({'params': params}, _tokens(16, BLOCK))[0]

    backward = jax.eval_shape(lambda params: jax.vjp(logits_BLV, params)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  # Of a block: its input, D a token, instead of 3 D of c_attn, 4 D of c_fc, the weights and more.
  assert kept(remat=True) < kept(remat=False) / 3


def test_padding_of_the_vocabulary_changes_nothing():
  params = _params(_config())

  def with_table(change, params):
    return {**params, 'wte': jax.tree.map(change, params['wte'])}

  # Rows so large that a padding that took part would win every prediction.
  padding_VD = np.full((2, 16), 9, np.float32)
  with_padding = with_table(lambda rows_VD: np.concatenate([rows_VD, padding_VD]), params)
  loss, logits_BLV, gradients = _plain_loss()
  padded_loss, padded_BLV, padded_gradients = _loss(with_padding, _config(pad_vocab_to=16))
  assert padded_BLV.shape[-1] == 32
  np.testing.assert_allclose(padded_BLV[..., :VOCAB], logits_BLV, rtol=0, atol=1e-5)
  assert (jax.nn.softmax(padded_BLV)[..., VOCAB:] == 0).all()
  np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
  _close(with_table(lambda rows_VD: rows_VD[:VOCAB], padded_gradients), gradients, rtol=3e-6)
  assert (padded_gradients['wte']['embedding'][VOCAB:] == 0).all()


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits_in_it():
  config = _config(dtype='bfloat16')
  assert {leaf.dtype.name for leaf in jax.tree.leaves(gpt.abstract_params(config))} == {'float32'}
  params, tokens_BL = _params(_config()), _tokens(8, BLOCK)
  exact_BLV = _logits(params, tokens_BL)
  rounded_BLV = _logits(params, tokens_BL, dtype='bfloat16')
  assert rounded_BLV.dtype == np.float32
  # bfloat16 rounds by at most 2^-9 = 0.2 %; some 20 independent roundings one after the other make
  # √20 times that, 0.9 %. Less than a tenth of one rounding would not be bfloat16.
  error = np.sqrt(((rounded_BLV - exact_BLV) ** 2).mean()) / exact_BLV.std()
  assert 2e-4 < error < 0.02


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_module_computes_in_the_compute_type(dtype):
  config = _config(dtype=dtype)
  apply = functools.partial(gpt.GPT(config).apply, capture_intermediates=True)
  variables = {'params': gpt.abstract_params(config)}
  (logits_BLV, _), captured = jax.eval_shape(
    functools.partial(apply, mutable=['intermediates']), variables, _tokens(1, 2)
  )
  types = {path: leaf.dtype.name for path, leaf in _paths(captured).items()}
  top = 'intermediates/__call__/0/0'  # the logits
  assert types.pop(top) == logits_BLV.dtype.name == 'float32'
  # The embeddings, ln_f, and two blocks of two norms, four products, three dropouts and themselves.
  assert len(types) >= 3 + 2 * (2 + 4 + 3)
  assert set(types.values()) == {dtype}


# Dropout.


def _dropped(params, config, tokens_BL, key):
  """The outputs of all dropouts, by the path of their module."""
  _, variables = _jit(
    functools.partial(
      gpt.GPT(config).apply,
      deterministic=False,
      capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
      mutable=['intermediates'],
    )
  )({'params': params}, tokens_BL, rngs={'dropout': key})
  return _paths(variables['intermediates'])


def test_dropout_is_on_embeddings_attention_and_residual_branches():
  rate, config = 0.25, _config(dropout=0.25)
  params, tokens_BL = _params(config), _tokens(256, BLOCK)
  outputs = _dropped(params, config, tokens_BL, jax.random.key(0))
  shapes = sorted(leaf.shape for leaf in outputs.values())
  B = len(tokens_BL)
  assert shapes == sorted([(B, BLOCK, 16)] * 5 + [(B, 2, BLOCK, BLOCK)] * 2)
  seen_LM = np.tril(np.ones((BLOCK, BLOCK), bool))
  for name, leaf in outputs.items():
    leaf = np.asarray(leaf)
    if leaf.ndim == 4:
      # A row of attention weights sums to 1, and dropout keeps the mean. A sum of weights that are
      # each 0 or 4/3 of their value deviates by at most √(rate / (1 - rate)) = 0.58.
      rows = leaf.sum(-1)
      assert abs(rows.mean() - 1) < 5 * 0.58 / math.sqrt(rows.size), name
      leaf = leaf[..., seen_LM]
    # Five standard errors of a share of n draws.
    error = 5 * math.sqrt(rate * (1 - rate) / leaf.size)
    assert abs((leaf == 0).mean() - rate) < error, name

  table = params['wte']['embedding'][tokens_BL] + params['wpe']['embedding']
  embedded_BLD = next(leaf for name, leaf in outputs.items() if name.count('/') == 2)
  expected_BLD = np.where(embedded_BLD == 0, 0, table / (1 - rate))
  np.testing.assert_allclose(embedded_BLD, expected_BLD, rtol=1e-6)


def test_dropout_is_a_function_of_its_key_and_off_when_deterministic():
  tokens_BL, params = _tokens(2, BLOCK), _params(_config())
  apply = _jitted(dropout=0.25)

  def logits(seed, deterministic):
    rngs = {'dropout': jax.random.key(seed)}
    return apply({'params': params}, tokens_BL, deterministic=deterministic, rngs=rngs)[0]

  np.testing.assert_array_equal(logits(0, True), _logits(params, tokens_BL))
  np.testing.assert_array_equal(logits(0, False), logits(0, False))
  assert not np.isclose(logits(0, False), logits(1, False)).any(-1).all()
  assert not np.isclose(logits(0, False), logits(0, True)).any(-1).all()


@pytest.mark.parametrize('scan_layers', [False, True])
def test_layers_drop_out_independently(scan_layers):
  # Each layer adds mask / (1 - rate) to a stream of zeros, and nothing else. The last LayerNorm
  # keeps levels apart, and the output layer shows the stream itself.
  config = _config(
    dropout=0.5, vocab_size=16, tie_embeddings=False, scan_layers=scan_layers, bias=True
  )
  params = jax.tree.map(lambda x: jnp.zeros(x.shape), gpt.abstract_params(config))
  for layer in [params['h']] if scan_layers else [params['h_0'], params['h_1']]:
    layer['mlp']['c_proj']['bias'] += 1.0
  params['ln_f']['scale'] += 1.0
  params['lm_head'] = jnp.eye(16)
  logits_BLV, _ = _jit(functools.partial(gpt.GPT(config).apply, deterministic=False))(
    {'params': params}, jnp.zeros((16, BLOCK), jnp.int32), rngs={'dropout': jax.random.key(0)}
  )
  streams = np.asarray(logits_BLV).reshape(-1, 16)
  levels = [len(np.unique(stream.round(4))) for stream in streams]
  # 0, 2 or 4 by the two masks; that one of three is missing among 16 has a chance of 2 (3/4)^16.
  assert np.mean(np.array(levels) == 3) > 0.9
