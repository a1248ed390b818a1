"""metrics.jsonl: one JSON object a line, appended, every step once also after a resume."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any, Self

from gpt_jax import errors

Line = dict[str, float]


def read(path: str | os.PathLike[str]) -> list[Line]:
  """The lines of a metrics file, but for a last one that a crash cut off; [] without a file."""
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
    lines = text.split('\n')[:-1]  # what follows the last line break isn't whole
    return [{'step': values['step'], **values} for values in map(json.loads, lines)]
  except FileNotFoundError:
    return []
  except (ValueError, TypeError, KeyError) as e:
    raise errors.UserError(f'{path} is damaged: {e}; mend or move it away.') from e


def column(lines: Iterable[Line], key: str) -> tuple[list[int], list[float]]:
  """Steps and values of the lines that have `key`."""
  pairs = [(int(line['step']), line[key]) for line in lines if key in line]
  return [step for step, _ in pairs], [value for _, value in pairs]


class MetricsLog:
  """Appends to a metrics file, and to TensorBoard files if asked to."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    resume_step: int | None,
    tensorboard: str | os.PathLike[str] | None,
  ):
    """Opens `path`.

    Args:
      path: the file; made if it isn't there.
      resume_step: the step that the run goes on from: later lines are dropped, since they will be
        written again; None starts anew.
      tensorboard: the directory of TensorBoard files, None for none.
    """
    last = -1 if resume_step is None else resume_step
    path = pathlib.Path(path)
    self.lines = [line for line in read(path) if line['step'] <= last]
    part = path.with_name(path.name + '.part')
    part.write_text(''.join(_dump(line) for line in self.lines), encoding='utf-8')
    part.replace(path)
    self._file = path.open('a', encoding='utf-8')
    self._start = time.monotonic() - max(
      (line.get('time', 0.0) for line in self.lines), default=0.0
    )
    self._tensorboard: Any = None
    if tensorboard is not None:
      # It imports PyTorch where there is one, unless PyTorch seems not to be there.
      hidden: Any = {'torch': None} if 'torch' not in sys.modules else {}
      sys.modules.update(hidden)
      import tensorboardX

      for name in hidden:
        del sys.modules[name]
      self._tensorboard = tensorboardX.SummaryWriter(str(tensorboard), purge_step=last + 1)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()

  def write(self, step: int, values: Line) -> None:
    """Appends a line of `step`, `values` and `time` (seconds since the run's start)."""
    line = {'step': step, **values, 'time': round(time.monotonic() - self._start, 3)}
    self._file.write(_dump(line))
    self._file.flush()
    self.lines.append(line)
    if self._tensorboard is not None:
      for key, value in values.items():
        self._tensorboard.add_scalar(key, value, step)

  def best_val_loss(self) -> float:
    """The lowest validation loss after step 0 so far; infinity if there is none."""
    steps, losses = column(self.lines, 'val/loss')
    return min((loss for step, loss in zip(steps, losses, strict=True) if step), default=math.inf)


def _dump(line: Line) -> str:
  return json.dumps(line) + '\n'
