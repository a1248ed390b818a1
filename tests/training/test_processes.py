"""Processes train together as one does; one that stops, fails or dies takes the others along."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from unittest import mock

import jax
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, shutdown
from gpt_jax.parallel import processes
from gpt_jax.training import metrics, recovery
from tests import damage
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 16
BAD = [60, 83]  # rows: the first of batch 5 and the last of batch 6
LOST_SECONDS = 10  # until the others notice that a process is gone
# Of a process, before its run.
_CODE = """
import os, pytest
from gpt_jax.config import *
from tests.training import runs
patch = pytest.MonkeyPatch()
runs.spoil(patch, {bad})
runs.at_step(patch, {step}, lambda: os.kill(os.getpid(), {number}))
def get_config(): return {config!r}
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return runs.make_config(
    tmp_path_factory.mktemp('text'),
    train__steps=STEPS,
    train__batch_size=12,
    train__seed=5,  # no other test has this program
    train__max_bad_steps=len(BAD),
    train__eval_every=8,
    train__checkpoint_every=4,
    optimizer__learning_rate=1e-3,
    processes__heartbeat_timeout=LOST_SECONDS,
  )


def _start(config, workdir, count, signals=(), **changes):
  """Starts so many processes of a run; `changes` may be lists, with a value for each.

  `signals` are the process, the step that it signals itself at, and the number of the signal.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  started = []
  for i in range(count):
    own = {key: v[i] if isinstance(v, list) else v for key, v in changes.items()}
    file = workdir.parent / f'{workdir.name}-{i}.py'
    step, number = next(((step, int(what)) for who, step, what in signals if who == i), (-1, 0))
    file.write_text(_CODE.format(bad=BAD, step=step, number=number, config=config))
    flags = [f'--config.{key.replace("__", ".")}={value}' for key, value in own.items()]
    command = ['-m', 'gpt_jax.train', f'--config={file}', f'--workdir={workdir}', *flags]
    where = {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(count)}
    environment = {**os.environ, 'XLA_FLAGS': '', **where, 'JAX_PROCESS_ID': str(i)}
    started.append(
      subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def _end(started):
  """Waits for processes; returns their exit codes and what they wrote."""
  written = [process.communicate(timeout=300) for process in started]
  return [process.returncode for process in started], written


def test_runs_of_any_processes_are_one_run(config, tmp_path, monkeypatch):
  runs.spoil(monkeypatch, BAD)
  unbroken = runs.run(config, tmp_path / 'unbroken')
  broken = tmp_path / 'broken'

  # It goes back at step 7. One signal is enough; that of the other comes while it already stops.
  signals = [(1, 9, signal.SIGTERM), (0, 11, signal.SIGTERM)]
  codes, written = _end(
    _start(config, broken, 2, signals, mesh__cpu_devices=2, mesh__fsdp=2, mesh__tensor=2)
  )
  assert codes == [75, 75], written
  assert [f'step 1/{STEPS}' in out for out, _ in written] == [True, False]
  assert metrics.read(broken / 'metrics.jsonl')[-1]['step'] == 11
  newest = broken / 'checkpoints' / '11'
  assert recovery.Recovery.read(newest).offset == 3

  file = next((newest / 'params').rglob('*'))
  file.write_bytes(damage.damaged(file.read_bytes(), 0))
  signals = [(1, 14, signal.SIGKILL)]
  codes, written = _end(_start(config, broken, 3, signals))
  assert newest.with_name('11.damaged').exists()
  assert codes.pop(1) == -signal.SIGKILL
  assert not {0, 2, 75} & set(codes), written
  assert all('process' in err or 'task' in err for _, err in written[::2])

  runs.run(config, broken)
  found, wanted = runs.lines(broken), runs.lines(unbroken)
  assert [line['step'] for line in found] == [line['step'] for line in wanted]
  for line, expected in zip(found, wanted, strict=True):
    assert line == pytest.approx(expected, rel=1e-4 if 'train/grad_norm' in line else 1e-5)


def test_an_error_of_one_is_the_error_of_all(config, tmp_path):
  sources = [config.data.source, 'text:missing.txt']
  codes, written = _end(_start(config, tmp_path / 'run', 2, data__source=sources))
  assert codes == [2, 2], written
  assert 'missing.txt' in written[1][1] and 'process 1' in written[0][1]
  assert not (tmp_path / 'run').exists()


# Without other processes.


def test_a_signal_that_comes_while_others_are_waited_for_counts():
  def gather(value):
    signal.raise_signal(signal.SIGTERM)
    return [value, False]

  with shutdown.Guard() as guard, mock.patch.object(processes, 'gather', gather):
    processes.StopVote(guard)
    assert guard.requested


@pytest.mark.parametrize(
  ('error', 'code'), [(OSError(28, 'No space', 'a/b'), 2), (ValueError('a/b'), 1)]
)
def test_a_full_disk_is_no_defect_of_a_process(monkeypatch, capsys, error, code):
  codes = list[int]()
  monkeypatch.setattr(processes, '_initialize', lambda _: None)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(os, '_exit', codes.append)
  with processes.joined(config_lib.Config()):
    raise error
  assert codes == [code]
  told = capsys.readouterr().err
  assert 'process 0 of 2' in told and 'a/b' in told
  assert ('Traceback' in told) == (code == 1)


def test_facts_must_be_the_same_everywhere():
  facts = [
    {'data.seed': 0, 'text': 'a'},
    {'data.seed': 0, 'text': 'a'},
    {'data.seed': 1, 'text': 'b'},
  ]
  with (
    mock.patch.object(processes, 'gather', return_value=facts),
    pytest.raises(errors.UserError) as e,
  ):
    processes.compare(facts[0])
  assert [(each.key, 'process 2' in each.problem) for each in e.value.all] == [
    ('data.seed', True),
    ('text', True),
  ]
  with mock.patch.object(processes, 'gather', return_value=facts[:2]):
    processes.compare(facts[0])


@pytest.mark.parametrize('index, before', [(0, True), (1, False), (2, True)])
def test_one_process_of_each_host_works_first(index, before):
  events = []

  def gather(value):
    events.append('wait')
    return ['a', 'a', 'b']

  def work():
    events.append('work')
    return 'done'

  with (
    mock.patch.object(processes, 'gather', gather),
    mock.patch.object(jax, 'process_index', return_value=index),
  ):
    assert processes.in_turn(work) == 'done'
  assert events == (['wait', 'work', 'wait'] if before else ['wait', 'wait', 'work'])
