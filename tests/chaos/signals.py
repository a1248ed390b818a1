"""SIGTERM and SIGINT in each phase: saved, exit code 75, and the run ends as it would have."""

import os
import pathlib
import signal
from collections.abc import Callable, Collection
from typing import Any
from unittest import mock

from gpt_jax.data import loader
from gpt_jax.training import input_pipeline, loop, plot, report
from gpt_jax.training import program as program_lib
from gpt_jax.weights import checkpoints
from tests.chaos import child, kills

_PHASES: dict[str, tuple[Any, str]] = {
  'preparing': (loader, 'open_data'),
  'building': (program_lib, 'build'),
  'compiling': (report, 'compile_program'),
  'first parameters': (program_lib.Program, 'initial_state'),
  'training': (report.Console, 'step'),
  'reading batches': (input_pipeline, 'batches'),
  'evaluating': (loop, 'evaluate'),
  'saving': (checkpoints.Checkpoints, 'save'),
  'waiting for a save': (checkpoints.Checkpoints, 'wait'),
  'drawing': (plot, 'draw'),
}


def trial(folder: pathlib.Path, rounds: int, phases: Collection[str] = _PHASES) -> child.Result:
  """Signals a run at the `rounds` first times in each phase; returns what was found."""
  config, log = kills.config_of(folder, steps=12), folder / 'log'
  wanted = child.reference(config, folder)
  del wanted['changes']
  done, wrong_code, different = 0, [], []
  for phase in phases:
    place, name = _PHASES[phase]
    for number in (signal.SIGTERM, signal.SIGINT):
      for nth in range(rounds):
        run = folder / f'{done}'
        done += 1
        status, _ = child.call(log, _signalled, place, name, number, nth, config, run)
        # A phase may come fewer times, or be the last.
        if status != 75 and not (status == 0 and 'finished' in log.read_text()):
          wrong_code.append(f'{phase}: {status}')

        if child.call(log, child.run_to_end, config, run) != (0, wanted):
          different.append(phase)
  text = f'{done} signals: exit codes {wrong_code or "right"}, ended otherwise: {different or 0}'
  return child.Result(text, len(wrong_code) + len(different))


def _signalled(
  place: Any, name: str, number: int, nth: int, config: Any, run: pathlib.Path
) -> None:
  original: Callable[..., Any] = getattr(place, name)
  calls = 0

  def spy(*args: Any, **options: Any) -> Any:
    nonlocal calls
    calls += 1
    if calls == nth + 1:
      os.kill(os.getpid(), number)
    return original(*args, **options)

  with mock.patch.object(place, name, spy):
    child.run(config, run)
