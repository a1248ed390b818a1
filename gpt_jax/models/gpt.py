"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Pre-LayerNorm blocks, learned positions, tanh-approximated GELU, output layer tied to the token
embedding. Parameters keep the names of the published checkpoint.

Shapes in names: B batch, L length, M cached length, D width (n_embd), H heads, K head width,
N heads × batch (H major), F hidden width (4 D), V vocabulary (padded).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import lora

_INIT_STD = 0.02
_LAYER_NORM_EPS = 1e-5


class LayerCache(NamedTuple):
  """Keys and values of one block, for M positions.

  Heads and batch are one axis: of a batch of 1, XLA's CPU backend would copy the whole cache in
  each step (1.5 against 4.3 ms a token of gpt2_small at M = 256). Heads come first, so that an axis
  that is cut along heads stays cut.
  """

  k_NMK: jax.Array
  v_NMK: jax.Array


class KVCache(NamedTuple):
  """What decoding remembers: a `LayerCache` for each block, and what of it is filled."""

  layers: (
    Any  # a list of LayerCache; one LayerCache with a leading layer axis if layers are scanned
  )
  length_B: jax.Array  # int32: positions filled; what lies behind them doesn't count


class CausalSelfAttention(nn.Module):
  """Multi-head attention in which no position sees a later one (Vaswani et al. 2017, §3.2)."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: LayerCache | None,
    start_B: jax.Array | None,
    segments_BL: jax.Array | None,
    deterministic: bool,
  ) -> tuple[jax.Array, LayerCache | None]:
    cfg = self.config
    B, L, D = x_BLD.shape
    qkv = _dense(cfg, 3 * D, name='c_attn')(x_BLD)
    q_BLHK, k_BLHK, v_BLHK = (
      y.reshape(B, L, cfg.n_head, cfg.head_width) for y in jnp.split(qkv, 3, axis=-1)
    )
    if cache is not None and start_B is not None:
      y_BLHK, cache = _attend_cached(q_BLHK, k_BLHK, v_BLHK, cache, start_B)
    elif cfg.attention == 'cudnn':
      y_BLHK = jax.nn.dot_product_attention(
        q_BLHK, k_BLHK, v_BLHK, is_causal=True, implementation='cudnn'
      )
    else:
      drop = nn.Dropout(cfg.dropout, deterministic=deterministic)
      y_BLHK = _attend(q_BLHK, k_BLHK, v_BLHK, segments_BL, drop)
    y_BLD = _dense(cfg, D, std=_residual_std(cfg), name='c_proj')(y_BLHK.reshape(B, L, D))
    return nn.Dropout(cfg.dropout, deterministic=deterministic)(y_BLD), cache


def _attend(
  q_BLHK: jax.Array,
  k_BMHK: jax.Array,
  v_BMHK: jax.Array,
  segments_BL: jax.Array | None,
  drop: nn.Dropout,
) -> jax.Array:
  """softmax(q k / sqrt(K)) v over earlier positions (M is L); the softmax in float32.

  With segments, each position sees those of its own segment only.
  """
  L, K = q_BLHK.shape[1], q_BLHK.shape[-1]
  scores_BHLM = jnp.einsum('BLHK,BMHK->BHLM', q_BLHK * K**-0.5, k_BMHK)
  seen = jnp.arange(L) <= jnp.arange(L)[:, None]
  if segments_BL is not None:
    # Padding sees padding: a softmax over nothing would be NaN.
    same_BLM = segments_BL[:, :, None] == segments_BL[:, None, :]
    seen = (seen & same_BLM)[:, None]
  weights_BHLM = drop(_softmax(scores_BHLM, seen).astype(v_BMHK.dtype))
  return jnp.einsum('BHLM,BMHK->BLHK', weights_BHLM, v_BMHK)


def _attend_cached(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  cache: LayerCache,
  start_B: jax.Array,
) -> tuple[jax.Array, LayerCache]:
  """Attention of L more positions of each sequence, which `start_B` others precede."""
  B, L, H, K = q_BLHK.shape
  q_NLK, k_NLK, v_NLK = (
    y.transpose(2, 0, 1, 3).reshape(H * B, L, K) for y in (q_BLHK, k_BLHK, v_BLHK)
  )
  start_N = jnp.tile(start_B, H)
  cache = LayerCache(_written(cache.k_NMK, k_NLK, start_N), _written(cache.v_NMK, v_NLK, start_N))
  scores_NLM = jnp.einsum('NLK,NMK->NLM', q_NLK * K**-0.5, cache.k_NMK)
  M = scores_NLM.shape[-1]
  seen_NLM = jnp.arange(M) <= start_N[:, None, None] + jnp.arange(L)[:, None]
  weights_NLM = _softmax(scores_NLM, seen_NLM).astype(v_NLK.dtype)
  y_NLK = jnp.einsum('NLM,NMK->NLK', weights_NLM, cache.v_NMK)
  return y_NLK.reshape(H, B, L, K).transpose(1, 2, 0, 3), cache


def _written(cache_NMK: jax.Array, new_NLK: jax.Array, start_N: jax.Array) -> jax.Array:
  """The cache with `new_NLK` at positions `start_N` and on."""
  return jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))(
    cache_NMK, new_NLK, start_N
  )


def _softmax(scores: jax.Array, seen: jax.Array) -> jax.Array:
  """Over the last axis in float32, 0 where not `seen`."""
  return jax.nn.softmax(jnp.where(seen, scores.astype(jnp.float32), -jnp.inf))


class MLP(nn.Module):
  """Two linear layers around a GELU (Hendrycks & Gimpel 2016; its tanh form)."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array, deterministic: bool) -> jax.Array:
    cfg = self.config
    h_BLF = _dense(cfg, 4 * cfg.n_embd, name='c_fc')(x_BLD)
    h_BLF = jax.nn.gelu(h_BLF, approximate=True)
    y_BLD = _dense(cfg, cfg.n_embd, std=_residual_std(cfg), name='c_proj')(h_BLF)
    return nn.Dropout(cfg.dropout, deterministic=deterministic)(y_BLD)


