"""Work on the parts of sources, in one process or several, with progress."""

import concurrent.futures
import dataclasses
import errno
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import process
from typing import Any

from gpt_jax import errors
from gpt_jax import progress as progress_lib
from gpt_jax.data import sources

_PROCESS_BYTES = 4 << 20  # of text that are worth the start of a process, half a second
_POLL_SECONDS = 0.1

Report = Callable[[int], None]  # called with the bytes or characters done since the last call


@dataclasses.dataclass(frozen=True)
class Job:
  """How some work uses the machine and is watched.

  `cores` limits processes and threads (0: one per core). What `progress` raises ends the work.
  """

  cores: int = 1
  progress: progress_lib.Report | None = None

  def reporter(self, phase: str, total: int) -> Callable[..., None]:
    """Returns a `Report` of the progress of `phase`.

    A second argument limits what it reports: a compressed file has more characters than bytes.
    """
    done = 0

    def report(size: int, limit: int = total) -> None:
      nonlocal done
      done = min(done + size, limit)
      if self.progress:
        self.progress(phase, done, total)

    return report

  def processes(self, parts: Sequence[sources.Part]) -> int:
    """Returns how many processes are worthwhile for `parts`."""
    worthwhile = sum(part.size for part in parts) // _PROCESS_BYTES
    return max(1, min(self.cores or os.cpu_count() or 1, len(parts), worthwhile))

  def threads(self, parts: Sequence[sources.Part]) -> int:
    """Returns how many threads each of these processes may use."""
    return (self.cores or os.cpu_count() or 1) // self.processes(parts)

  def map(
    self, phase: str, work: Callable[..., Any], parts: Sequence[sources.Part]
  ) -> Iterator[Any]:
    """Yields `work(number, part)` of each part, in order; what it raises arrives as it is.

    Several processes need `work` and its results to pickle. A single process works when the next
    result is asked for, and gives `work` a `Report` as third argument.
    """
    report = self.reporter(phase, sum(part.size for part in parts))
    report(0)
    if self.processes(parts) == 1:
      end = 0
      for number, part in enumerate(parts):
        end += part.size
        yield work(number, part, functools.partial(report, limit=end))
        report(part.size, end)
      return
    context = multiprocessing.get_context('spawn')
    pool = process.ProcessPoolExecutor(self.processes(parts), context, initializer=_begin)
    try:
      futures = {pool.submit(work, number, part): part for number, part in enumerate(parts)}
      pending = set(futures)
      while pending:
        done, pending = concurrent.futures.wait(
          pending, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
          future.result()
        report(sum(futures[future].size for future in done))
        # The pool itself notices a death only when something else happens.
        if any(worker.exitcode is not None for worker in list(pool._processes.values())):
          raise process.BrokenProcessPool
      yield from [future.result() for future in futures]
    except (process.BrokenProcessPool, OSError) as e:
      if getattr(e, 'errno', None) not in (None, errno.EPIPE):
        raise  # of the work itself, such as a full disk
      report(0)  # the signal that killed the process may have been sent to the whole group
      raise errors.UserError(
        'data.processes',
        'a process that encodes text died, perhaps for lack of memory',
        "use fewer; a program of your own must train under if __name__ == '__main__'",
      ) from e
    finally:
      for worker in list(pool._processes.values()):  # as `terminate_workers` of Python 3.14
        worker.terminate()
      pool.shutdown(cancel_futures=True)


def _begin() -> None:
  """Prepares a worker: it leaves Ctrl-C to its parent, and ends when its parent does."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  multiprocessing.parent_process().join()  # type: ignore[union-attr]
  os._exit(1)
