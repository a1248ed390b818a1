"""What to do where a device's memory isn't enough."""

import contextlib
from collections.abc import Iterator

import jax

from gpt_jax import errors


@contextlib.contextmanager
def shortage_is_the_users(remedies: str) -> Iterator[None]:
  """A context in which XLA's out-of-memory errors become a `UserError` that names the remedies."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    # GPUs and TPUs say the first, the CPU the second.
    if 'RESOURCE_EXHAUSTED' not in str(e) and 'Out of memory' not in str(e):
      raise
    detail = str(e).splitlines()[0][:200]
    raise errors.UserError(f'out of device memory: {remedies} ({detail})') from e
