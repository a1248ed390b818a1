"""How far the preparation of a text is: a bar with its rates on a terminal, nothing elsewhere."""

import time
from typing import Self

from gpt_jax import progress
from gpt_jax.data.store import encoding

_RATES_WIDTH = 34  # columns


class Bar:
  """A progress bar for each phase in turn; its `show` is a `prepare.Progress`.

  Attributes:
    written: What was encoded so far.
    seconds: From the first to the last of it.
  """

  def __init__(self) -> None:
    self.written = encoding.Counts()
    self.seconds = 0.0
    self._what = self._rates = ''
    self._began = 0.0
    self._bar = progress.Bar(keep=True, postfix_width=_RATES_WIDTH)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.__exit__(*error)

  def show(self, what: str, done: int, total: int, counts: encoding.Counts) -> None:
    """Moves the bar: `done` of `total` bytes of `what`; `counts` were written just now."""
    if what != self._what:
      self._what, self._rates = what, ''
      if not self.written.tokens:
        self._began = time.monotonic()
    if counts.tokens:
      self.written = self.written.plus(counts)
      self.seconds = time.monotonic() - self._began
      self._rates = (
        f'{progress.short(self.written.documents / self.seconds)} documents/s, '
        f'{progress.short(self.written.tokens / self.seconds)} tokens/s'
      )
    self._bar.show(what, done, total, self._rates)
