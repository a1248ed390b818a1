"""The model is GPT-2: sizes, names, initial values, numbers, causality, decoding with a cache.

Shapes in names: B batch, L length, J length again (of the inputs), D width, V vocabulary.
"""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import knobs, models
from gpt_jax.models import attention
from tests.models import tiny

BLOCK, VOCAB = tiny.BLOCK, tiny.VOCAB
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


@functools.cache
def _jitted(**changes):
  return jax.jit(models.make(tiny.make_config(**changes)).apply)


def _logits(params, tokens_BL, **changes):
  return np.asarray(_jitted(**changes)({'params': params}, tokens_BL)[0])


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
    h_BLF = gelu(linear(norm(x_BLD, h['ln_2']), h['mlp']['c_fc']))
    x_BLD = x_BLD + linear(h_BLF, h['mlp']['c_proj'])
  hidden_BLD = norm(x_BLD, p['ln_f'])
  return hidden_BLD, hidden_BLD @ p.get('lm_head', p['wte']['embedding']).T


@pytest.mark.parametrize(
  'changes', [{'n_head': 4}, {'bias': False}, {'tie_embeddings': False}], ids=str
)
def test_hidden_states_and_logits_are_those_of_a_plain_numpy_gpt2(changes):
  model, params = models.make(tiny.make_config(**changes)), tiny.make_params(**changes)
  tokens_BL = tiny.make_tokens(3, BLOCK - 1)

  @jax.jit
  def forward(variables):
    hidden_BLD, _ = model.apply(variables, tokens_BL, method='hidden')
    last_BV = model.apply(variables, hidden_BLD[:, -1], method='logits')
    return hidden_BLD, model.apply(variables, tokens_BL)[0], last_BV

  hidden_BLD, logits_BLV, last_BV = forward({'params': params})
  exact_hidden_BLD, exact_BLV = _reference_forward(params, tokens_BL, changes.get('n_head', 2))
  assert logits_BLV.dtype == np.float32 and exact_BLV.std() > 1
  # Logits are about 10 at most and some 20 roundings deep, each of 2^-24: 10 × 20 × 6e-8 = 1.2e-5.
  np.testing.assert_allclose(hidden_BLD, exact_hidden_BLD, rtol=0, atol=2e-5)
  np.testing.assert_allclose(logits_BLV, exact_BLV, rtol=0, atol=2e-5)
  np.testing.assert_allclose(last_BV, exact_BLV[:, -1], rtol=0, atol=2e-5)


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
  model = knobs.replace(model, {'vocab_size': 50257, 'pad_vocab_to': 1})
  assert sum(leaf.size for leaf in jax.tree.leaves(models.abstract_params(model))) == count


def _shapes(**changes):
  params = models.abstract_params(tiny.make_config(**changes))
  return {name: leaf.shape for name, leaf in tiny.by_path(params).items()}


@pytest.mark.parametrize('scan_layers', [False, True])
def test_parameters_have_the_published_names_and_shapes(scan_layers):
  D = 16
  linear = {'attn/c_attn': (D, 3 * D), 'attn/c_proj': (D, D)}
  linear |= {'mlp/c_fc': (D, 4 * D), 'mlp/c_proj': (4 * D, D)}
  block: dict[str, tuple[int, ...]] = {f'{name}/kernel': shape for name, shape in linear.items()}
  block |= {f'{name}/bias': shape[1:] for name, shape in linear.items()}
  block |= {f'{name}/{leaf}': (D,) for name in ('ln_1', 'ln_2') for leaf in ('scale', 'bias')}
  outside: dict[str, tuple[int, ...]] = {'wte/embedding': (VOCAB, D), 'wpe/embedding': (BLOCK, D)}
  outside |= {'ln_f/scale': (D,), 'ln_f/bias': (D,)}
  if scan_layers:
    layers = {f'h/{name}': (2, *shape) for name, shape in block.items()}
  else:
    layers = {f'h_{i}/{name}': shape for i in range(2) for name, shape in block.items()}
  assert _shapes(scan_layers=scan_layers) == {**outside, **layers}


def test_options_add_or_drop_the_parameters_they_name():
  plain = _shapes()
  assert _shapes(bias=False) == {k: v for k, v in plain.items() if not k.endswith('/bias')}
  padded = _shapes(pad_vocab_to=16)
  assert padded == {**plain, 'wte/embedding': (32, 16)}
  assert _shapes(pad_vocab_to=16, tie_embeddings=False) == {**padded, 'lm_head': (32, 16)}


