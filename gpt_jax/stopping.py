"""SIGTERM and SIGINT as a flag that every phase of a run looks at."""

import signal
import sys
import time
import types
from typing import Self

from gpt_jax import errors

_ECHO_SECONDS = 0.5  # a signal to a process and to its group, as timeout(1) sends it, is one


class StopRequest:
  """While entered, the first SIGTERM or SIGINT only sets `requested`; a later one ends at once."""

  def __init__(self) -> None:
    self.requested = False
    self._since = 0.0
    self._previous: dict[int, signal._HANDLER] = {}

  def __enter__(self) -> Self:
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: types.FrameType | None) -> None:
    if self.requested:
      if time.monotonic() - self._since > _ECHO_SECONDS:
        raise KeyboardInterrupt
      return
    self.requested = True
    self._since = time.monotonic()
    name = signal.Signals(number).name
    print(f'\n{name}: saving and stopping; once more ends at once', file=sys.stderr, flush=True)

  def check(self) -> None:
    """Raises `Stopped` if a stop was requested; for phases that have nothing to save."""
    if self.requested:
      raise errors.Stopped('stopped; run the same command again to go on')
