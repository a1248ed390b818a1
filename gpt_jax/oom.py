"""Reports running out of device memory as a user error."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from gpt_jax import errors


@contextlib.contextmanager
def oom_as_user_error(fix: str | Callable[[], str]) -> Iterator[None]:
  """Turns XLA's out-of-memory errors inside the `with` block into a `UserError` with this fix.

  A function is called only then.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    # GPUs and TPUs report the first, the CPU the second.
    if 'RESOURCE_EXHAUSTED' not in str(e) and 'Out of memory' not in str(e):
      raise
    detail = str(e).splitlines()[0][:200]
    fix = fix if isinstance(fix, str) else fix()
    raise errors.UserError('out of device memory', detail, fix) from e
