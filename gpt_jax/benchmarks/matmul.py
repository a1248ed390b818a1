"""Measures the products that a training step is made of, each as a program of its own.

Axes: N rows (B·L), D inputs, F outputs, B batch, L and M length, H heads, K head width.
"""

import math
import time

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax.benchmarks import figures
from gpt_jax.benchmarks import options as options_lib
from gpt_jax.parallel import mesh as mesh_lib

_LARGE = 2048
_LEAST = 2e8  # FLOPs in a repetition: a product of microseconds is repeated
_LINEAR = {'': 'ND,DF->NF', ' dx': 'NF,DF->ND', ' dw': 'ND,NF->DF'}
_ATTENTION = {'scores': 'BLHK,BMHK->BHLM', 'values': 'BHLM,BMHK->BLHK'}


def measure(config: config_lib.Config, options: options_lib.Options) -> list[figures.Figure]:
  """Measures the products of a micro-batch on one device, and a large one."""
  model, mesh = config.model, mesh_lib.make_mesh(config)
  parts = config.train.gradient_accumulation * mesh.shape['data'] * mesh.shape['fsdp']
  B, L, D = config.train.batch_size // parts, config.row_length, model.n_embd
  sizes = {'B': B, 'L': L, 'M': L, 'H': model.n_head, 'K': model.head_width}
  found = [_rate(name, each, sizes, model.dtype, options) for name, each in _ATTENTION.items()]
  layers = {'c_attn': (D, 3 * D), 'c_proj': (D, D), 'c_fc': (D, 4 * D), 'mlp c_proj': (4 * D, D)}
  for name, (inputs, outputs) in {**layers, 'output': (D, model.padded_vocab_size)}.items():
    sizes = {'N': B * L, 'D': inputs, 'F': outputs}
    found += [_rate(name + of, each, sizes, model.dtype, options) for of, each in _LINEAR.items()]
  return [*found, largest(model.dtype, options)]


def largest(dtype: str, options: options_lib.Options) -> figures.Figure:
  """Measures a product that is large enough to reach what a device can do."""
  return _rate('large', _LINEAR[''], dict.fromkeys('NDF', _LARGE), dtype, options)


def _rate(
  name: str, equation: str, sizes: dict[str, int], dtype: str, options: options_lib.Options
) -> figures.Figure:
  """Measures an einsum of axes with these sizes."""
  shapes = [tuple(map(sizes.__getitem__, x)) for x in equation.split('->')[0].split(',')]
  x, y = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in shapes)
  product = jax.jit(lambda x, y: jnp.einsum(equation, x, y))
  flops = 2 * math.prod(sizes.values())
  count, values = max(options.steps, math.ceil(_LEAST / flops)), []
  for _ in range(1 + options.repeats):  # the first is the warm-up
    began = time.perf_counter()
    jax.block_until_ready([product(x, y) for _ in range(count)][-1])
    values.append(count * flops / (time.perf_counter() - began) / 1e9)
  note = ' · '.join('×'.join(map(str, shape)) for shape in shapes)
  return figures.Figure(name, 'GFLOP/s', values[1:], f'{equation}  {note}')
