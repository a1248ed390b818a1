"""Parts are worked on once each, in any number of processes, none of which stays behind."""

import functools
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, sources, workers
from tests import raised

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
  ('read', 'error', 'text'),
  [
    (_texts('valid', b'\xff'), errors.UserError, '^here: '),
    (functools.partial(os.listdir, '/none/such'), FileNotFoundError, '/none/such'),
  ],
)
def test_an_error_arrives_as_it_is(cores, read, error, text):
  with pytest.raises(error, match=text):
    _map(workers.Job(cores), _texts('one'), read, _texts('two'))


def test_a_stop_request_ends_endless_work_at_once(cores):
  stop = mock.Mock(side_effect=[*[None] * 3, errors.Stopped])
  start = time.monotonic()
  with pytest.raises(errors.Stopped):
    _map(workers.Job(cores, progress=stop), _ENDLESS, _ENDLESS, _ENDLESS)
  assert time.monotonic() - start < 60


def test_a_process_that_dies_is_reported(monkeypatch):
  monkeypatch.setattr(workers, '_PROCESS_BYTES', 1)
  error = raised.user_error(_map, workers.Job(2), _ENDLESS, functools.partial(os._exit, 9))
  assert error.key == 'data.processes'
  assert not multiprocessing.active_children()


@pytest.mark.parametrize(
  ('cores', 'worth', 'processes', 'threads'),
  [(3, 1, 3, 1), (8, 1, 4, 2), (3, 20, 2, 1), (3, 1 << 20, 1, 3)],
)
def test_processes_are_as_many_as_are_worthwhile(monkeypatch, cores, worth, processes, threads):
  monkeypatch.setattr(workers, '_PROCESS_BYTES', worth)
  parts = [sources.Part(split='', size=10, read=_texts())] * 4
  assert workers.Job(cores).processes(parts) == processes
  assert workers.Job(cores).threads(parts) == threads


def _write_much(folder):
  """Writes text that takes two processes some time; returns its spec."""
  for i in range(2):
    (folder / f'{i}.txt').write_text(f'a word and the number {i}.\n' * 180_000)
  return f'text:{folder}/?.txt'


@pytest.mark.parametrize(('number', 'at_work'), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_to_all_processes_stops_them_in_order(tmp_path, number, at_work):
  """As `timeout` and Ctrl-C send it: that workers end of it is no error."""
  config_file, cache = tmp_path / 'mine.py', tmp_path / 'cache'
  config_file.write_text('from gpt_jax import config\nget_config = config.Config\n')
  process = subprocess.Popen(
    [
      *(sys.executable, '-m', 'gpt_jax.prepare', f'--config={config_file}'),
      *(f'--config.data.source={_write_much(tmp_path)}', '--config.data.tokenizer=word'),
      *(f'--config.data.cache_dir={cache}', '--config.data.processes=2'),
    ],
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  while len([*cache.glob('.*/.tokens-*')]) < at_work or not cache.exists():
    assert process.poll() is None, 'it ended too early'
    time.sleep(0.01)
  os.killpg(process.pid, number)
  _, messages = process.communicate(timeout=60)
  assert process.returncode == 75, messages
  assert 'Traceback' not in messages
  assert not list(cache.iterdir())


_PROGRAM = """
import sys
from gpt_jax import config
from gpt_jax.data import prepare
from tests import raised
data = config.DataConfig(source=sys.argv[1], tokenizer='word', cache_dir=sys.argv[2], processes=2)
prepare.prepare(data, progress=lambda *_: print('going', flush=True))
"""


def test_the_workers_of_a_killed_process_end_too(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', _PROGRAM, _write_much(tmp_path), str(tmp_path / 'cache')],
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.stdout is not None
  assert [process.stdout.readline() for _ in range(3)] == ['going\n'] * 3
  assert len(_session(process.pid)) > 1
  process.kill()
  process.wait()
  deadline = time.monotonic() + 30
  while _session(process.pid):
    assert time.monotonic() < deadline, 'processes are left'
    time.sleep(0.05)


def _session(number):
  """The processes of a session that are alive."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = path.read_text().rpartition(')')[2].split()
    except OSError:
      continue
    if int(fields[3]) == number and fields[0] != 'Z':
      found.append(path)
  return found
