"""Look after the checkpoints of a run: python -m gpt_jax.checkpoints list runs/quickstart

`list RUN` shows them. `verify RUN` reads all files and says which checkpoints are intact. `remove
RUN STEP …` removes some, but never the last intact one. Exit code 2: user error, or one is damaged.
"""

import datetime
import sys
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import cli, errors, knobs

if TYPE_CHECKING:
  from gpt_jax.weights import run_dir

_ACTIONS = ('list', 'verify', 'remove')


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  cli.define_json(values)
  return values


def main(values: flags.FlagValues, words: list[str]) -> None:
  action, folder, *rest = [*words, '', ''][: max(2, len(words))]
  if action not in _ACTIONS:
    problem = f'{action!r} must be one of {", ".join(_ACTIONS)}'
    raise errors.UserError('command line', problem, knobs.suggestion(action, _ACTIONS))
  if not folder or bool(rest) != (action == 'remove') or not all(word.isdecimal() for word in rest):
    expected = 'RUN STEP …' if action == 'remove' else 'RUN'
    raise errors.UserError('command line', f'must be {action} {expected}', 'see --help')
  from gpt_jax.weights import run_dir  # slow to import

  run = run_dir.RunDir(folder)
  if not run.checkpoints.is_dir():
    fix = "give a run's workdir, such as runs/quickstart"
    raise errors.UserError(folder, 'has no checkpoints', fix)
  if action == 'remove':
    _remove(values, run, sorted(map(int, rest)))
  else:
    _show(values, run, verify=action == 'verify')


def _show(values: flags.FlagValues, run: 'run_dir.RunDir', *, verify: bool) -> None:
  """Prints a line for each checkpoint; exits with 2 if one is found damaged."""
  from gpt_jax.training import overview
  from gpt_jax.weights import manifest

  scores = manifest.scores(run.checkpoints)
  best, rows = manifest.best(scores), [('step', 'score', 'MB', 'saved', 'state')]
  records = list[dict[str, Any]]()
  for step in scores:
    folder, score = run.checkpoints / str(step), scores[step]
    problem = None
    try:
      (manifest.verify if verify else manifest.read)(folder)
    except errors.UserError as e:
      problem = e.problem
    state = problem or ', '.join(['intact'] * verify + ['best'] * (step == best))
    size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    time = folder.stat().st_mtime
    saved = f'{datetime.datetime.fromtimestamp(time):%Y-%m-%d %H:%M}'
    shown = '' if score is None else f'{score:.4f}'
    rows.append((f'{step:,}', shown, f'{size / 1e6:,.1f}', saved, state))
    record = {'step': step, 'score': score, 'bytes': size, 'saved': time}
    records.append(record | {'best': step == best, 'problem': problem})
  cli.show(values, records, overview.table(rows))
  if any(record['problem'] for record in records):
    sys.exit(cli.USER_ERROR)


def _remove(values: flags.FlagValues, run: 'run_dir.RunDir', steps: list[int]) -> None:
  """Removes checkpoints; raises `UserError` if one is missing, or no intact one would be left."""
  from gpt_jax.training import lock
  from gpt_jax.weights import checkpoints, manifest

  with lock.locked(run.path):
    have = manifest.steps(run.checkpoints)
    if missing := sorted(set(steps) - set(have)):
      problem = f'{missing[0]} is no checkpoint of {run.path}'
      raise errors.UserError('step', problem, f'there are {", ".join(map(str, have))}')
    kept = sorted(set(have) - set(steps), reverse=True)
    if manifest.first_intact(run.checkpoints, kept)[0] is None:
      raise errors.UserError(
        'step', 'no intact checkpoint would be left', 'keep one, or remove RUN'
      )
    for step in steps:
      checkpoints.remove(run.checkpoints / str(step))
      cli.show(values, [{'removed': step}], f'removed {run.checkpoints / str(step)}')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, words=_ACTIONS)
