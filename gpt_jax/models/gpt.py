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
from gpt_jax.models import attention, layers, output

_RESIDUAL = ('batch', None, None)  # the logical axes of x_BLD


class MLP(nn.Module):
  """Two linear layers around a GELU (Hendrycks & Gimpel 2016; its tanh form)."""

  config: config_lib.ModelConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array, deterministic: bool) -> jax.Array:
    cfg = self.config
    D, std = cfg.n_embd, layers.residual_std(cfg)
    h_BLF = layers.Dense(cfg, (4 * D,), ('embed', 'hidden'), name='c_fc')(x_BLD)
    h_BLF = layers.constrain(jax.nn.gelu(h_BLF, approximate=True), ('batch', None, 'hidden'))
    y_BLD = layers.Dense(cfg, (D,), ('hidden', 'embed'), std, name='c_proj')(h_BLF)
    return nn.Dropout(cfg.dropout, deterministic=deterministic)(y_BLD)


class Block(nn.Module):
  """One transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  config: config_lib.ModelConfig
  causal: bool = True

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: attention.LayerCache | None,
    start_B: jax.Array | None,
    segments_BL: jax.Array | None,
    deterministic: bool,
    kv_BM2HK: jax.Array | None = None,
    seen_BM: jax.Array | None = None,
  ) -> tuple[jax.Array, attention.LayerCache | None]:
    cfg = self.config
    y_BLD, cache = attention.SelfAttention(cfg, self.causal, name='attn')(
      layers.layer_norm(cfg, 'ln_1')(x_BLD), cache, start_B, segments_BL, deterministic
    )
    x_BLD = x_BLD + y_BLD
    if kv_BM2HK is not None and seen_BM is not None:
      y_BLD = layers.layer_norm(cfg, 'ln_cross')(x_BLD)
      cross = attention.CrossAttention(cfg, name='cross')
      x_BLD = x_BLD + cross(y_BLD, kv_BM2HK, seen_BM, deterministic)
    x_BLD = x_BLD + MLP(cfg, name='mlp')(layers.layer_norm(cfg, 'ln_2')(x_BLD), deterministic)
    return layers.constrain(x_BLD, _RESIDUAL), cache


class GPT(output.LanguageModel):
  """The language model: token ids -> hidden states -> logits.

  Parameters: `wte`, `wpe`, `h_0` … `h_{n_layer-1}` (or one `h` with a leading layer axis if
  `config.scan_layers`), `ln_f`, and `lm_head` unless the embeddings are tied; `lora_a` and `lora_b`
  beside each kernel of a block if `config.lora_rank`. As an `encoder` (BERT, Devlin et al. 2019),
  each position sees all of its segment, and its logits are of the token there.
  """

  config: config_lib.ModelConfig
  table: nn.Embed | None = None  # of tokens, if it is another model's too

  def setup(self) -> None:
    cfg = self.config
    embed = functools.partial(
      nn.Embed, features=cfg.n_embd, embedding_init=nn.initializers.normal(layers.INIT_STD)
    )
    self.wte = self.table or embed(cfg.padded_vocab_size)
    self.wpe = embed(cfg.block_size)
    # Its name is part of the random key: runs that resume must draw what they would have drawn.
    self.drop = nn.Dropout(cfg.dropout, name='Dropout_0')
    block: Any = Block
    causal = cfg.kind != 'encoder'
    if cfg.remat:
      names = {'nothing': (), 'products': (layers.PRODUCT,)}[cfg.remat_keep]
      policy = jax.checkpoint_policies.save_only_these_names(*names)
      # The fifth argument of Block.__call__ (self is 0) decides what is traced, so it stays static.
      block = nn.remat(Block, static_argnums=(5,), policy=policy)
    if cfg.scan_layers:
      self.h = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=(0, *[nn.broadcast] * 3, 0, nn.broadcast),
        length=cfg.n_layer,
      )(cfg, causal)
    else:
      self.h = [block(cfg, causal) for _ in range(cfg.n_layer)]
    self.ln_f = layers.layer_norm(cfg)
    self.setup_output()

  def hidden(
    self,
    tokens_BL: jax.Array,
    *,
    segments_BL: jax.Array | None = None,
    cache: attention.KVCache | None = None,
    memory: attention.Memory | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, attention.KVCache | None]:
    """Computes the final hidden states, after the last LayerNorm.

    Args:
      tokens_BL: int32 token ids, L at most `block_size`.
      segments_BL: For rows packed with several documents: int32, one number per document, 0 for
        padding. Each document then gets the hidden states that it gets alone: its positions count
        from 0, and it doesn't attend to the others.
      cache: Continue each row after its `length_B` positions; with L more they must not exceed the
        cache. Positions beyond `block_size` count as the last one: their states mean nothing.
      memory: What an `EncoderDecoder` remembers of its sources, unless it is in the cache.
      deterministic: False applies dropout, with the `dropout` random stream.

    Returns:
      hidden_BLD, in the compute type, and the cache with these L positions added (None if none was
      given).

    Raises:
      ValueError: Segments together with a cache, or with cuDNN's attention.
    """
    cfg = self.config
    if segments_BL is not None and (cache is not None or cfg.attention == 'cudnn'):
      raise ValueError('packed rows work with neither a cache nor attention=cudnn')
    L = tokens_BL.shape[1]
    start_B = None if cache is None else cache.length_B
    # Gathered in float32: a cast before the gather would make its gradient a bfloat16 scatter-add,
    # off by 20 % for the most frequent token of natural text.
    # If the width of the table is sharded, each device looks up its shard for the sequences of all
    # devices that share the table, which moves less than the table.
    tokens_BL = layers.constrain(tokens_BL, ('lookup', None))
    x_BLD = layers.constrain(self.wte(tokens_BL), ('lookup', None, 'embed'))
    x_BLD = layers.constrain(x_BLD, _RESIDUAL)
    x_BLD += self.wpe(_positions(L, start_B, segments_BL, cfg.block_size))
    x_BLD = layers.constrain(x_BLD.astype(cfg.dtype), _RESIDUAL)
    x_BLD = self.drop(x_BLD, deterministic=deterministic)
    caches = None if cache is None else cache.layers
    kvs, seen_BM = memory or (cache and cache.memory) or (None, None)
    if cfg.scan_layers:
      x_BLD, caches = self.h(x_BLD, caches, start_B, segments_BL, deterministic, kvs, seen_BM)
    else:
      caches = list(caches or [None] * cfg.n_layer)
      kvs = kvs or [None] * cfg.n_layer
      for i, block in enumerate(self.h):
        x_BLD, caches[i] = block(
          x_BLD, caches[i], start_B, segments_BL, deterministic, kvs[i], seen_BM
        )
    if cache is not None:
      cache = cache._replace(layers=caches, length_B=cache.length_B + L)
    return self.ln_f(x_BLD), cache


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
  positions_BL = index_L - jax.lax.cummax(jnp.where(begins_BL, index_L, 0), axis=1)
  return jnp.minimum(positions_BL, block_size - 1)  # padding may be longer than a context
