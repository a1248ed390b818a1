"""A second training in the same folder: refused, and the first one doesn't notice."""

import os
import pathlib
import time

from tests.chaos import child, kills


def trial(folder: pathlib.Path, count: int) -> str:
  """Starts `count` more trainings while one runs; returns what was found."""
  config, log = kills.config_of(folder, steps=200), folder / 'log'
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
  return (
    f'{count} trainings beside one: {refused} refused; the first was {"" if harmed else "un"}harmed'
  )
