"""What a step costs in arithmetic, and how much of the device's peak that is."""

import time

import jax

from gpt_jax import config as config_lib
from gpt_jax.models import gpt, lora

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets, by jax.Device.device_kind.
_PEAK_BF16 = {
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA GH200': 989e12,
  'NVIDIA B200': 2250e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
}


def flops_per_token(config: config_lib.ModelConfig) -> float:
  """Training FLOPs a token, 6 (N − N_wpe) + 12 n_layer n_embd L (PaLM, appendix B; nanoGPT).

  Of the six, two are for the gradient of the weights. With adapters only these N_lora of the N get
  one: 4 (N − N_wpe) + 2 N_lora + 12 n_layer n_embd L.
  """
  params = gpt.parameter_count(config) - config.block_size * config.n_embd
  adapters, _ = lora.split(gpt.abstract_params(config))
  trained = sum(leaf.size for leaf in jax.tree.leaves(adapters)) if adapters else params
  return 4 * params + 2 * trained + 12 * config.n_layer * config.n_embd * config.block_size


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """FLOP/s of one device in `dtype`; None where it isn't known."""
  if dtype != 'bfloat16':
    return None
  names = [name for name in _PEAK_BF16 if device_kind.startswith(name)]
  return _PEAK_BF16[max(names, key=len)] if names else None


class Throughput:
  """Tokens a second between readings, without the time that was spent on other things."""

  def __init__(self) -> None:
    self._since = time.monotonic()
    self._tokens = 0

  def add(self, tokens: int) -> None:
    """Counts the tokens of a finished step."""
    self._tokens += tokens

  def read(self) -> float:
    """Tokens a second since the last reading."""
    now = time.monotonic()
    rate = self._tokens / max(now - self._since, 1e-9)
    self._since, self._tokens = now, 0
    return rate

  def exclude(self, seconds: float) -> None:
    """Takes `seconds` (an evaluation, a save) out of the time since the last reading."""
    self._since += seconds
