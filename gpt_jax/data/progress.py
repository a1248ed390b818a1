"""How far the preparation of a text is: a bar on a terminal, nothing elsewhere."""

import sys
import time
from typing import Self

import tqdm

from gpt_jax.data import store_writer


class Bar:
  """A progress bar for each phase in turn; its `show` is a `prepare.Progress`.

  Attributes:
    written: What was encoded so far.
    seconds: From the first to the last of it.
  """

  def __init__(self) -> None:
    self.written = store_writer.Counts()
    self.seconds = 0.0
    self._what = ''
    self._bar: tqdm.tqdm | None = None
    self._began = 0.0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def show(self, what: str, done: int, total: int, counts: store_writer.Counts) -> None:
    """Moves the bar: `done` of `total` bytes of `what`; `counts` were written just now."""
    if what != self._what or self._bar is None:
      self._start(what, done, total)
    assert self._bar is not None
    if counts.tokens:
      self.written = self.written.plus(counts)
      self.seconds = time.monotonic() - self._began
      self._bar.set_postfix_str(
        f'{self.written.documents / self.seconds:,.0f} documents/s, '
        f'{self.written.tokens / self.seconds:,.0f} tokens/s',
        refresh=False,
      )
    self._bar.update(done - self._bar.n)

  def _start(self, what: str, done: int, total: int) -> None:
    if self._bar is not None:
      self._bar.close()
    if not self.written.tokens:
      self._began = time.monotonic()
    self._what = what
    self._bar = tqdm.tqdm(
      desc=what,
      total=total,
      initial=done,
      unit='B',
      unit_scale=True,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
      bar_format='{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} '
      '[{elapsed}<{remaining}{postfix}]',
    )
