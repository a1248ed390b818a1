"""Standard input, output and error of a command: open, UTF-8, and no cause of a traceback."""

import io
import os
import sys
from typing import Any


class _Stream(io.FileIO):
  """Standard output or error; what can't be written raises an `OSError` with a name, or is lost."""

  def __init__(self, number: int, *, name: str) -> None:
    """Writes to the file `number`; without a `name`, nothing is raised."""
    super().__init__(number, 'w', closefd=False)
    self._error_name = name

  def write(self, data: Any) -> int:
    try:
      return super().write(data)
    except OSError as e:
      # Raised once: Python writes the rest again when it exits.
      e.filename, self._error_name = self._error_name, ''
      if e.filename:
        raise
      return len(memoryview(data).cast('B'))


def take(*, reports: bool) -> None:
  """Opens what is closed, and makes output UTF-8 whatever the locale: tokens hold any character.

  A command that only `reports` on its work goes on without a reader, or with a full disk.
  """
  for number in range(3):  # else the next file that is opened gets the number
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)
  if sys.stdin is None:
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), 'utf-8')
  for stream, number, name in (('stdout', 1, 'standard output'), ('stderr', 2, '')):
    if getattr(sys, stream) is getattr(sys, f'__{stream}__'):  # else a program has its own
      raw = io.BufferedWriter(_Stream(number, name='' if reports else name))
      text = io.TextIOWrapper(raw, 'utf-8', errors='backslashreplace', line_buffering=True)
      setattr(sys, stream, text)
