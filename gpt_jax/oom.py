"""Reports running out of memory as a user error: before anything slow if it is certain."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

import jax

from gpt_jax import errors


@contextlib.contextmanager
def oom_as_user_error(fix: str | Callable[[], str]) -> Iterator[None]:
  """Turns out-of-memory errors inside the `with` block into a `UserError` with this fix.

  A function is called only then.
  """
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as e:
    # GPUs and TPUs report the first, the CPU the second.
    of_device = 'RESOURCE_EXHAUSTED' in str(e) or 'Out of memory' in str(e)
    if not of_device and not isinstance(e, MemoryError):
      raise
    detail = (str(e).splitlines() or ['Python gets no more'])[0][:200]
    fix = fix if isinstance(fix, str) else fix()
    raise errors.UserError(f'out of {"device " * of_device}memory', detail, fix) from e


def check(key: str, what: str, size: float) -> None:
  """Raises `UserError` at `key` if `what` needs `size` bytes of a device that has fewer."""
  if size > (limit := device_memory()):
    need = f'at least {size / 1e9:,.0f} GB, and a device has {limit / 1e9:,.1f}'
    raise errors.UserError(key, f'{what} need {need}', 'lower it')


def device_memory() -> float:
  """Returns the bytes that a device has; those made of the CPU share its memory."""
  device = jax.local_devices()[0]
  shared = float('inf')
  if device.platform == 'cpu' and sys.platform != 'win32':
    host = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    shared = host / jax.local_device_count()
  return (device.memory_stats() or {}).get('bytes_limit') or shared
