"""metrics.jsonl: one JSON object per line, appended; every step once, also after a resume.

JSON has no NaN and no infinity: a value that isn't finite is null there, and NaN when read.
"""

import json
import math
import pathlib
import time
from collections.abc import Iterable, Sequence

from gpt_jax import atomic, errors
from gpt_jax import config as config_lib
from gpt_jax.training import trackers

Line = dict[str, float]


def read(path: pathlib.Path) -> list[Line]:
  """Returns the lines of a metrics file except a last one cut off by a crash; [] without a file.

  Raises:
    UserError: The file is damaged.
  """
  try:
    lines = path.read_text(encoding='utf-8').split('\n')[:-1]  # the rest is not a whole line
  except FileNotFoundError:
    return []
  except (OSError, UnicodeDecodeError) as e:
    problem = f'cannot be read ({e.strerror if isinstance(e, OSError) else e})'
    raise errors.UserError(str(path), problem, 'restore it or move it away') from e
  found = []
  for number, line in enumerate(lines, 1):
    try:
      found.append(_parse(line))
    except (ValueError, RecursionError) as e:
      problem = f'line {number} is damaged ({e})'
      raise errors.UserError(str(path), problem, 'remove the line, or move the file away') from e
  return found


def _parse(text: str) -> Line:
  """Returns the values of a line, the step first."""
  values = json.loads(text)
  if not isinstance(values, dict):
    raise ValueError('not a JSON object')
  line = {k: math.nan if v is None else v for k, v in values.items()}
  step: float = line.get('step', -1)
  if type(step) is not int or step < 0 or any(type(v) not in (int, float) for v in line.values()):
    raise ValueError('step must be a number from 0 on, others numbers or null')
  return {'step': step, **line}


def column(lines: Iterable[Line], key: str) -> tuple[list[int], list[float]]:
  """Returns steps and values of the lines in which `key` has a finite value."""
  pairs = [
    (int(line['step']), line[key]) for line in lines if math.isfinite(line.get(key, math.nan))
  ]
  return [step for step, _ in pairs], [value for _, value in pairs]


def score(line: Line) -> float:
  """Returns what the best model has least of: validation loss; error first, of a classifier."""
  loss = line['val/loss']
  return line['val/error'] + 1e-9 * loss if 'val/error' in line else loss


def best(lines: Iterable[Line]) -> tuple[int, float] | None:
  """Returns step and value of the lowest score of a trained model, the first if equal."""
  pairs = ((int(line['step']), score(line)) for line in lines if 'val/loss' in line)
  trained = [(step, loss) for step, loss in pairs if step and math.isfinite(loss)]
  return min(trained, key=lambda pair: pair[1], default=None)


def is_finished(lines: Sequence[Line], step: int | None, train: config_lib.TrainConfig) -> bool:
  """Returns whether a run that is saved at `step` is at its end: it has been evaluated there.

  The end is the last step, or an earlier one with no lower loss in `train.patience` evaluations.
  """
  steps = [line['step'] for line in lines if 'val/loss' in line]
  if step not in steps:
    return False
  found = best(line for line in lines if line['step'] <= step)
  since = sum(found[0] < each <= step for each in steps) if found else 0
  return step == train.steps or 0 < train.patience <= since


class MetricsLog:
  """Appends to a metrics file.

  Attributes:
    lines: All lines so far.
  """

  def __init__(
    self,
    path: pathlib.Path,
    *,
    resume_step: int | None,
    writers: Sequence[trackers.Writer] = (),
    writes: bool = True,
  ) -> None:
    """Opens `path`; the `writers` get each line too.

    A run that resumes from `resume_step` writes later lines again: they are dropped. None starts a
    new file. Without `writes`, lines are only remembered: another process writes the same.
    """
    last = -1 if resume_step is None else resume_step
    self.lines = [line for line in read(path) if line['step'] <= last]
    self._path, self._writes, self._writers = path, writes, writers
    self._start = time.monotonic() - max((line.get('time', 0.0) for line in self.lines), default=0)
    if writes:
      atomic.write_bytes(path, ''.join(map(_to_json, self.lines)).encode())

  def has(self, step: int, key: str) -> bool:
    """Returns whether a line of `step` has `key`."""
    return any(line['step'] == step and key in line for line in self.lines)

  def write(self, step: int, values: Line) -> None:
    """Appends a line of `step`, `values` and `time` (seconds since the run's start)."""
    line = {'step': step, **values, 'time': round(time.monotonic() - self._start, 3)}
    self.lines.append(line)
    if self._writes:
      with atomic.naming(self._path), self._path.open('a', encoding='utf-8') as file:
        file.write(_to_json(line))
    for writer in self._writers:
      writer.write(step, values)


def _to_json(line: Line) -> str:
  values = {key: value if math.isfinite(value) else None for key, value in line.items()}
  return json.dumps(values, allow_nan=False) + '\n'