class Block(nn.Module):
  """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: LayerCache | None,
    start_B: jax.Array | None,
    segments_BL: jax.Array | None,
    deterministic: bool,
  ) -> tuple[jax.Array, LayerCache | None]:
    cfg = self.config
    y_BLD, cache = CausalSelfAttention(cfg, name='attn')(
      _layer_norm(cfg, 'ln_1')(x_BLD), cache, start_B, segments_BL, deterministic
    )
    x_BLD = x_BLD + y_BLD
    x_BLD = x_BLD + MLP(cfg, name='mlp')(_layer_norm(cfg, 'ln_2')(x_BLD), deterministic)
    return x_BLD, cache


class GPT(nn.Module):
  """The language model: token ids to logits.

  Parameters: `wte`, `wpe`, `h_0` … `h_{n_layer-1}` (or one `h` with a leading layer axis if
  `config.scan_layers`), `ln_f`, and `lm_head` unless the embeddings are tied; `lora_a` and `lora_b`
  beside each kernel of a block if `config.lora_rank`.
  """

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    tokens_BL: jax.Array,
    *,
    segments_BL: jax.Array | None = None,
    cache: KVCache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, KVCache | None]:
    """Logits of the token that follows each position.

    Args:
      tokens_BL: int32 token ids, L at most `block_size`.
      segments_BL: for rows that are packed with several documents: int32, the same number all along
        a document and another one in the next, 0 for padding. Each document then gives the logits
        that it gives alone: its positions count from 0, and it doesn't see the others.
      cache: continue each row after its `length_B` positions; with L more they must not exceed the
        cache. Positions beyond `block_size` count as the last one: their logits mean nothing.
      deterministic: False drops out, with the `dropout` random stream.

    Returns:
      logits_BLV, float32, -inf for the padding of the vocabulary, and the cache with these L
      positions added (None if none was given).

    Raises:
      ValueError: segments together with a cache, or with cuDNN's attention.
    """
    cfg = self.config
    if segments_BL is not None and (cache is not None or cfg.attention == 'cudnn'):
      raise ValueError('packed rows go with neither a cache nor attention=cudnn')
    L = tokens_BL.shape[1]
    start_B = None if cache is None else cache.length_B
    embed = functools.partial(
      nn.Embed,
      features=cfg.n_embd,
      embedding_init=nn.initializers.normal(_INIT_STD),
      dtype=cfg.dtype,
    )
    wte = embed(cfg.padded_vocab_size, name='wte')
    wpe = embed(cfg.block_size, name='wpe')
    x_BLD = wte(tokens_BL) + wpe(_positions(L, start_B, segments_BL, cfg.block_size))
    x_BLD = nn.Dropout(cfg.dropout, deterministic=deterministic)(x_BLD)
    layers = None if cache is None else cache.layers
    x_BLD, layers = self._blocks(x_BLD, layers, start_B, segments_BL, deterministic)
    x_BLD = _layer_norm(cfg, 'ln_f')(x_BLD)
    if cfg.tie_embeddings:
      output_VD = wte.embedding
    else:
      init = nn.initializers.normal(_INIT_STD)
      output_VD = self.param('lm_head', init, (cfg.padded_vocab_size, cfg.n_embd))
    logits_BLV = _flat_dot_general(
      x_BLD, output_VD.astype(x_BLD.dtype).T, None, preferred_element_type=jnp.float32
    )
    if cfg.padded_vocab_size != cfg.vocab_size:
      real_V = jnp.arange(cfg.padded_vocab_size) < cfg.vocab_size
      logits_BLV = jnp.where(real_V, logits_BLV, -jnp.inf)
    return logits_BLV, None if cache is None else KVCache(layers, cache.length_B + L)

  def _blocks(
    self,
    x_BLD: jax.Array,
    layers: Any,
    start_B: jax.Array | None,
    segments_BL: jax.Array | None,
    deterministic: bool,
  ) -> tuple[jax.Array, Any]:
    cfg = self.config
    # Block.__call__'s fifth argument (self is 0) decides what is traced, so it stays Python's.
    block = nn.remat(Block, static_argnums=(5,)) if cfg.remat else Block
    if cfg.scan_layers:
      scanned = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=cfg.n_layer,
      )
      return scanned(cfg, name='h')(x_BLD, layers, start_B, segments_BL, deterministic)
    new_layers = []
    for i in range(cfg.n_layer):
      cache = None if layers is None else layers[i]
      x_BLD, cache = block(cfg, name=f'h_{i}')(x_BLD, cache, start_B, segments_BL, deterministic)
      new_layers.append(cache)
    return x_BLD, new_layers


def _positions(
  L: int, start_B: jax.Array | None, segments_BL: jax.Array | None, block_size: int
) -> jax.Array:
  """Rows of `wpe`, int32: (L,) from 0; (B, L) from `start_B`, or with segments from 0 in each."""
  if start_B is not None:
    return jnp.minimum(start_B[:, None] + jnp.arange(L), block_size - 1)
  if segments_BL is None:
    return jnp.arange(L)
  index_L = jnp.arange(L)
  begins_BL = jnp.diff(segments_BL, axis=1, prepend=-1) != 0
  return index_L - jax.lax.cummax(jnp.where(begins_BL, index_L, 0), axis=1)


def empty_cache(config: config_lib.ModelConfig, batch_size: int, length: int) -> KVCache:
  """A cache for `batch_size` sequences of up to `length` positions, none of them filled."""
  shape: tuple[int, ...] = (config.n_head * batch_size, length, config.head_width)
  if config.scan_layers:
    shape = (config.n_layer, *shape)
  # Separate buffers for K and V and for each layer: one update touches one buffer.
  layers = [
    LayerCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    for _ in range(1 if config.scan_layers else config.n_layer)
  ]
  filled_B = jnp.zeros(batch_size, jnp.int32)
  return KVCache(layers[0] if config.scan_layers else layers, filled_B)


def take_rows(cache: KVCache, rows_R: jax.Array) -> KVCache:
  """The cache whose row r is row `rows_R[r]` of `cache`."""
  B = cache.length_B.size

  def take(x: jax.Array) -> jax.Array:  # (N, M, K), or with a leading layer axis
    *layer, N, M, K = x.shape
    x = x.reshape(*layer, N // B, B, M, K)
    return jnp.take(x, rows_R, axis=-3).reshape(*layer, -1, M, K)

  return KVCache(jax.tree.map(take, cache.layers), cache.length_B[rows_R])


def with_hidden(
  model: GPT, params: Any, tokens_BL: jax.Array, *, cache: KVCache | None = None
) -> tuple[jax.Array, jax.Array, KVCache | None]:
  """As the model, with hidden_BLD in the middle: what the output layer reads of each position."""
  result: Any = model.apply(
    {'params': params},
    tokens_BL,
    cache=cache,
    capture_intermediates=lambda module, _: module.name == 'ln_f',
    mutable='intermediates',
  )
  (logits_BLV, cache), captured = result
  return logits_BLV, captured['intermediates']['ln_f']['__call__'][0], cache


def abstract_params(
  config: config_lib.ModelConfig, sharding: jax.sharding.Sharding | None = None
) -> Any:
  """The tree of parameters as shapes and types, with `sharding` for each if it is given."""
  tokens_BL = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(GPT(config).init, jax.random.key(0), tokens_BL)['params']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def parameter_count(config: config_lib.ModelConfig) -> int:
  """Parameters of the model without the padding of the vocabulary, from shapes alone."""
  total = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
  tables = 1 if config.tie_embeddings else 2
  return total - tables * (config.padded_vocab_size - config.vocab_size) * config.n_embd


def _dense(
  cfg: config_lib.ModelConfig, features: int, *, name: str, std: float = _INIT_STD
) -> nn.Dense:
  make: Any = nn.Dense
  if cfg.lora_rank:
    make = functools.partial(lora.Dense, rank=cfg.lora_rank, alpha=cfg.lora_alpha)
  return make(
    features,
    use_bias=cfg.bias,
    dtype=cfg.dtype,
    kernel_init=nn.initializers.normal(std),
    dot_general=_flat_dot_general,
    name=name,
  )


def _flat_dot_general(
  x_BLD: jax.Array,
  w_DF: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """x_BLD · w_DF over D, as one matrix product of B·L rows.

  The same numbers as with B and L apart, but then XLA's CPU backend transposes the gradient of w
  element by element: a step of configs/shakespeare_char_cpu.py took 68 ms so and takes 49 ms now.
  """
  del dimension_numbers  # always the last axis of x with the first of w
  y = jax.lax.dot_general(
    x_BLD.reshape(-1, x_BLD.shape[-1]),
    w_DF,
    (((1,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=preferred_element_type,
  )
  return y.reshape(*x_BLD.shape[:-1], w_DF.shape[-1])


def _residual_std(cfg: config_lib.ModelConfig) -> float:
  """GPT-2 scales what is added to the residual stream by 1/sqrt(number of such additions)."""
  return _INIT_STD / (2 * cfg.n_layer) ** 0.5


def _layer_norm(cfg: config_lib.ModelConfig, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(
    epsilon=_LAYER_NORM_EPS,
    use_bias=cfg.bias,
    use_fast_variance=False,
    dtype=cfg.dtype,
    name=name,
  )
