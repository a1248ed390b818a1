"""One progress bar for everything that takes long; silent unless standard error is a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self

from gpt_jax import errors

# Called several times a second with a phase, the amount done and the total; it may raise.
Report = Callable[[str, int, int], None]

_quiet = False


def be_quiet() -> None:
  """Shows no more bars, and drops standard output: another process has the same to say."""
  global _quiet
  _quiet = True
  sys.stdout = None  # then print does nothing


class Bar:
  """Shows one phase after the other. A context manager, which closes the last bar."""

  def __init__(self, *, keep: bool = False, check: Callable[[], None] | None = None) -> None:
    """Creates a bar that shows nothing yet; with `keep`, a finished phase stays on the screen.

    `check` is called at each report; what it raises (`errors.Stopped`) ends the work.
    """
    self._keep = keep
    self._check = check
    self._phase = ''
    self._bar: Any = None
    self.visible = not _quiet and sys.stderr is not None and sys.stderr.isatty()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def show(self, phase: str, done: int, total: int, note: str = '') -> None:
    """Moves the bar of `phase` to `done` of `total`, with `note` after it. A `Report`."""
    if self._check:
      self._check()
    if not self.visible:
      return
    if self._bar is None or phase != self._phase:
      import tqdm  # slow to import, so not before there is something to show

      self.__exit__()
      self._phase = phase
      self._bar = tqdm.tqdm(
        desc=phase,
        total=total,
        initial=done,
        leave=self._keep,
        miniters=1,  # steps differ in size: after a large one, tqdm would skip many small ones
        dynamic_ncols=True,
        # Leaves room for ^C, which else begins a line and leaves the bar above it.
        bar_format='{l_bar}{bar:-2}| {elapsed}<{remaining}{postfix}',
      )
    self._bar.set_postfix_str(note, refresh=done == self._bar.n)
    self._bar.update(done - self._bar.n)

  def say(self, text: str) -> None:
    """Prints a line to standard output, above the bar if there is one."""
    if self._bar is not None:
      self._bar.write(text)
    else:
      print(text, flush=True)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
  """Shows on a terminal what is done while the `with` block runs, for what can't be counted."""
  visible = Bar().visible
  if visible:
    print(f'{what} …\r', end='', file=sys.stderr, flush=True)  # a warning takes its place
  try:
    yield
  finally:
    if visible:
      print('\r\033[K', end='', file=sys.stderr, flush=True)


def check(report: Report | None) -> None:
  """Raises `UserError` for what is no `Report`, before work that would end with it."""
  if report is not None and not callable(report):
    fix = 'give a function of (phase, done, total), such as gpt_jax.progress.Bar().show'
    raise errors.UserError('progress', f'{report!r:.80} cannot be called', fix)


def short(number: float) -> str:
  """Formats with three digits and a metric prefix: 12.3k for 12,345."""
  import tqdm

  return str(tqdm.tqdm.format_sizeof(number))
