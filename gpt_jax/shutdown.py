"""What SIGTERM and SIGINT (Ctrl-C) do to a command, and to a run that saves before it stops."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Self

from gpt_jax import errors

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ECHO_SECONDS = 0.5  # timeout(1) signals a process and its group: those two count as one
_PATIENCE = 1.0  # seconds that a compilation, or another long call of C, may keep a signal waiting
_SIGNALLED = 128  # plus the number of a signal is the exit code

_is_command = False
_guards: 'list[Guard]' = []


class Guard:
  """Records the first SIGTERM or SIGINT in `requested`; a later one stops at once.

  A command exits then, whatever it does: what it has saved is whole. In another program a later
  one raises `KeyboardInterrupt`, once Python is back from a compilation or another call of C.

  A context manager: the previous handlers are restored when it ends.
  """

  def __init__(self) -> None:
    self.requested = False
    self._since = 0.0  # when this process was signalled: another may have been before
    self._previous: dict[int, Any] = {}
    self._timer: threading.Timer | None = None

  def __enter__(self) -> Self:
    for number in _SIGNALS:
      self._previous[number] = signal.signal(number, self._handle)
    _guards.append(self)
    return self

  def __exit__(self, *_: object) -> None:
    _guards.remove(self)
    if self._timer:
      self._timer.cancel()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def stop_after(self, minutes: float) -> None:
    """Requests a stop in `minutes`, unless they are 0."""

    def request() -> None:
      self.requested = True
      print(f'\n{minutes:g} minutes are over: saving and stopping', file=sys.stderr, flush=True)

    if minutes:
      self._timer = threading.Timer(60 * minutes, request)
      self._timer.daemon = True
      self._timer.start()

  def _handle(self, number: int, _: types.FrameType | None) -> None:
    # In a command a thread takes it too, perhaps later: what runs next must know already.
    if self.take(number) and not _is_command:
      raise KeyboardInterrupt

  def take(self, number: int) -> bool:
    """Takes a signal; returns whether it is a later one."""
    if self._since:
      return time.monotonic() - self._since > _ECHO_SECONDS
    self.requested = True
    self._since = time.monotonic()
    name = signal.Signals(number).name
    with contextlib.suppress(RuntimeError):  # the program may be writing just now
      print(f'\n{name}: saving and stopping; again to stop at once', file=sys.stderr, flush=True)
    return False

  def check(self) -> None:
    """Raises `Stopped` if a stop was requested; for phases that have nothing to save."""
    if self.requested:
      raise errors.Stopped('stopped; run the same command again to resume')


@contextlib.contextmanager
def ends_command() -> Iterator[None]:
  """Makes SIGTERM and SIGINT end this process, quietly and soon, unless there is a `Guard`."""
  global _is_command
  handled, code = 0.0, 0  # when the main thread saw a signal, and the exit code for it
  ours, end = os.pipe()

  def handle(number: int, frame: types.FrameType | None) -> None:
    """Raises, so that what is half done is removed."""
    nonlocal handled, code
    handled, code = time.monotonic(), _SIGNALLED + number
    while frame:
      # There is nothing to remove, and libraries in C++ abort if an import of theirs fails.
      if frame.f_code.co_filename == '<frozen importlib._bootstrap>':
        os._exit(code)
      frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(code)

  def watch() -> None:
    """Sees signals that the main thread can't handle: it may be in a call of C."""
    while data := os.read(ours, 1):
      number, came = data[0], time.monotonic()
      if number in _SIGNALS and _guards:
        if _guards[-1].take(number):
          os._exit(_SIGNALLED + number)
      elif number in _SIGNALS:
        while handled < came - _ECHO_SECONDS:
          if time.monotonic() > came + _PATIENCE:
            os._exit(_SIGNALLED + number)
          time.sleep(0.02)
    os.close(ours)

  def unraisable(found: Any) -> None:
    """Exits where Python would go on: JAX has Python call it back when memory is collected."""
    if isinstance(found.exc_value, KeyboardInterrupt | SystemExit):
      os._exit(code)
    sys.__unraisablehook__(found)

  os.set_blocking(end, False)
  before = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
  handlers: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
  for number, handler in handlers.items():
    if handler != signal.SIG_IGN:  # as for a job in the background
      signal.signal(number, handle)
  hook, sys.unraisablehook, _is_command = sys.unraisablehook, unraisable, True
  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    sys.unraisablehook, _is_command = hook, False
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(before)
    os.close(end)
