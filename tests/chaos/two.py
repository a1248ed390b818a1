"""A second training in the same folder: refused, and the first one doesn't notice."""

import os
import pathlib
import time

from tests.chaos import child, kills


def trial(folder: pathlib.Path, count: int) -> child.Result:
  """Starts `count` more trainings while one runs; returns what was found."""
  config, log = kills.config_of(folder, steps=60), folder / 'log'
  wanted, run = child.reference(config, folder), folder / 'run'
  del wanted['changes']
  refused = 0
  if (first := os.fork()) == 0:
    found = child.call(folder / 'first', child.run_to_end, config, run)
    os._exit(0 if found == (0, wanted) else 1)
  for _ in range(count):
    while not (run / 'checkpoints').exists():
      time.sleep(0.01)
    status, _ = child.call(log, child.run, config, run)
    refused += status == 2 and 'is in use by process' in log.read_text()
  harmed = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
  unharmed = 'harmed' if harmed else 'unharmed'
  text = f'{count} trainings beside one: {refused} refused; the first was {unharmed}'
  return child.Result(text, count - refused + bool(harmed))
