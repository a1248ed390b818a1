"""What the folder of a run says of it, read without JAX, and tables to print."""

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
  def best(self) -> tuple[str, str]:
    """The best validation loss or accuracy, and its step; empty if none was measured."""
    if not (found := metrics.best(self.lines)):
      return '', ''
    step, score = found
    is_error = any('val/error' in line for line in self.lines)
    return f'{1 - score:.1%}' if is_error else f'{score:.4f}', f'{step:,}'


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
