"""A recurrent language model (Hochreiter & Schmidhuber 1997), to compare the transformer to.

It has the methods of `gpt.GPT`, so that training and generation don't know which of them they have.

Shapes in names: B batch, L length, M cached length, W width of the states, V vocabulary (padded).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gpt_jax import config as config_lib
from gpt_jax.models import attention, layers, output

_Carry = tuple[jax.Array, jax.Array]  # c_BW and h_BW


class LSTM(output.LanguageModel):
  """Token ids -> `n_layer` layers of LSTM cells -> hidden states -> logits.

  Parameters: `wte`, `h_0` … `h_{n_layer-1}`, and `lm_head`.
  """

  def setup(self) -> None:
    cfg = self.config
    # No LayerNorm behind it enlarges a small embedding, as a transformer's does.
    init = nn.initializers.normal(1.0)
    self.wte = nn.Embed(cfg.padded_vocab_size, cfg.n_embd, embedding_init=init)
    self.drop = nn.Dropout(cfg.dropout)
    self.h = [_Layer(cfg) for _ in range(cfg.n_layer)]
    self.setup_output()

  def hidden(
    self,
    tokens_BL: jax.Array,
    *,
    segments_BL: jax.Array | None = None,
    cache: attention.KVCache | None = None,
    deterministic: bool = True,
  ) -> tuple[jax.Array, attention.KVCache | None]:
    """Computes the final hidden states, as `gpt.GPT.hidden` does; segments restart the states.

    The cache holds the states after each position, as if they were keys and values: what lies
    behind `length_B` doesn't count here either.
    """
    cfg, (B, L) = self.config, tokens_BL.shape
    starts_BL = jnp.zeros((B, L), bool)
    if segments_BL is not None:
      starts_BL = jnp.diff(segments_BL, axis=1, prepend=0) != 0
    x_BLD = layers.constrain(self.wte(tokens_BL).astype(cfg.dtype), ('batch', None, None))
    x_BLD = self.drop(x_BLD, deterministic=deterministic)
    caches: list[Any] = list(cache.layers if cache else [None] * cfg.n_layer)
    for i, layer in enumerate(self.h):
      x_BLD, caches[i] = layer(x_BLD, starts_BL, caches[i], cache.length_B if cache else None)
      x_BLD = self.drop(x_BLD, deterministic=deterministic)
    return x_BLD, attention.KVCache(caches, cache.length_B + L) if cache else None


class _Layer(nn.Module):
  config: config_lib.ModelConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    starts_BL: jax.Array,
    cache: attention.LayerCache | None,
    start_B: jax.Array | None,
  ) -> tuple[jax.Array, attention.LayerCache | None]:
    B, W = x_BLD.shape[0], self.config.lstm_width

    def step(cell: nn.OptimizedLSTMCell, carry: _Carry, inputs: Any) -> tuple[_Carry, _Carry]:
      x_BD, starts_B = inputs
      carry = jax.tree.map(lambda state_BW: jnp.where(starts_B[:, None], 0, state_BW), carry)
      carry, _ = cell(carry, x_BD)
      return carry, carry

    cell = nn.OptimizedLSTMCell(W, dtype=self.config.dtype, name='cell')
    zeros_BW = jnp.zeros((B, W), x_BLD.dtype)
    carry = (zeros_BW, zeros_BW)
    if cache is not None and start_B is not None:
      last_B, known_B1 = jnp.maximum(start_B - 1, 0), start_B[:, None] > 0
      c_BW, h_BW = (states_BMW[jnp.arange(B), last_B] for states_BMW in cache)
      carry = (jnp.where(known_B1, c_BW, 0), jnp.where(known_B1, h_BW, 0))
    scan: Any = nn.scan(
      step, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
    )
    _, (c_BLW, h_BLW) = scan(cell, carry, (x_BLD, starts_BL))
    if cache is not None and start_B is not None:
      cache = attention.LayerCache(
        attention.write(cache.k_NMK, c_BLW, start_B), attention.write(cache.v_NMK, h_BLW, start_B)
      )
    return h_BLW, cache
