"""How far something long is: a bar with the expected time left on a terminal, nothing elsewhere."""

import shutil
import sys
from typing import Self

import tqdm

_NUMBERS_WIDTH = 24  # columns for the share, a short bar and the time left
_DELAY = 0.5  # seconds; what is done sooner shows no bar


class Bar:
  """A bar for each phase in turn. A context manager, which ends the last one."""

  def __init__(self, *, keep: bool = False, postfix_width: int = 0) -> None:
    """Shows nothing yet.

    Args:
      keep: Whether the bar of a phase stays when the phase is over, however short it was. Without
        it the bar is taken away, and a phase of less than half a second has none.
      postfix_width: Columns that the longest postfix needs.
    """
    self._keep = keep
    self._width = _NUMBERS_WIDTH + postfix_width
    self._what = ''
    self._bar: tqdm.tqdm | None = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def show(self, what: str, done: int, total: int, postfix: str = '') -> None:
    """Moves the bar to `done` of `total`, and tells `postfix` behind it; a new `what` is a new bar.

    The time left is reckoned from the first call for `what` on.
    """
    if sys.stderr is None or not sys.stderr.isatty():
      return
    if what != self._what or self._bar is None:
      self._start(what, done, total)
    assert self._bar is not None
    self._bar.set_postfix_str(postfix, refresh=False)
    self._bar.update(done - self._bar.n)

  def _start(self, what: str, done: int, total: int) -> None:
    if self._bar is not None:
      self._bar.close()
    self._what = what
    room = max(1, shutil.get_terminal_size().columns - self._width)
    self._bar = tqdm.tqdm(
      desc=what if len(what) <= room else f'{what[: room - 1]}…',
      total=total,
      initial=done,
      delay=0 if self._keep else _DELAY,
      leave=self._keep,
      miniters=1,  # amounts differ: tqdm's guess after a large one would skip many small ones
      dynamic_ncols=True,
      bar_format='{l_bar}{bar}| {remaining} left{postfix}',
    )


def short(number: float) -> str:
  """Three digits and a metric prefix: 12.3k for 12,345."""
  return str(tqdm.tqdm.format_sizeof(number))
