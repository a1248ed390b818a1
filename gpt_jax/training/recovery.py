"""When a run goes back to a checkpoint, to which one, and which batches it then leaves out.

A step without a finite loss and gradient changes nothing (see `step`). After some of them in
a row, or if the loss leaps, the run goes back and on with the batches after those (as PaLM's did;
Chowdhery et al. 2022, section 5.1). All of it is a function of what the run has computed, so a run
that was stopped or killed meanwhile does the same.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import loader
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.weights import manifest

WINDOW = 128  # losses that a leap is measured by
_SHOWN = 8  # rows


@dataclasses.dataclass(frozen=True)
class Trouble:
  """Why a run can't go on from where it is."""

  key: str  # of the config, that may be at fault
  problem: str
  step: int  # the last bad one
  good: int  # the last that was not


class GoBack(Exception):
  """The run has to go back because of a `Trouble`, its argument."""


@dataclasses.dataclass
class Recovery:
  """What a run knows of its bad steps; each checkpoint holds it."""

  offset: int = 0  # step s, from 0, takes batch s + offset
  skipped: int = 0  # steps so far that changed nothing
  in_a_row: int = 0  # the newest of them
  losses: list[float] = dataclasses.field(default_factory=list)  # the newest, if they are watched

  @classmethod
  def read(cls, checkpoint: pathlib.Path) -> Self:
    """Returns what a checkpoint holds."""
    return cls(**manifest.read(checkpoint).recovery)

  def see(
    self, step: int, metrics: Mapping[str, float], train: config_lib.TrainConfig
  ) -> Trouble | None:
    """Takes note of the metrics of a step; returns why the run has to go back, if it has to."""
    loss = metrics['loss']
    if metrics['skipped']:
      self.skipped += 1
      self.in_a_row += 1
      if self.in_a_row < train.max_bad_steps:
        return None
      count = f'{self.in_a_row} steps in a row' if self.in_a_row > 1 else 'a step'
      found = f'loss {loss:.4g}, gradient norm {metrics["grad_norm"]:.4g}'
      problem = f'{count} without a finite loss and gradient: {found} at step {step}'
      return Trouble('optimizer.learning_rate', problem, step, step - self.in_a_row)
    self.in_a_row = 0
    if not train.spike_zscore:
      return None
    if len(self.losses) == WINDOW:
      mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
      if loss > mean + train.spike_zscore * deviation:
        problem = f'loss {loss:.4f} at step {step} after {mean:.4f} ± {deviation:.4f}'
        return Trouble('train.spike_zscore', problem, step, step - 1)
    self.losses = [*self.losses, loss][-WINDOW:]
    return None

  def after(self, trouble: Trouble, checkpoint: pathlib.Path | None) -> Self | None:
    """Returns what holds once the run has gone back, to the initial state if `checkpoint` is None.

    None if it can't: it went back to there before, and it was no use.
    """
    then = self.read(checkpoint) if checkpoint else type(self)()
    if then.offset != self.offset:
      return None
    back = trouble.step - int(checkpoint.name if checkpoint else 0)
    return dataclasses.replace(then, offset=self.offset + back, in_a_row=0)

  def failure(self, trouble: Trouble, data: loader.Data, batch_size: int) -> errors.UserError:
    """Returns the error that ends a run which can't go back."""
    batch = trouble.step - 1 + self.offset
    rows = data.train.train_places(batch * batch_size + np.arange(batch_size))
    return errors.UserError(
      trouble.key,
      f'{trouble.problem}, and the run has gone back once without success; batch {batch} has '
      + ' and '.join(
        f'rows {_some(numbers)} of {source.spec}'
        for source, numbers in zip(data.sources, rows, strict=True)
        if len(numbers)
      ),
      'look at this text; if it is sound, lower `optimizer.learning_rate` or raise '
      '`optimizer.warmup_steps`, with another `workdir`',
    )


def targets(
  lines: Sequence[metrics_lib.Line], saved: Sequence[int], good: int, checkpoint_every: int
) -> list[int]:
  """Returns the steps to go back to, in order of preference; 0 among them is the initial state.

  First the newest up to step `good` that were saved at their time, or as the best by the `lines` of
  metrics.jsonl until then. Those of runs that were stopped come last, so that it doesn't matter
  when a run was stopped. `saved` are the steps of all checkpoints.
  """
  due = good // checkpoint_every * checkpoint_every

  def is_best(step: int) -> bool:
    best = metrics_lib.best(line for line in lines if line['step'] <= step)
    return best is not None and best[0] == step

  def is_regular(step: int) -> bool:
    return due <= step <= good and (step == due or is_best(step))

  return sorted({0, *saved}, key=lambda step: (is_regular(step), step), reverse=True)


def _some(numbers: np.ndarray) -> str:
  shown, more = ', '.join(map(str, numbers[:_SHOWN])), len(numbers) - _SHOWN
  return f'{shown} and {more} more' if more > 0 else shown
