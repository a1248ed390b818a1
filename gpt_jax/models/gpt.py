"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

Pre-LayerNorm blocks, learned positions, tanh-approximated GELU, output layer tied to the token
embedding. Parameters keep the names of the published checkpoint.

Shapes in names: B batch, L length, D width (n_embd), F hidden width (4 D), V vocabulary (padded).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import attention, layers


class MLP(nn.Module):
  """Two linear layers around a GELU (Hendrycks & Gimpel 2016; its tanh form)."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array, deterministic: bool) -> jax.Array:
    cfg = self.config
    h_BLF = layers.dense(cfg, 4 * cfg.n_embd, name='c_fc')(x_BLD)
    h_BLF = jax.nn.gelu(h_BLF, approximate=True)
    y_BLD = layers.dense(cfg, cfg.n_embd, std=layers.residual_std(cfg), name='c_proj')(h_BLF)
    return nn.Dropout(cfg.dropout, deterministic=deterministic)(y_BLD)


class Block(nn.Module):
  """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: attention.LayerCache | None,
    start_B: jax.Array | None,
    segments_BL: jax.Array | None,
    deterministic: bool,
  ) -> tuple[jax.Array, attention.LayerCache | None]:
    cfg = self.config
    y_BLD, cache = attention.CausalSelfAttention(cfg, name='attn')(
      layers.layer_norm(cfg, 'ln_1')(x_BLD), cache, start_B, segments_BL, deterministic
    )
    x_BLD = x_BLD + y_BLD
    x_BLD = x_BLD + MLP(cfg, name='mlp')(layers.layer_norm(cfg, 'ln_2')(x_BLD), deterministic)
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
    cache: attention.KVCache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, attention.KVCache | None]:
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
      embedding_init=nn.initializers.normal(layers.INIT_STD),
      dtype=cfg.dtype,
    )
    wte = embed(cfg.padded_vocab_size, name='wte')
    wpe = embed(cfg.block_size, name='wpe')
    x_BLD = wte(tokens_BL) + wpe(_positions(L, start_B, segments_BL, cfg.block_size))
    x_BLD = nn.Dropout(cfg.dropout, deterministic=deterministic)(x_BLD)
    caches = None if cache is None else cache.layers
    x_BLD, caches = self._blocks(x_BLD, caches, start_B, segments_BL, deterministic)
    x_BLD = layers.layer_norm(cfg, 'ln_f')(x_BLD)
    if cfg.tie_embeddings:
      output_VD = wte.embedding
    else:
      init = nn.initializers.normal(layers.INIT_STD)
      output_VD = self.param('lm_head', init, (cfg.padded_vocab_size, cfg.n_embd))
    logits_BLV = layers.flat_dot_general(
      x_BLD, output_VD.astype(x_BLD.dtype).T, None, preferred_element_type=jnp.float32
    )
    if cfg.padded_vocab_size != cfg.vocab_size:
      real_V = jnp.arange(cfg.padded_vocab_size) < cfg.vocab_size
      logits_BLV = jnp.where(real_V, logits_BLV, -jnp.inf)
    return logits_BLV, None if cache is None else attention.KVCache(caches, cache.length_B + L)

  def _blocks(
    self,
    x_BLD: jax.Array,
    caches: Any,
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
      return scanned(cfg, name='h')(x_BLD, caches, start_B, segments_BL, deterministic)
    new_caches = []
    for i in range(cfg.n_layer):
      cache = None if caches is None else caches[i]
      x_BLD, cache = block(cfg, name=f'h_{i}')(x_BLD, cache, start_B, segments_BL, deterministic)
      new_caches.append(cache)
    return x_BLD, new_caches


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


def with_hidden(
  model: GPT, params: Any, tokens_BL: jax.Array, *, cache: attention.KVCache | None = None
) -> tuple[jax.Array, jax.Array, attention.KVCache | None]:
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
