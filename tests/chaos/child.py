"""Trainings in forked processes, to which something happens.

The parent has imported what a training needs, but never starts JAX's backend, which a fork would
not survive. So a child takes less than a second.
"""

import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from absl import flags

from gpt_jax import cli, train
from gpt_jax import config as config_lib
from gpt_jax.data import loader  # noqa: F401 (so that it is there after a fork)
from gpt_jax.training import loop  # noqa: F401

# Python's audit events of changes to files. What tensorstore writes itself isn't among them, but it
# lies between two of them.
_EVENTS = ('open', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.remove', 'os.utime', 'shutil.rmtree')
_LATER = 0.03  # seconds


class Result(NamedTuple):
  """What was done and found, and how much of it is not as it must be."""

  text: str
  faults: int


def call(log: pathlib.Path, work: Callable[..., Any], *args: Any) -> tuple[int, Any]:
  """Calls `work(*args)` in a forked process; its output goes to `log`.

  Returns its exit status, negative for a signal, and what `work` returned (JSON; None if nothing).
  """
  answer = log.with_suffix('.json')
  answer.unlink(missing_ok=True)
  if (pid := os.fork()) == 0:
    code = 1
    try:
      descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
      os.dup2(descriptor, 1)
      os.dup2(descriptor, 2)
      answer.write_text(json.dumps(work(*args)))
      code = 0
    except SystemExit as e:
      code = int(e.code or 0)
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      os._exit(code)
  status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  return status, json.loads(answer.read_text()) if answer.exists() else None


def run(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains as the command does: exits with its code."""
  with mock.patch.object(sys, 'argv', ['train']):
    cli.run(lambda _: train.train(config, workdir), flags.FlagValues(), doc='')


def count_changes(folder: pathlib.Path, work: Callable[[], None]) -> int:
  """Does `work` and returns how many changes to files in `folder` it made."""
  count = 0

  def hook(event: str, args: tuple[Any, ...]) -> None:
    nonlocal count
    count += _concerns(folder, event, args)

  sys.addaudithook(hook)
  work()
  return count


def kill_at(folder: pathlib.Path, seed: int, most: int) -> None:
  """Makes this process die by SIGKILL at, or shortly after, a change to a file in `folder`.

  Which of `most` changes it is, and how long after it, is drawn from `seed`.
  """
  rng, count = random.Random(seed), 0
  last, delay = rng.randint(1, most), rng.choice([0.0, rng.uniform(0, _LATER)])

  def die() -> None:
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)

  def hook(event: str, args: tuple[Any, ...]) -> None:
    nonlocal count
    count += _concerns(folder, event, args)
    if count == last:
      count += 1
      threading.Thread(target=die).start() if delay else die()

  sys.addaudithook(hook)


def _concerns(folder: pathlib.Path, event: str, args: tuple[Any, ...]) -> bool:
  if event not in _EVENTS or not str(args[0]).startswith(str(folder)):
    return False
  return event != 'open' or not isinstance(args[1], str) or args[1][:1] in 'wax'


def run_to_end(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Trains; returns a hash of the parameters and moments at the end, and the metrics."""
  import jax

  from tests.training import runs

  run(config, workdir)
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(runs.saved_state(workdir)):
    digest.update(leaf.tobytes())
  return {'state': digest.hexdigest(), 'metrics': runs.lines(workdir)}


def reference(config: config_lib.Config, folder: pathlib.Path) -> dict[str, Any]:
  """Returns `run_to_end` of an undisturbed run, and as `changes` those to files in `folder`."""
  log, found = folder / 'log', {}

  def work() -> dict[str, Any]:
    changes = count_changes(folder, lambda: found.update(run_to_end(config, folder / 'reference')))
    return {**found, 'changes': changes}

  status, result = call(log, work)
  assert status == 0, log.read_text()
  return dict(result)
