"""How far the preparation of a text is: a bar on a terminal, nothing elsewhere."""

import shutil
import sys
import time
from typing import Self

import tqdm

from gpt_jax.data.store import encoding

_NUMBERS_WIDTH = 58  # columns for the share, the bar, the time left and the rates


class Bar:
  """A progress bar for each phase in turn; its `show` is a `prepare.Progress`.

  Attributes:
    written: What was encoded so far.
    seconds: From the first to the last of it.
  """

  def __init__(self) -> None:
    self.written = encoding.Counts()
    self.seconds = 0.0
    self._what = ''
    self._bar: tqdm.tqdm | None = None
    self._began = 0.0

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def show(self, what: str, done: int, total: int, counts: encoding.Counts) -> None:
    """Moves the bar: `done` of `total` bytes of `what`; `counts` were written just now."""
    if what != self._what or self._bar is None:
      self._start(what, done, total)
    assert self._bar is not None
    if counts.tokens:
      self.written = self.written.plus(counts)
      self.seconds = time.monotonic() - self._began
      self._bar.set_postfix_str(
        f'{_rate(self.written.documents / self.seconds)} documents/s, '
        f'{_rate(self.written.tokens / self.seconds)} tokens/s',
        refresh=False,
      )
    self._bar.update(done - self._bar.n)

  def _start(self, what: str, done: int, total: int) -> None:
    if self._bar is not None:
      self._bar.close()
    if not self.written.tokens:
      self._began = time.monotonic()
    self._what = what
    room = shutil.get_terminal_size().columns - _NUMBERS_WIDTH
    self._bar = tqdm.tqdm(
      desc=what if len(what) <= room else f'{what[: room - 1]}…',
      total=total,
      initial=done,
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
      bar_format='{l_bar}{bar}| {remaining} left{postfix}',
    )


def _rate(per_second: float) -> str:
  return str(tqdm.tqdm.format_sizeof(per_second))
