"""Tasks shared out among processes: every one done once, and no process left behind."""

import functools
import multiprocessing
import operator
import os
import signal

import pytest

from gpt_jax import errors
from gpt_jax.data.store import workers

# What a process calls must be importable there, hence these compositions of library functions.
_SPELL = iter  # a generator of the letters of a task


def collect(work, tasks, processes, check=None):
  messages: dict[int, list] = {i: [] for i in range(len(tasks))}
  done = []
  for number, message in workers.run(work, tasks, processes=processes, check=check):
    if message is None:
      done.append(number)
    else:
      assert number not in done
      messages[number].append(message)
  return messages, sorted(done)


@pytest.mark.parametrize('processes', [1, 2, 3])
@pytest.mark.parametrize('tasks', [[], ['one'], ['a', '', 'three', 'four', 'five']])
def test_each_task_is_done_once(processes, tasks):
  messages, done = collect(_SPELL, tasks, processes)
  assert [''.join(messages[i]) for i in range(len(tasks))] == tasks
  assert done == list(range(len(tasks)))
  assert not multiprocessing.active_children()


@pytest.mark.parametrize('processes', [1, 2])
def test_what_a_task_raises_is_raised_here(processes):
  with pytest.raises(ValueError, match='invalid literal'):
    collect(_ints, [['1'], ['x'], ['2']], processes)
  assert not multiprocessing.active_children()


_ints = functools.partial(map, int)


@pytest.mark.parametrize('processes', [1, 2])
def test_a_check_that_raises_ends_all(processes):
  calls = iter([None, None, errors.Stopped('enough')])

  def check():
    if problem := next(calls):
      raise problem

  with pytest.raises(errors.Stopped, match='enough'):
    collect(_SPELL, ['abc', 'def'], processes, check)
  assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told():
  die = functools.partial(map, operator.methodcaller('__call__', 9))
  with pytest.raises(errors.UserError, match='ended with code 9'):
    collect(die, [[os._exit]], 2)
  assert not multiprocessing.active_children()


def test_processes_leave_ctrl_c_to_their_parent_and_end_in_silence(capfd):
  ask = functools.partial(map, signal.getsignal)
  messages, _ = collect(ask, [[signal.SIGINT]] * 3, 2)
  assert messages == {i: [signal.SIG_IGN] for i in range(3)}
  assert tuple(capfd.readouterr()) == ('', '')


def test_how_many_processes():
  assert workers.wanted(3) == 3
  assert workers.wanted(0) == os.cpu_count()
