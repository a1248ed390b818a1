"""What a step costs in arithmetic, and how much of the device's peak that is."""

import jax

from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.models import lora

# Dense bfloat16 FLOP/s of a device by the beginning of its device_kind; the longest match counts.
# From NVIDIA's data sheets (half of the figures "with sparsity") and Google's pages on TPUs.
_PEAK_BF16 = {
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
  'NVIDIA H200 NVL': 835e12,
  'NVIDIA GH200': 989e12,
  'NVIDIA B200': 2250e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
}


def flops_per_token(config: config_lib.ModelConfig) -> float:
  """Returns training FLOPs per token, 6 (N − N_wpe) + 12 n_layer n_embd L (PaLM, appendix B).

  Of the six, two are for the gradient of the weights. With adapters only these N_lora of the N get
  one: 4 (N − N_wpe) + 2 N_lora + 12 n_layer n_embd L. An embedding that isn't the output layer's
  costs nothing either, nor does an output layer that a classifier doesn't use; clusters of the
  vocabulary count as if all were computed. Masked tokens alone, 15 %, have an output layer;
  a decoder of spans has a fifth of the tokens.
  """
  params, size = models.parameter_count(config), config.vocab_size
  if config.classes or not config.tie_embeddings:
    params -= size * config.n_embd
  if config.classes and not config.tie_embeddings:
    params -= size * config.hidden_width
  if config.mask_id >= 0 and config.kind == 'encoder_decoder':  # spans are a fifth of the text
    read = jax.tree.leaves([models.abstract_params(config)[name] for name in ('encoder', 'memory')])
    params -= round(0.8 * (params - sum(leaf.size for leaf in read)))
  elif config.mask_id >= 0:  # the output layer is computed for 15 % of the tokens
    params -= round(0.85 * size * config.hidden_width)
  if config.kind == 'lstm':
    return 6 * params
  params -= config.block_size * config.n_embd
  adapters, _ = lora.split(models.abstract_params(config))
  trained = sum(leaf.size for leaf in jax.tree.leaves(adapters)) if adapters else params
  return 4 * params + 2 * trained + 12 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Returns the peak FLOP/s of one device in `dtype`; None if it isn't known."""
  names = [name for name in _PEAK_BF16 if device_kind.startswith(name)]
  return _PEAK_BF16[max(names, key=len)] if names and dtype == 'bfloat16' else None
