"""Does to runs what machines do: python -m tests.chaos [TRIAL …]; takes minutes.

Each trial prints what was done and what was found. The README has the table.
"""

import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from tests.chaos import kills, rot, signals, two

TRIALS = {
  'kills': lambda folder: kills.trial(folder, 200),
  'one': lambda folder: kills.trial(folder, 100, steps=60, at_once=100),
  'rot': lambda folder: rot.trial(folder, 2000, 200),
  'signals': lambda folder: signals.trial(folder, 3),
  'two': lambda folder: two.trial(folder, 10),
}

for name in sys.argv[1:] or TRIALS:
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    found = TRIALS[name](pathlib.Path(folder))
  print(f'{name}: {found} ({time.monotonic() - began:.0f} s)', flush=True)
