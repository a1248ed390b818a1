"""A full disk at any moment, and a folder that can't be written: told, and nothing is lost."""

import contextlib
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from gpt_jax.weights import manifest
from tests.chaos import child, kills


def trial(folder: pathlib.Path, count: int) -> child.Result:
  """Trains on `count` disks that are too small, then on the same made larger; needs root."""
  config, log, disk = kills.config_of(folder, steps=12), folder / 'log', folder / 'disk'
  wanted = child.reference(config, folder)
  del wanted['changes']
  whole = sum(p.stat().st_size for p in (folder / 'reference').rglob('*') if p.is_file())
  failed, told, damaged, different = 0, 0, 0, 0
  for i in range(count):
    size = 4096 + 2 * whole * i // count
    with _mounted(disk, size):
      status, _ = child.call(log, child.run, config, disk / 'run')
      output = log.read_text()
      # tensorstore prints some tracebacks of this kind when a save has failed, past Python's hooks.
      others = output.count('Traceback') - output.count('RuntimeError: Event loop is closed')
      failed += status != 0
      told += status == 2 and not others and 'error: ' in output
      damaged += len(_damaged(disk / 'run' / 'checkpoints'))
      subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
      different += child.call(log, child.run_to_end, config, disk / 'run') != (0, wanted)
  return child.Result(
    f'{count} disks, {failed} of them too small: {told} times told with exit code 2; {damaged} '
    f'damaged checkpoints, {different} runs ended otherwise with more room',
    failed - told + damaged + different,
  )


def vanished(folder: pathlib.Path, count: int) -> child.Result:
  """Removes or locks the folder of a run while it trains; returns what was found."""
  config, log, right = kills.config_of(folder, steps=40), folder / 'log', 0
  for i in range(count):
    run = folder / f'{i}'
    status, _ = child.call(log, _run_without_folder, config, run, 2 + 3 * i)
    right += status == 2 and 'Traceback' not in log.read_text()
  return child.Result(
    f'{count} folders that vanished: {right} told with exit code 2', count - right
  )


def _run_without_folder(config: Any, run: pathlib.Path, step: int) -> None:
  import pytest

  from tests.training import runs

  runs.at_step(pytest.MonkeyPatch(), step, lambda: shutil.rmtree(run))
  child.run(config, run)


@contextlib.contextmanager
def _mounted(place: pathlib.Path, size: int) -> Iterator[None]:
  place.mkdir(exist_ok=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', place], check=True)


def _damaged(checkpoints: pathlib.Path) -> list[manifest.Damaged]:
  found = [manifest.first_intact(checkpoints, [step])[1] for step in manifest.steps(checkpoints)]
  return sum(found, [])
