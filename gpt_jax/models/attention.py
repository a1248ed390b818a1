"""Attention, causal or not, in training and, with a cache of keys and values, in decoding.

Shapes in names: B batch, L length, M cached length, D width (n_embd), H heads, K head width,
N heads × batch (H major).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import ad_checkpoint

from gpt_jax import config as config_lib
from gpt_jax.models import layers


class LayerCache(NamedTuple):
  """Keys and values of one block, for M positions.

  Heads and batch are one axis: with a batch of 1, XLA's CPU backend would copy the whole cache in
  each step (4.3 instead of 1.5 ms per token for gpt2_small at M = 256). Heads come first, so that
  an axis sharded along heads stays sharded.
  """

  k_NMK: jax.Array
  v_NMK: jax.Array


class Memory(NamedTuple):
  """Keys and values of sources, for all blocks of a decoder that attends to them.

  Attributes:
    layers: A list of kv_BM2HK; one with a leading layer axis if layers are scanned.
    seen_BM: bool, which positions count.
  """

  layers: Any
  seen_BM: jax.Array


class KVCache(NamedTuple):
  """Keys and values of all blocks.

  Attributes:
    layers: A list of LayerCache; one LayerCache with a leading layer axis if layers are scanned.
    length_B: int32, the positions filled; what lies behind them doesn't count.
    memory: Of the sources, if the model has an encoder.
  """

  layers: Any
  length_B: jax.Array
  memory: Memory | None = None


class SelfAttention(nn.Module):
  """Multi-head attention (Vaswani et al. 2017, §3.2); `causal`: no position sees a later one."""

  config: config_lib.ModelConfig
  causal: bool

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
    heads = (cfg.n_head, cfg.head_width)
    qkv = layers.Dense(cfg, (3, *heads), ('embed', None, 'heads', None), name='c_attn')(x_BLD)
    qkv = layers.constrain(qkv, ('batch', None, None, 'heads', None))
    q_BLHK, k_BLHK, v_BLHK = (qkv[:, :, i] for i in range(3))
    if cache is not None and start_B is not None:
      y_BLHK, cache = _attend_cached(q_BLHK, k_BLHK, v_BLHK, cache, start_B)
    elif cfg.attention == 'cudnn':
      y_BLHK = jax.nn.dot_product_attention(
        q_BLHK, k_BLHK, v_BLHK, is_causal=self.causal, implementation='cudnn'
      )
    elif cfg.attention == 'splash':
      y_BLHK = _attend_splash(q_BLHK, k_BLHK, v_BLHK, segments_BL, self.causal)
    else:
      drop = nn.Dropout(cfg.dropout, deterministic=deterministic)
      y_BLHK = _attend(q_BLHK, k_BLHK, v_BLHK, segments_BL, self.causal, drop)
    y_BLHK = ad_checkpoint.checkpoint_name(y_BLHK, layers.PRODUCT)
    project = layers.Dense(cfg, (D,), ('heads', 'embed'), layers.residual_std(cfg), name='c_proj')
    y_BLD = project(y_BLHK.reshape(B, L, D))
    return nn.Dropout(cfg.dropout, deterministic=deterministic)(y_BLD), cache


class CrossAttention(nn.Module):
  """Multi-head attention to a source, whose keys and values are given; see `Memory`."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, kv_BM2HK: jax.Array, seen_BM: jax.Array, deterministic: bool
  ) -> jax.Array:
    cfg, (B, L, D) = self.config, x_BLD.shape
    drop = nn.Dropout(cfg.dropout, deterministic=deterministic)
    heads, axes = (cfg.n_head, cfg.head_width), ('embed', 'heads', None)
    q_BLHK = layers.Dense(cfg, heads, axes, name='c_attn')(x_BLD)
    q_BLHK = layers.constrain(q_BLHK, ('batch', None, 'heads', None))
    y_BLHK = _weigh(q_BLHK, kv_BM2HK[:, :, 0], kv_BM2HK[:, :, 1], seen_BM[:, None, None], drop)
    project = layers.Dense(cfg, (D,), ('heads', 'embed'), layers.residual_std(cfg), name='c_proj')
    return drop(project(y_BLHK.reshape(B, L, D)))


def _attend(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  segments_BL: jax.Array | None,
  causal: bool,
  drop: nn.Dropout,
) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v over positions of the same segment; if `causal`, earlier."""
  L, parts = q_BLHK.shape[1], []
  # If causal, the first half of the queries sees no key of the second: a quarter of the work less.
  for start, stop in ((0, (L + 1) // 2), ((L + 1) // 2, L)) if causal else ((0, L),):
    seen = jnp.arange(stop) <= (jnp.arange(start, stop)[:, None] if causal else L)
    if segments_BL is not None:
      # Padding sees padding: a softmax over nothing would be NaN.
      same_BLM = segments_BL[:, start:stop, None] == segments_BL[:, None, :stop]
      seen = (seen & same_BLM)[:, None]
    parts.append(_weigh(q_BLHK[:, start:stop], k_BLHK[:, :stop], v_BLHK[:, :stop], seen, drop))
  return jnp.concatenate(parts, axis=1)


def _weigh(
  q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, seen: jax.Array, drop: nn.Dropout
) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v over the positions `seen`, which broadcasts to BHLM."""
  scores_BHLM = jnp.einsum('BLHK,BMHK->BHLM', q_BLHK * q_BLHK.shape[-1] ** -0.5, k_BMHK)
  weights_BHLM = drop(_softmax(scores_BHLM, seen).astype(v_BMHK.dtype))
  return jnp.einsum('BHLM,BMHK->BLHK', weights_BHLM, v_BMHK)


