"""GPT-2 in JAX and Flax: train, sample, evaluate.

Importing this package imports nothing heavy; commands answer `--help` at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import os

  from gpt_jax.generation import language_model

__version__ = '0.1.0'


def load(path: 'str | os.PathLike[str]', *, dtype: str = 'auto') -> 'language_model.LanguageModel':
  """Returns the model at `path`; see `gpt_jax.generation.language_model.load`."""
  from gpt_jax.generation import language_model

  return language_model.load(path, dtype=dtype)
