"""A full disk at any moment, and a folder that can't be written: told, and nothing is lost."""

import contextlib
import pathlib
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gpt_jax.weights import manifest
from tests.chaos import child, kills
from tests.training import runs


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
      failed += status != 0
      told += status == 2 and not _has_traceback(output) and 'error: ' in output
      damaged += len(_damaged(disk / 'run' / 'checkpoints'))
      subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
      different += child.call(log, child.run_to_end, config, disk / 'run') != (0, wanted)
  return child.Result(
    f'{count} disks, {failed} of them too small: {told} times told with exit code 2; {damaged} '
    f'damaged checkpoints, {different} runs ended otherwise with more room',
    failed - told + damaged + different,
  )


def vanished(folder: pathlib.Path, count: int) -> child.Result:
  """Moves the folder of a run away while it trains; returns what was found."""
  config, log, right = kills.config_of(folder, steps=40), folder / 'log', 0
  for i in range(count):
    run = folder / f'{i}'
    status, _ = child.call(log, _run_without_folder, config, run, 2 + 3 * i)
    right += status == 2 and not _has_traceback(log.read_text())
  return child.Result(
    f'{count} folders that vanished: {right} told with exit code 2', count - right
  )


def _run_without_folder(config: Any, run: pathlib.Path, step: int) -> None:
  runs.at_step(pytest.MonkeyPatch(), step, lambda: run.rename(f'{run}.gone'))
  child.run(config, run)


def read_only(folder: pathlib.Path, steps: Sequence[int]) -> child.Result:
  """Makes folders read-only before a run, at 0, or at one of its steps; needs root."""
  log, done, right, different = folder / 'log', 0, 0, 0
  config = kills.config_of(folder, steps=12)
  wanted = child.reference(config, folder)
  del wanted['changes']
  for name in ('run', 'run/checkpoints', 'cache'):
    for step in steps:
      home = folder / f'{done}'
      place, run = home / name, home / 'run'
      for needed in ('run/checkpoints', 'cache', 'closed'):
        (home / needed).mkdir(parents=True)
      config = runs.change(config, data__cache_dir=str(home / 'cache'))
      with _closed(place, home / 'closed'):
        found = [child.call(log, _run_read_only, config, run, place, step)[0]]
        told = [log.read_text()]
        found.append(child.call(log, child.run, config, run)[0])
        told.append(log.read_text())
      # What is prepared is only read.
      expected = 0 if step and name == 'cache' else 2
      why = all('ead-only' in text.split('error: ')[-1] for text in told) or not expected
      kept = manifest.steps(run / 'checkpoints') or step < 4
      intact = kept and not _damaged(run / 'checkpoints')
      quiet = not any(map(_has_traceback, told))
      right += bool(found == [expected] * 2 and why and quiet and intact)
      different += child.call(log, child.run_to_end, config, run) != (0, wanted)
      done += 1
  return child.Result(
    f'{done} times a folder was read-only: {right} times right; {different} runs ended otherwise '
    'with it writable',
    done - right + different,
  )


def _run_read_only(config: Any, run: pathlib.Path, place: pathlib.Path, step: int) -> None:
  def close() -> None:
    subprocess.run(['mount', '--bind', run.parent / 'closed', place], check=True)

  runs.at_step(pytest.MonkeyPatch(), step, close) if step else close()
  child.run(config, run)


@contextlib.contextmanager
def _closed(place: pathlib.Path, closed: pathlib.Path) -> Iterator[None]:
  """Makes `closed` be `place`, but read-only, to be mounted over it; in the end neither is.

  A file system itself can't become so while files of it are open to be written.
  """
  subprocess.run(['mount', '--bind', place, closed], check=True)
  subprocess.run(['mount', '-o', 'remount,bind,ro', closed], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', place, closed], check=True)


@contextlib.contextmanager
def _mounted(place: pathlib.Path, size: int) -> Iterator[None]:
  place.mkdir(exist_ok=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True)
  try:
    yield
  finally:
    subprocess.run(['umount', place], check=True)


def _has_traceback(output: str) -> bool:
  """Whether there is one of ours; tensorstore prints some of asyncio when a save has failed."""
  return bool(re.search(r'gpt_jax/\S+\.py", line', output))


def _damaged(checkpoints: pathlib.Path) -> list[manifest.Damaged]:
  found = [manifest.first_intact(checkpoints, [step])[1] for step in manifest.steps(checkpoints)]
  return sum(found, [])
