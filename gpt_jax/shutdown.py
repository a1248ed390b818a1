"""Turns SIGTERM and SIGINT into a request to stop, which every phase of a run checks."""

import signal
import sys
import time
import types
from typing import Self

from gpt_jax import errors

_ECHO_SECONDS = 0.5  # timeout(1) signals a process and its group: those two count as one


class Guard:
  """Records the first SIGTERM or SIGINT in `requested`; a later one raises `KeyboardInterrupt`.

  A context manager: the previous handlers are restored when it ends.
  """

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
    print(f'\n{name}: saving and stopping; again to stop at once', file=sys.stderr, flush=True)

  def check(self) -> None:
    """Raises `Stopped` if a stop was requested; for phases that have nothing to save."""
    if self.requested:
      raise errors.Stopped('stopped; run the same command again to resume')