def _attend_splash(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  segments_BL: jax.Array | None,
  causal: bool,
) -> jax.Array:
  """Returns what `_attend` does, by JAX's kernel for TPUs, which keeps no scores in memory."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  L, K = q_BLHK.shape[1], q_BLHK.shape[-1]
  side = max(side for side in (128, 256, 512) if L % side == 0)
  sides: Any = dict.fromkeys(('block_q', 'block_kv', 'block_q_dkv', 'block_kv_dkv'), side)
  blocks = splash.BlockSizes(**sides, use_fused_bwd_kernel=True)

  def attend(
    q_BHLK: jax.Array, k_BHLK: jax.Array, v_BHLK: jax.Array, segments_BL: jax.Array | None
  ) -> jax.Array:
    of_head = (masks.CausalMask if causal else masks.FullMask)((L, L))
    mask = masks.MultiHeadMask([of_head] * q_BHLK.shape[1])
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=blocks)
    segments = None if segments_BL is None else splash.SegmentIds(segments_BL, segments_BL)
    return jax.vmap(kernel)(q_BHLK, k_BHLK, v_BHLK, segments)

  if jax.sharding.get_abstract_mesh().axis_names:  # XLA can't share out a kernel by itself
    heads: Any = nn.logical_to_mesh_axes(('batch', 'heads', None, None))
    rows = None if segments_BL is None else jax.P(heads[0], None)
    attend = jax.shard_map(
      attend, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
  turn = functools.partial(jnp.moveaxis, source=1, destination=2)
  return turn(attend(turn(q_BLHK * K**-0.5), turn(k_BLHK), turn(v_BLHK), segments_BL))


def _attend_cached(
  q_BLHK: jax.Array,
  k_BLHK: jax.Array,
  v_BLHK: jax.Array,
  cache: LayerCache,
  start_B: jax.Array,
) -> tuple[jax.Array, LayerCache]:
  """Returns the attention of L positions of each row that follow `start_B` cached ones."""
  B, L, H, K = q_BLHK.shape
  q_NLK, k_NLK, v_NLK = (
    y.transpose(2, 0, 1, 3).reshape(H * B, L, K) for y in (q_BLHK, k_BLHK, v_BLHK)
  )
  start_N = jnp.tile(start_B, H)
  cache = LayerCache(write(cache.k_NMK, k_NLK, start_N), write(cache.v_NMK, v_NLK, start_N))
  scores_NLM = jnp.einsum('NLK,NMK->NLM', q_NLK * K**-0.5, cache.k_NMK)
  M = scores_NLM.shape[-1]
  seen_NLM = jnp.arange(M) <= start_N[:, None, None] + jnp.arange(L)[:, None]
  weights_NLM = _softmax(scores_NLM, seen_NLM).astype(v_NLK.dtype)
  y_NLK = jnp.einsum('NLM,NMK->NLK', weights_NLM, cache.v_NMK)
  return y_NLK.reshape(H, B, L, K).transpose(1, 2, 0, 3), cache


# Writes (N, L, K) into a cache (N, M, K), in each row from its own position (N,) on.
write = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0))


def _softmax(scores: jax.Array, seen: jax.Array) -> jax.Array:
  """Returns the softmax over the last axis in float32, 0 where not `seen`."""
  # Added, not selected: the gradient of a selection would go over all scores once more.
  return jax.nn.softmax(scores.astype(jnp.float32) + jnp.where(seen, 0.0, -jnp.inf))


def empty_cache(config: config_lib.ModelConfig, batch_size: int, length: int) -> KVCache:
  """Returns a cache for `batch_size` sequences of up to `length` positions, none of them filled."""
  stack = (config.n_layer,) if config.scan_layers else ()
  heads, width = config.n_head, config.head_width
  if config.kind == 'lstm':  # its states take the place of keys and values
    heads, width = 1, config.lstm_width
  shape = (*stack, heads * batch_size, length, width)
  # Separate buffers for K and V and for each layer: one update touches one buffer.
  caches = [
    LayerCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    for _ in range(1 if config.scan_layers else config.n_layer)
  ]
  length_B = jnp.zeros(batch_size, jnp.int32)
  return KVCache(caches[0] if config.scan_layers else caches, length_B)


def take_rows(cache: KVCache, rows_R: jax.Array) -> KVCache:
  """Returns the cache whose row r is row `rows_R[r]` of `cache`."""
  B = cache.length_B.size

  def take(x: jax.Array) -> jax.Array:  # (N, M, K), or with a leading layer axis
    *layer, N, M, K = x.shape
    x = x.reshape(*layer, N // B, B, M, K)
    return jnp.take(x, rows_R, axis=-3).reshape(*layer, -1, M, K)

  memory = cache.memory
  if memory is not None:
    of_layers = jax.tree.map(lambda kv_BM2HK: jnp.take(kv_BM2HK, rows_R, axis=-5), memory.layers)
    memory = Memory(of_layers, memory.seen_BM[rows_R])
  return KVCache(jax.tree.map(take, cache.layers), cache.length_B[rows_R], memory)
