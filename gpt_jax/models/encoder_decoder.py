"""An encoder and a decoder, to turn one text into another (Vaswani et al. 2017).

Both are GPT's, with one token embedding. The decoder's blocks also attend to the encoder's states.

Shapes in names: B batch, L length, M length of a source, N layers, H heads, K head width, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax.models import attention, gpt, layers


class EncoderDecoder(gpt.GPT):
  """Token ids of a source and of what is known of its target -> logits of the target.

  Parameters: those of a GPT, the decoder, with `ln_cross` and `cross` in each block; those of the
  `encoder`, but `wte`, which is the decoder's; and `memory`, the keys and values of all blocks.
  """

  def setup(self) -> None:
    super().setup()
    cfg = self.config
    plain = dataclasses.replace(cfg, kind='encoder', tie_embeddings=True, clusters='')
    self.encoder = gpt.GPT(plain, self.wte)
    keys_and_values = (cfg.n_layer, 2, cfg.n_head, cfg.head_width)
    self.memory = layers.Dense(cfg, keys_and_values, ('embed', None, None, 'heads', None))

  def remember(self, sources_BM: jax.Array, *, deterministic: bool = True) -> attention.Memory:
    """Returns what the decoder attends to of sources, int32 token ids, below 0 behind the end."""
    seen_BM = sources_BM >= 0
    hidden_BMD, _ = self.encoder.hidden(
      jnp.maximum(sources_BM, 0),
      segments_BL=seen_BM.astype(jnp.int32),
      deterministic=deterministic,
    )
    kv_BMN2HK = layers.constrain(
      self.memory(hidden_BMD), ('batch', None, None, None, 'heads', None)
    )
    of_layers: Any = [kv_BMN2HK[:, :, i] for i in range(self.config.n_layer)]
    return attention.Memory(jnp.stack(of_layers) if self.config.scan_layers else of_layers, seen_BM)

  def hidden(
    self, tokens_BL: jax.Array, *, sources_BM: jax.Array | None = None, **options: Any
  ) -> tuple[jax.Array, attention.KVCache | None]:
    """Computes the final hidden states of targets, as `gpt.GPT.hidden` does.

    The sources are those of `remember`; with a cache they are in its `memory`.
    """
    if sources_BM is not None:
      deterministic = options.get('deterministic', True)
      options['memory'] = self.remember(sources_BM, deterministic=deterministic)
    return super().hidden(tokens_BL, **options)
