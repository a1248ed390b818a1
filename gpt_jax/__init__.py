"""GPT-2 in JAX and Flax: train, sample, evaluate.

Importing this package imports nothing heavy; commands answer `--help` at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import os

  from gpt_jax.generation import text

__version__ = '0.1.0'


def load(path: 'str | os.PathLike[str]', *, dtype: str = 'auto') -> 'text.TextModel':
  """The model at `path`; see `gpt_jax.loading.load`."""
  from gpt_jax import loading

  return loading.load(path, dtype=dtype).model
