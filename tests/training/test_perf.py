"""The FLOPs of a step follow from the model, the peak from the device's name."""

from typing import Any

import pytest

from gpt_jax import config as config_lib
from gpt_jax.training import perf


def _small(**values):
  return config_lib.ModelConfig(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, **values)


def test_gpt2_small_takes_0_855_gigaflop_per_token():
  flops = perf.flops_per_token(_small(block_size=1024))
  assert flops == pytest.approx(0.855e9, rel=0.01)


def test_padding_of_the_vocabulary_costs_nothing():
  padded, bare = (_small(pad_vocab_to=to) for to in (4096, 1))
  assert perf.flops_per_token(padded) == perf.flops_per_token(bare)


def test_a_longer_context_costs_attention_but_not_its_position_table():
  short, long = (_small(block_size=size) for size in (512, 1024))
  more = perf.flops_per_token(long) - perf.flops_per_token(short)
  # Scores and weighted values, 2 FLOPs for each product, forward and twice backward.
  assert more == 12 * (2 * 2 * 3) * 768 * 512


@pytest.mark.parametrize(('kind', 'tie'), [('gpt', True), ('gpt', False), ('lstm', False)])
def test_a_table_that_is_only_looked_up_costs_nothing(kind, tie):
  def flops(vocab_size, classes=''):
    sizes: dict[str, Any] = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'lstm_width': 24}
    sizes |= {'kind': kind, 'tie_embeddings': tie, 'vocab_size': vocab_size, 'classes': classes}
    return perf.flops_per_token(config_lib.ModelConfig(**sizes))

  assert flops(100) - flops(90) == 6 * 10 * (16 if kind == 'gpt' else 24)  # the output layer
  assert flops(100, 'a,b') == flops(90, 'a,b')


def test_frozen_weights_cost_no_gradient_of_their_own():
  rank, width = 8, 768
  adapted, bare = (_small(block_size=1024, lora_rank=r) for r in (rank, 0))
  # Inputs and outputs of the four linear layers, in twelve blocks: three products for each.
  adapters = 12 * rank * ((1 + 3) + (1 + 1) + (1 + 4) + (4 + 1)) * width
  assert adapters == 1_179_648
  frozen = 124_439_808 - 1024 * width
  spared = perf.flops_per_token(bare) + 6 * adapters - perf.flops_per_token(adapted)
  assert spared == 2 * frozen


@pytest.mark.parametrize(
  ('kind', 'peak'),
  [
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H100 NVL', 835e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA H200 NVL', 835e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA A100 80GB PCIe', 312e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('cpu', None),
    ('NVIDIA GeForce RTX 2080 Ti', None),
    ('TPU v99', None),
    ('', None),
  ],
)
def test_the_peak_of_a_device(kind, peak):
  assert perf.peak_flops(kind, 'bfloat16') == peak
  assert perf.peak_flops(kind, 'float32') is None
