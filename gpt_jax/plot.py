"""Compare runs: python -m gpt_jax.plot runs/quickstart runs/other

Prints a table of them, and draws their validation loss (of classifiers: accuracy) over steps and
over time.
"""

import datetime
import pathlib
import statistics
import sys
from typing import TYPE_CHECKING

from absl import flags

from gpt_jax import cli, errors

if TYPE_CHECKING:
  from gpt_jax.training import overview

_RATE = 'perf/tokens_per_second'
_HEAD = ('run', 'steps', 'best val', 'at', 'tokens/s', 'time', 'parameters')


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string('output', 'compare.png', 'File to draw to.', flag_values=values)
  return values


def main(values: flags.FlagValues, paths: list[str]) -> None:
  if not paths:
    raise errors.UserError('command line', 'has no runs', 'give the workdirs of some')
  output = pathlib.Path(values.output)
  if output.is_dir() or not output.absolute().parent.is_dir():
    raise errors.UserError('output', f'{output} cannot be written', 'name a file for the picture')
  from gpt_jax.training import overview  # after the checks

  runs, found = dict[str, overview.Overview](), []
  names = [pathlib.Path(path).name for path in set(paths)]
  for path in dict.fromkeys(paths):
    name = pathlib.Path(path).name
    try:
      runs[path if names.count(name) > 1 else name] = overview.read(pathlib.Path(path))
    except errors.UserError as e:
      found.append(e)
  errors.raise_all(found)
  if len({bool(run.config.model.classes) for run in runs.values()}) > 1:
    raise errors.UserError('command line', 'classifiers and language models cannot be compared')
  if len({str(run.tokenizer) for run in runs.values()}) > 1:
    note = 'their tokenizers differ, so their losses per token cannot be compared'
    print(note, file=sys.stderr)
  _draw(runs, output)
  print(overview.table([_HEAD, *(_row(name, run) for name, run in runs.items())]))
  print(f'wrote {output}')


def _draw(runs: 'dict[str, overview.Overview]', output: pathlib.Path) -> None:
  from gpt_jax.training import plot

  lines = {name: run.lines for name, run in runs.items()}
  classify = any(run.config.model.classes for run in runs.values())
  plot.compare(lines, output, key='val/accuracy' if classify else 'val/loss')


def _row(name: str, run: 'overview.Overview') -> tuple[str, ...]:
  import jax

  jax.config.update('jax_platforms', 'cpu')  # a run may be using the device, and shapes are enough
  from gpt_jax import models

  last = run.lines[-1] if run.lines else {'step': 0, 'time': 0.0}
  rates = [line[_RATE] for line in run.lines[1:] if _RATE in line]
  rate = f'{statistics.median(rates):,.0f}' if rates else ''
  took = str(datetime.timedelta(seconds=round(last.get('time', 0))))
  size = f'{models.parameter_count(run.config.model):,}'
  return (name, f'{last["step"]:,}', *run.best, rate, took, size)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, words=())
