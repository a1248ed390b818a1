"""Parts are worked on once each, in any number of processes, none of which stays behind."""

import functools
import itertools
import multiprocessing
import os
import time

import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, sources, workers

# Other processes can't import this module: all that is sent to them is from others.
_WORK = functools.partial(prepare._count_part, config.DataConfig(tokenizer='char'))
_ENDLESS = functools.partial(itertools.repeat, sources.Piece('endless', 'x' * 1000))


def _texts(*texts):
  return functools.partial(iter, [sources.Piece('here', text) for text in texts])


def _map(job, *reads, size=10):
  parts = [sources.Part(split='', size=size, read=read) for read in reads]
  return list(job.map('counting', _WORK, parts))


@pytest.fixture(params=[1, 3])
def cores(request, monkeypatch):
  """How many processes work, however small the parts are."""
  monkeypatch.setattr(workers, '_PROCESS_BYTES', 1)
  yield request.param
  assert not multiprocessing.active_children()


def test_each_part_is_worked_on_once_in_order_and_in_silence(cores, capfd):
  seen = []
  job = workers.Job(cores, progress=lambda *args: seen.append(args))
  texts = [('one', 'two'), ('three',), (), ('four',)]
  found = _map(job, *(_texts(*each) for each in texts))
  assert [sum(counts.values()) for counts in found] == [6, 5, 0, 4]
  assert {phase for phase, _, _ in seen} == {'counting'}
  assert seen[0][1:] == (0, 40) and seen[-1][1:] == (40, 40)
  assert all(a[1] <= b[1] for a, b in itertools.pairwise(seen))
  assert tuple(capfd.readouterr()) == ('', '')


def test_progress_never_goes_beyond_the_end_of_a_part():
  """A compressed file has more characters than bytes."""
  seen = []
  job = workers.Job(progress=lambda *args: seen.append(args[1]))
  _map(job, _texts('many words', 'and more'), _texts('x'), size=12)
  assert seen == [0, 10, 12, 12, 13, 24]


@pytest.mark.parametrize(
  ('read', 'error'),
  [
    (_texts('valid', b'\xff'), errors.UserError),
    (functools.partial(os.listdir, '/none/such'), FileNotFoundError),
  ],
)
def test_an_error_arrives_as_it_is(cores, read, error):
  with pytest.raises(error) as e:
    _map(workers.Job(cores), _texts('one'), read, _texts('two'))
  if error is errors.UserError:
    assert e.value.key == 'here'


def test_a_stop_request_ends_endless_work_at_once(cores):
  calls = itertools.count()

  def check():
    if next(calls) == 3:
      raise errors.Stopped('enough')

  start = time.monotonic()
  with pytest.raises(errors.Stopped):
    _map(workers.Job(cores, check=check), _ENDLESS, _ENDLESS, _ENDLESS)
  assert time.monotonic() - start < 60


def test_a_process_that_dies_is_reported(monkeypatch):
  monkeypatch.setattr(workers, '_PROCESS_BYTES', 1)
  with pytest.raises(errors.UserError) as e:
    _map(workers.Job(2), _ENDLESS, functools.partial(os._exit, 9))
  assert e.value.key == 'data.processes'
  assert not multiprocessing.active_children()


@pytest.mark.parametrize(
  ('cores', 'worth', 'processes', 'threads'),
  [(3, 1, 3, 1), (8, 1, 4, 2), (3, 20, 2, 1), (3, 1 << 20, 1, 3)],
)
def test_there_are_as_many_processes_as_are_worthwhile(
  monkeypatch, cores, worth, processes, threads
):
  monkeypatch.setattr(workers, '_PROCESS_BYTES', worth)
  parts = [sources.Part(split='', size=10, read=_texts())] * 4
  assert workers.Job(cores).processes(parts) == processes
  assert workers.Job(cores).threads(parts) == threads
