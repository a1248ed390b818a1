"""What a run shows: a progress bar on a terminal, plain lines elsewhere."""

import datetime
import sys
import time
from typing import Self

import tqdm

from gpt_jax.training import metrics


class Console:
  """The progress of one run of `steps` steps. A context manager, which closes the bar."""

  def __init__(self, *, steps: int, start: int):
    self._steps = steps
    self._start_step = start
    self._start_time = time.monotonic()
    self._rate = 0.0
    # Without a terminal tqdm's redrawn line is noise, and lines are better.
    self._bar = tqdm.tqdm(
      total=steps,
      initial=start,
      unit='step',
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
      bar_format='{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]',
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()

  def say(self, text: str) -> None:
    """A line that stays, above the bar if there is one."""
    if self._bar.disable:
      print(text, flush=True)
    else:
      self._bar.write(text)

  def step(self, step: int, loss: float) -> None:
    """Moves the bar, at each step."""
    if not self._bar.disable:
      self._bar.set_postfix_str(f'{self._rate:,.0f} tokens/s, loss {loss:.3f}', refresh=False)
      self._bar.update(step - self._bar.n)

  def logged(self, step: int, line: metrics.Line) -> None:
    """A training line, as written to metrics.jsonl."""
    self._rate = line['perf/tokens_per_second']
    if self._bar.disable:
      self.say(
        f'step {step}/{self._steps}  loss {line["train/loss"]:.4f}  '
        f'grad {line["train/grad_norm"]:.2f}  lr {line["train/learning_rate"]:.2e}  '
        f'{self._rate:,.0f} tokens/s  {self._left(step)} left'
      )

  def evaluated(self, step: int, line: metrics.Line, best: bool) -> None:
    """An evaluation line."""
    mark = '  best' if best else ''
    self.say(
      f'step {step}/{self._steps}  val loss {line["val/loss"]:.4f}  '
      f'perplexity {line["val/perplexity"]:.2f}{mark}'
    )

  def _left(self, step: int) -> datetime.timedelta:
    done = max(step - self._start_step, 1)
    seconds = (time.monotonic() - self._start_time) / done * (self._steps - step)
    return datetime.timedelta(seconds=round(seconds))
