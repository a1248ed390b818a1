"""What the folder of a run says of it, read without JAX, and tables to print."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from gpt_jax import config as config_lib
from gpt_jax import errors, json_files
from gpt_jax.training import metrics
from gpt_jax.weights import manifest, run_dir


class Overview(NamedTuple):
  """One run."""

  config: config_lib.Config
  lines: list[metrics.Line]
  step: int | None  # of the newest checkpoint
  tokenizer: dict[str, object]  # as it is saved

  @property
  def is_finished(self) -> bool:
    return metrics.is_finished(self.lines, self.step, self.config.train)

  @property
  def best_line(self) -> metrics.Line | None:
    """What is finite of the best evaluation; None if there was none."""
    step = (metrics.best(self.lines) or [None])[0]
    lines = [line for line in self.lines if line['step'] == step and 'val/loss' in line]
    return {k: v for k, v in lines[0].items() if math.isfinite(v)} if lines else None

  @property
  def best(self) -> tuple[str, str]:
    """The best validation loss or accuracy, and its step; empty if none was measured."""
    if not (line := self.best_line):
      return '', ''
    is_error = 'val/error' in line
    shown = f'{1 - line["val/error"]:.1%}' if is_error else f'{line["val/loss"]:.4f}'
    return shown, f'{line["step"]:,}'


def is_run(path: pathlib.Path) -> bool:
  """Returns whether a folder is a run's, perhaps a damaged one."""
  run = run_dir.RunDir(path)
  return any(os.path.exists(file) for file in (run.checkpoints, run.metrics, run.text))


def read(path: pathlib.Path) -> Overview:
  """Reads what the folder of a run says; raises `UserError` if it is damaged, or there is none."""
  if not is_run(path):
    raise errors.UserError(
      str(path), 'is not a run', "give a run's workdir, such as runs/quickstart"
    )
  run = run_dir.RunDir(path)
  step = max(manifest.steps(run.checkpoints), default=None)
  lines = metrics.read(run.metrics)
  return Overview(run.read_config(), lines, step, json_files.read(run.tokenizer))


def table(rows: Sequence[Sequence[str]]) -> str:
  """Returns rows with their columns aligned: the first and the last to the left."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  last = len(widths) - 1
  return '\n'.join(
    '  '.join(
      text.ljust(width) if i in (0, last) else text.rjust(width)
      for i, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )
