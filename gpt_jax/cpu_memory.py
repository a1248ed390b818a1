"""Keeps memory that XLA frees: on a CPU with Linux, steps take up to a third less time.

XLA takes the memory of a step from malloc when it starts and frees it when it ends. The C library
gives large pieces back to Linux, which clears each page again when it is next touched: 1.4 GB in a
step of configs/shakespeare_char.py, 0.7 of the 4.1 seconds that two cores take.
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # parameters of mallopt(3)


def keep() -> None:
  """Makes malloc keep what is freed, in the process: a setting for commands, not for libraries.

  The process grows to the most memory that it ever needs, and by that of one more step where a gap
  is too small to be used again. A user's own GLIBC_TUNABLES stay; other C libraries than GNU's lack
  the function. Only the first thread's memory is kept, see `parallel.mesh.start`.
  """
  mallopt = None
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, 64 << 20)  # bytes; without it the heap grows by 128 KB at a time
