"""SIGKILL at any moment: nothing finished is lost, and the run ends as if nothing had happened."""

import pathlib
import shutil

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.weights import manifest
from tests.chaos import child
from tests.training import runs


def config_of(folder: pathlib.Path, *, steps: int) -> config_lib.Config:
  """A run that saves at each second step, keeps two checkpoints and the best, and evaluates."""
  return runs.make_config(
    folder, train__steps=steps, train__checkpoint_every=2, train__log_every=2, train__eval_every=4
  )


def trial(
  folder: pathlib.Path, count: int, *, steps: int = 12, at_once: int = 5, within: int | None = None
) -> child.Result:
  """Kills runs `count` times, each `at_once` times if it lasts; returns what was found.

  Each time it is at one of the first `within` changes to files, by default of all.
  """
  config, log, run = config_of(folder, steps=steps), folder / 'log', folder / 'run'
  wanted = child.reference(config, folder)
  changes = wanted.pop('changes')
  killed = runs_done = unrestorable = lost = different = 0
  while killed < count:
    shutil.rmtree(folder / 'cache')  # so that preparing is among what is killed
    shutil.rmtree(run, ignore_errors=True)
    newest = 0
    for _ in range(min(at_once, count - killed)):
      status, _ = child.call(log, _run_and_die, config, run, killed, within or changes)
      if status == 0:
        break
      assert status == -9, log.read_text()
      killed += 1
      found = manifest.steps(run / 'checkpoints')
      unrestorable += sum(not _is_intact(run / 'checkpoints' / str(step)) for step in found)
      lost += max(found, default=0) < newest
      newest = max(found, default=0)
    status, ended = child.call(log, child.run_to_end, config, run)
    assert status == 0, log.read_text()
    runs_done += 1
    different += ended != wanted
  return child.Result(
    f'{killed} kills of {runs_done} runs: {unrestorable} unrestorable, {lost} finished checkpoints '
    f'lost, {different} runs ended otherwise',
    unrestorable + lost + different,
  )


def _run_and_die(config: config_lib.Config, run: pathlib.Path, seed: int, most: int) -> None:
  child.kill_at(run.parent, seed, most)
  child.run(config, run)


def _is_intact(checkpoint: pathlib.Path) -> bool:
  try:
    manifest.verify(checkpoint)
  except errors.UserError:
    return False
  return True
