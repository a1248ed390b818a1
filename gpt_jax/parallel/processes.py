"""Several processes that train one model: found, compared, stopped and ended together.

All of them run the same programs in the same order, as JAX demands. What a process must know of the
others goes through the key-value store of JAX's coordinator, process 0: no device takes part, and
however long one of them prepares data, the others wait. A process that dies is missed by its
heartbeats, and JAX ends all others.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # its store has no public name yet

from gpt_jax import config as config_lib
from gpt_jax import errors, progress, shutdown
from gpt_jax.parallel import mesh as mesh_lib

_T = TypeVar('_T')

_POLL_MS = 500  # until Python can handle a signal
_rounds = itertools.count()  # of `gather`


@contextlib.contextmanager
def joined(config: config_lib.Config) -> Iterator[None]:
  """Joins the other processes of this run, if there are any; to be entered before JAX is used.

  Only process 0 prints. An error that ends one ends the others at their next `gather`.

  Raises:
    UserError: `config` and the environment don't say how to find the others, or they don't come.
  """
  mesh_lib.start(config.mesh)
  _initialize(config.processes)
  mesh_lib.find_devices()
  if not is_primary():
    progress.be_quiet()
  try:
    yield
  except BaseException as e:
    if jax.process_count() == 1:
      raise
    if isinstance(e, errors.UserError | errors.Stopped):
      _publish({type(e).__name__: str(e)})
      raise
    # At a normal exit JAX would wait for the others, which may wait for this one.
    if isinstance(e, KeyboardInterrupt):
      os._exit(130)
    refused = errors.of_system(e) if isinstance(e, OSError) else None
    text = f'error: {refused}' if refused else traceback.format_exc()
    if any(library in str(e) for library in ('Gloo', 'NCCL')):
      what = 'another process is gone; run the same command again to resume'
      text = f'{what} ({str(e).splitlines()[0][:200]})'
    me = f'process {jax.process_index()} of {jax.process_count()}'
    print(f'{me}: {text}', file=sys.stderr, flush=True)
    os._exit(2 if refused else 1)


def _initialize(config: config_lib.ProcessesConfig) -> None:
  count = config.count or _number_in('JAX_NUM_PROCESSES', 0)
  index = config.index if config.index >= 0 else _number_in('JAX_PROCESS_ID', -1)
  address = config.coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if address and not address.rpartition(':')[2].isdecimal():
    raise errors.UserError('processes.coordinator', f'{address!r} must be HOST:PORT')
  alone = not (address or count or index >= 0)
  if jax.distributed.is_initialized():
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It would take SIGTERM from `shutdown.Guard`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      address,
      count or None,
      index if index >= 0 else None,
      initialization_timeout=config.initialization_timeout,
      heartbeat_timeout_seconds=config.heartbeat_timeout,
      shutdown_timeout_seconds=config.shutdown_timeout,
    )
  except jax.errors.JaxRuntimeError as e:
    problem = f'the other processes did not come: {str(e).splitlines()[0]}'
    raise errors.UserError('processes.initialization_timeout', problem) from e
  except (ValueError, RuntimeError) as e:
    not_found = 'coordinator_address' in str(e)
    in_use = 'must be called before' in str(e)  # JAX, by a Python program
    if alone and (not_found or in_use):
      return
    fix = 'give HOST:PORT of process 0, `processes.count` and `processes.index`'
    raise errors.UserError('processes.coordinator', str(e), fix) from e


def _number_in(variable: str, default: int) -> int:
  """Returns the value of an environment variable; raises `UserError` if it isn't a number."""
  text = os.environ.get(variable, str(default))
  try:
    return int(text)
  except ValueError as e:
    raise errors.UserError(
      variable, f'{text!r} must be a whole number', 'correct or unset it'
    ) from e


def is_primary() -> bool:
  """Returns whether this process writes the files of the run and speaks to the user."""
  return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
  """Returns the values that all processes give, in their order; waits for all of them.

  To be called by all processes the same number of times. `value` is one of JSON.

  Raises:
    Stopped: Another process stopped before it came here.
    UserError: Another process ended so.
  """
  if jax.process_count() == 1:
    return [value]
  key = _publish({'value': value})
  found = [_get(f'{key}/{i}') for i in range(jax.process_count())]
  for i, each in enumerate(found):
    if 'Stopped' in each:
      raise errors.Stopped(each['Stopped'])
    if 'value' not in each:
      raise errors.UserError(f'process {i}', *each.values())
  return [each['value'] for each in found]


def _publish(value: Mapping[str, Any]) -> str:
  key = f'gpt_jax/{next(_rounds)}'
  _store().key_value_set(f'{key}/{jax.process_index()}', json.dumps(value))
  return key


def _get(key: str) -> Any:
  while True:
    try:
      return json.loads(_store().blocking_key_value_get(key, _POLL_MS))
    except jax.errors.JaxRuntimeError as e:
      if 'DEADLINE_EXCEEDED' not in str(e):
        raise


def _store() -> Any:
  return distributed.global_state.client


def compare(facts: Mapping[str, Any]) -> None:
  """Raises `UserError` at each key whose value isn't the same on all processes."""
  first, *others = gather(dict(facts))
  errors.raise_all(
    [
      errors.UserError(key, f'{other[key]!r} on process {i} must be {value!r}, as on process 0')
      for i, other in enumerate(others, 1)
      for key, value in first.items()
      if other[key] != value
    ]
  )


def in_turn(work: Callable[[], _T]) -> _T:
  """Does `work` on one process of each host, then on the others, which find what it has cached."""
  hosts = gather(socket.gethostname())
  is_first = hosts.index(hosts[jax.process_index()]) == jax.process_index()
  result = work() if is_first else None
  gather(None)
  return work() if result is None else result


class StopVote:
  """Lets all processes stop at the same point if one of them is asked to."""

  def __init__(self, guard: shutdown.Guard) -> None:
    """Waits for all processes; raises `Stopped` if one was asked to stop until now."""
    if any(gather(guard.requested)):  # a signal that comes meanwhile is one for the next vote
      guard.requested = True
      guard.check()
    self._guard = guard
    self._asked: jax.Array | None = None
    mesh = jax.make_mesh((jax.device_count(),), ('device',))
    self._sharding = jax.NamedSharding(mesh, jax.P('device'))
    self._any = jax.jit(jax.numpy.any, out_shardings=jax.NamedSharding(mesh, jax.P()))

  def check(self) -> None:
    """Raises `Stopped` if one was asked to; of several processes, before the previous call.

    A vote is read one call after it was cast, so that no device waits for it.
    """
    if jax.process_count() == 1:
      return self._guard.check()
    if self._asked is not None and self._asked:
      self._guard.requested = True
      self._guard.check()
    own = np.array([self._guard.requested])
    flags = jax.make_array_from_callback((jax.device_count(),), self._sharding, lambda _: own)
    self._asked = self._any(flags)
    if mesh_lib.one_step_at_a_time():
      jax.block_until_ready(self._asked)
