"""Work shared out among processes: tasks in, results in the order of the tasks out."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from gpt_jax import errors

_POLL_SECONDS = 0.1
_NAME = 'gpt_jax-worker'

Task = TypeVar('Task')
Message = TypeVar('Message')


def wanted(processes: int) -> int:
  """How many processes `data.processes` asks for: 0 stands for one a core."""
  return processes or os.cpu_count() or 1


def forbid_nesting() -> None:
  """Raises `UserError` in a process that `run` has started: it would wait for its parent."""
  if multiprocessing.current_process().name == _NAME:
    raise errors.UserError(
      'a process that was started to encode text runs the whole program again: in a program of '
      "your own, training belongs behind if __name__ == '__main__'."
    )


def run(
  work: Callable[[Task], Iterator[Message]],
  tasks: Sequence[Task],
  *,
  processes: int,
  check: Callable[[], None] | None,
) -> Iterator[tuple[int, Message | None]]:
  """Runs `work` on every task, several at a time.

  Args:
    work: A generator function at the top of a module; it and the tasks must pickle.
    tasks: Each is taken by the next process that is free.
    processes: 1 works here and starts none.
    check: Called between messages and ten times a second; what it raises ends all work.

  Yields:
    The number of a task with each message of its generator, and with None when it is done, as they
    come.

  Raises:
    UserError: A process was killed, and whatever `work` raises: the other processes end too.
  """
  if processes == 1:
    for number, task in enumerate(tasks):
      for message in work(task):
        yield number, message
        _call(check)
      yield number, None
    return
  context = multiprocessing.get_context('spawn')
  waiting = collections.deque(enumerate(tasks))
  busy: dict[Any, tuple[int, Any]] = {}  # connection -> the number of its task, its process
  try:
    for _ in range(min(processes, len(tasks))):
      ours, theirs = context.Pipe()
      process = context.Process(target=_serve, name=_NAME, args=(theirs, work), daemon=True)
      process.start()
      theirs.close()
      busy[ours] = (_hand_out(ours, waiting), process)
    while busy:
      for connection in _ready(busy):
        number, process = busy[connection]
        done, message = _receive(connection, process, check)
        yield number, message
        if done and waiting:
          busy[connection] = (_hand_out(connection, waiting), process)
        elif done:
          connection.close()
          process.join()
          del busy[connection]
      _call(check)
  finally:
    for _, process in busy.values():
      process.terminate()
      process.join()


def _ready(connections: Iterable[Any]) -> list[Any]:
  """The connections on which something has come, or none after a while."""
  return multiprocessing.connection.wait(list(connections), _POLL_SECONDS)


def _call(check: Callable[[], None] | None) -> None:
  if check:
    check()


def _hand_out(connection: Any, waiting: collections.deque[tuple[int, Any]]) -> int:
  """Gives the next task to a process and returns its number."""
  number, task = waiting.popleft()
  with contextlib.suppress(BrokenPipeError):  # it has died: the next message says so
    connection.send(task)
  return number


def _receive(connection: Any, process: Any, check: Callable[[], None] | None) -> tuple[bool, Any]:
  """Whether a task is done, else a message of it; raises what the process raised."""
  try:
    done, message = connection.recv()
  except (EOFError, ConnectionResetError) as e:
    process.join()
    _call(check)  # the signal that ended it, as of `timeout`, may have been for all of us
    raise errors.UserError(
      f'a process that worked on the text ended with code {process.exitcode} (-9: killed, as for '
      'want of memory): run again to go on, with fewer --config.data.processes; in a program of '
      "your own, training belongs behind if __name__ == '__main__'."
    ) from e
  if isinstance(message, BaseException):
    raise message
  return done, message


def _serve(connection: Any, work: Callable[[Any], Iterator[Any]]) -> None:
  """A process: takes tasks until there are no more, or until its parent is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
  while True:
    try:
      task = connection.recv()
    except EOFError:
      return
    try:
      for message in work(task):
        connection.send((False, message))
      connection.send((True, None))
    except BrokenPipeError:
      return
    except Exception as e:
      connection.send((True, e))
      return