@pytest.mark.parametrize('tie_embeddings', [True, False])
def test_padding_does_not_count_as_parameters(tie_embeddings):
  padded = tiny.make_config(tie_embeddings=tie_embeddings, pad_vocab_to=128)
  shapes = _shapes(tie_embeddings=tie_embeddings)
  assert models.parameter_count(padded) == sum(map(math.prod, shapes.values()))


# Initialisation.


@pytest.fixture(scope='module', params=[False, True], ids=['unrolled', 'scanned'])
def initialised(request):
  config = tiny.make_config(n_embd=64, pad_vocab_to=128, scan_layers=request.param)
  params = jax.jit(models.make(config).init)(jax.random.key(0), tiny.make_tokens(1, 1))['params']
  return config, jax.device_get(params)


def test_initial_values_are_gpt2s(initialised):
  _, params = initialised
  for name, leaf in tiny.by_path(params).items():
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
  layers = params['h'] if 'h' in params else tiny.stack(params)['h']
  for name, (first, second) in tiny.by_path(layers).items():
    if name.endswith('kernel'):
      correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
      assert abs(correlation) < 5 / math.sqrt(first.size), name


def test_the_initial_loss_is_that_of_a_uniform_prediction(initialised):
  config, params = initialised
  tokens_BL = tiny.make_tokens(128, BLOCK + 1)
  logits_BLV, _ = jax.jit(models.make(config).apply)({'params': params}, tokens_BL[:, :-1])
  losses_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), tokens_BL[:, 1:, None], axis=-1)
  # ln_f's output has the norm √64, so logits have a deviation σ of 0.02 √64 = 0.16. Their expected
  # loss is ln V + σ²/2, 0.013 above ln V, and the mean of 1024 has a standard error of
  # σ/√1024 = 0.005. The 98 rows of padding would cost ln(128/30) = 1.45.
  assert abs(losses_BL.mean() - math.log(VOCAB)) < 0.013 + 4 * 0.005


# Causality.


@pytest.mark.parametrize('scan_layers', [False, True])
def test_no_gradient_comes_from_the_future(scan_layers):
  # Row j of wpe enters the model at position j and nowhere else.
  model = models.make(tiny.make_config(scan_layers=scan_layers))
  params, tokens_BL = tiny.make_params(scan_layers=scan_layers), tiny.make_tokens(1, BLOCK)

  def logits_LV(wpe_JD):
    return model.apply({'params': {**params, 'wpe': {'embedding': wpe_JD}}}, tokens_BL)[0][0]

  gradients_LVJD = jax.jit(jax.jacrev(logits_LV))(params['wpe']['embedding'])
  size_LJ = np.abs(gradients_LVJD).max(axis=(1, 3))
  past_LJ = np.tril(np.ones((BLOCK, BLOCK), bool))
  assert (size_LJ[~past_LJ] == 0).all()
  assert (size_LJ[past_LJ] > 1e-3).all()


# Decoding with a cache.


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('chunks', [[1] * BLOCK, [3, 4, 1]], ids=str)
def test_cached_decoding_is_the_full_forward(scan_layers, chunks):
  changes = {'scan_layers': scan_layers}
  params, tokens_BL = tiny.make_params(**changes), tiny.make_tokens(3, BLOCK)
  cache, pieces, start = attention.empty_cache(tiny.make_config(**changes), 3, BLOCK), [], 0
  for length in chunks:
    piece_BL = tokens_BL[:, start : start + length]
    logits_BLV, cache = _jitted(**changes)({'params': params}, piece_BL, cache=cache)
    start += length
    assert cache.length_B.tolist() == [start] * 3
    pieces.append(logits_BLV)
  # Only the order of the sums over positions differs, in numbers of up to 10.
  whole_BLV = _logits(params, tokens_BL, **changes)
  np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole_BLV, rtol=0, atol=1e-5)


def test_the_unfilled_part_of_a_cache_does_not_count():
  params, tokens_BL = tiny.make_params(), tiny.make_tokens(3, 3)
  empty = attention.empty_cache(tiny.make_config(), 3, BLOCK)
  used = attention.KVCache(jax.tree.map(lambda x: x + 1e3, empty.layers), empty.length_B)
  results = [_jitted()({'params': params}, tokens_BL, cache=cache)[0] for cache in (empty, used)]
  np.testing.assert_array_equal(*results)
