"""Does to runs what machines do: python -m tests.chaos [--short] [TRIAL …]

Prints a line for each trial: what was done and what was found. Exits with 1 if that isn't right.
All of them take about half an hour on two cores, the short ones less than a minute. `disk` and
`read-only` mount file systems, as root only can.
"""

import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable

# The trials start hundreds of trainings: they compile once, and quickly.
_CACHE = tempfile.TemporaryDirectory()
os.environ |= {
  'JAX_COMPILATION_CACHE_DIR': _CACHE.name,
  'JAX_PLATFORMS': 'cpu',
  'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
  'JAX_ENABLE_COMPILATION_CACHE': 'true',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
}

from tests.chaos import child, disk, kills, readers, rot, signals, two  # noqa: E402

TRIALS: dict[str, Callable[[pathlib.Path], child.Result]] = {
  'kills': lambda folder: kills.trial(folder, 200),
  'one run': lambda folder: kills.trial(folder, 100, steps=300, at_once=100, within=90),
  'rot': lambda folder: rot.trial(folder, 2000, 200),
  'signals': lambda folder: signals.trial(folder, 3),
  'two': lambda folder: two.trial(folder, 10),
  'disk': lambda folder: disk.trial(folder, 24),
  'vanished': lambda folder: disk.vanished(folder, 10),
  'read-only': lambda folder: disk.read_only(folder, [0, 3, 6, 11]),
  'readers': lambda folder: readers.trial(folder, 5000),
}
SHORT: dict[str, Callable[[pathlib.Path], child.Result]] = {
  'kills': lambda folder: kills.trial(folder, 5),
  'rot': lambda folder: rot.trial(folder, 40, 10),
  'signals': lambda folder: signals.trial(folder, 1, ['evaluating']),
  'readers': lambda folder: readers.trial(folder, 60),
}


def main(words: list[str]) -> int:
  trials = SHORT if '--short' in words else TRIALS
  faults = 0
  for name in [word for word in words if word != '--short'] or trials:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
      found = trials[name](pathlib.Path(folder))
    faults += found.faults
    print(f'{name}: {found.text} ({time.monotonic() - began:.0f} s)', flush=True)
  return min(faults, 1)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
