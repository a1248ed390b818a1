"""List runs: python -m gpt_jax.runs

Prints how far each run in the folder `runs` is, how good, large and old, and in which config keys
they differ.
"""

import collections
import contextlib
import os
import pathlib
import re
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import cli, errors, knobs

if TYPE_CHECKING:
  from gpt_jax.training import overview

# Keys that are derived from others, or that say where a run is computed and how often it reports.
_NOISE = re.compile(
  r'processes\..*|data\.(cache_dir|processes|verify)|model\.(vocab_size|attention|classes)'
  r'|train\.(.*_every|keep_checkpoints|tensorboard|trackers|max_minutes)'
)
_HEAD = ('run', 'step', 'of', 'best val', 'at', 'MB', 'age', 'state')


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string('folder', 'runs', 'The folder with the runs, or one run.', flag_values=values)
  cli.define_json(values)
  return values


def main(values: flags.FlagValues) -> None:
  from gpt_jax.training import overview  # imports NumPy

  folder = pathlib.Path(values.folder)
  inside = sorted(folder.iterdir()) if folder.is_dir() else []
  paths = [
    path for path in ([folder] if overview.is_run(folder) else inside) if overview.is_run(path)
  ]
  if not paths:
    problem = f'{folder} has no runs' if inside else f'{folder} is no folder with runs'
    raise errors.UserError('folder', problem, 'name the folder of your workdirs')
  rows, found = list[tuple[str, ...]]([_HEAD]), dict[str, overview.Overview]()
  records = list[dict[str, Any]]()
  for path in paths:
    size, changed = _size_and_time(path)
    record: dict[str, Any] = {'run': str(path), 'bytes': size, 'changed': changed}
    try:
      found[path.name] = run = overview.read(path)
      row = [f'{run.step or 0:,}', f'{run.config.train.steps:,}', *run.best]
      state = _state(run)
      record |= {'task': run.config.task, 'step': run.step, 'steps': run.config.train.steps}
      record |= {'best': run.best_line, 'state': state}
    except errors.UserError as e:
      row, state = ['', '', '', ''], f'damaged: {e}'
      record |= {'state': 'damaged', 'problem': str(e)}
    rows.append((path.name, *row, f'{size / 1e6:,.1f}', _age(changed), state))
    records.append(record)
  text = overview.table(rows)
  for task in sorted({run.config.task for run in found.values()}):
    of_task = {name: run for name, run in found.items() if run.config.task == task}
    if differences := _differences(of_task):
      text += f'\n\n{task}: they differ in\n{overview.table(differences)}'
  cli.show(values, records, text)


def _state(run: 'overview.Overview') -> str:
  if run.step is None:
    return 'no checkpoint'
  return 'finished' if run.is_finished else 'unfinished'


def _size_and_time(path: pathlib.Path) -> tuple[int, float]:
  """Returns the bytes in a folder, and when something was last written there."""
  size, newest = 0, path.stat().st_mtime
  for folder, _, names in os.walk(path):
    for name in names:
      with contextlib.suppress(OSError):  # a checkpoint that a run has just deleted
        stat = os.stat(os.path.join(folder, name))
        size, newest = size + stat.st_size, max(newest, stat.st_mtime)
  return size, newest


def _age(changed: float) -> str:
  age = max(0, time.time() - changed)
  unit, seconds = next(u for u in (('d', 86400), ('h', 3600), ('min', 60), ('s', 0)) if age >= u[1])
  return f'{age / (seconds or 1):.0f} {unit}'


def _differences(found: 'dict[str, overview.Overview]') -> list[tuple[str, str]]:
  """Returns the keys in which runs differ, each with its values and their runs."""
  runs_by_value: dict[str, dict[str, list[str]]] = {}
  for name, run in found.items():
    for knob in knobs.knobs(run.config):
      by_value = runs_by_value.setdefault(knob.key, collections.defaultdict(list))
      by_value[str(knob.value) or "''"].append(name)
  return [
    (key, '; '.join(f'{value}: {", ".join(names)}' for value, names in by_value.items()))
    for key, by_value in runs_by_value.items()
    if len(by_value) > 1 and not _NOISE.fullmatch(key)
  ]


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__)
