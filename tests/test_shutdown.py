"""The first signal is a request to stop; a later one stops at once."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gpt_jax import errors, shutdown

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def guard():
  with shutdown.Guard() as entered:
    yield entered


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_only_recorded(guard, number, capsys):
  guard.check()
  signal.raise_signal(number)
  assert guard.requested and signal.Signals(number).name in capsys.readouterr().err
  with pytest.raises(errors.Stopped):
    guard.check()


def test_a_signal_that_comes_twice_at_once_is_one(guard):
  for _ in range(3):
    signal.raise_signal(signal.SIGINT)
  assert guard.requested


def test_a_later_signal_stops_at_once(guard, monkeypatch):
  signal.raise_signal(signal.SIGTERM)
  monkeypatch.setattr(shutdown, '_ECHO_SECONDS', -1)
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGTERM)


def test_a_guard_requests_a_stop_after_its_minutes_and_not_when_it_has_ended(guard, capsys):
  with shutdown.Guard() as other:
    other.stop_after(0)
    other.stop_after(1e-3)
  guard.stop_after(1e-3)
  deadline = time.monotonic() + 60
  while not guard.requested and time.monotonic() < deadline:
    time.sleep(0.01)
  assert guard.requested and not other.requested
  assert '0.001 minutes' in capsys.readouterr().err


def test_the_previous_handlers_return():
  before = signal.getsignal(signal.SIGTERM)
  with shutdown.Guard():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before


_PRELUDE = """
import ctypes, gc, hashlib, os, signal, sys, threading, time
from absl import flags
from gpt_jax import cli, shutdown
number = int(sys.argv.pop())

def later(seconds):
  threading.Timer(seconds, os.kill, (os.getpid(), number)).start()

def long():  # a call of C that no signal interrupts, as a compilation is
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)

class Importer:
  # Raises nothing: what the import of a library does to an exception, it decides itself.
  def find_spec(self, name, *_):
    if name == 'jax':
      try:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
      except BaseException:
        pass
"""
_PHASES = {
  'import': 'sys.meta_path.insert(0, Importer())\n  import jax\n  time.sleep(60)',
  'collection': 'gc.callbacks.append(lambda *_: os.kill(os.getpid(), number)); gc.collect()\n'
  '  time.sleep(60)',
  'Python': 'later(0.2); time.sleep(60)',
  'C': 'later(0.2); long()',
  'C, with a guard': 'guard = shutdown.Guard().__enter__(); later(0.2); later(1.2); long()',
}


@pytest.mark.parametrize('phase', _PHASES)
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_quietly_whatever_it_does(phase, number):
  code = f'{_PRELUDE}\ndef main(_):\n  {_PHASES[phase]}\n'
  code += 'cli.run(main, flags.FlagValues(), doc="")'
  done = _python(code, str(int(number)))
  assert done.returncode == 128 + number
  assert done.stdout == '' and len(done.stderr.split('\n')) == (3 if 'guard' in phase else 1)


def test_what_a_command_has_half_done_is_removed(tmp_path):
  code = f'{_PRELUDE}\nimport pathlib\nfrom gpt_jax import atomic\n'
  code += f'def main(_):\n  with atomic.new_folder(pathlib.Path("{tmp_path}/new")):\n'
  code += '    os.kill(os.getpid(), number); time.sleep(60)\n'
  done = _python(code + 'cli.run(main, flags.FlagValues(), doc="")', str(int(signal.SIGTERM)))
  assert done.returncode == 143 and list(tmp_path.iterdir()) == []


def test_a_training_that_is_signalled_while_jax_is_imported_can_be_run_again(tmp_path):
  (tmp_path / 'mine.py').write_text('from gpt_jax import config\nget_config = config.Config')
  code = f'{_PRELUDE}\nsys.meta_path.insert(0, Importer())\nfrom gpt_jax import train\n'
  code += 'cli.run(train.main, train.define_flags(), doc="", takes_config=True, reports=True)'
  run = f'--workdir={tmp_path}/run'
  done = _python(code, f'--config={tmp_path}/mine.py', run, str(int(signal.SIGINT)))
  assert done.returncode == 75 and 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()


def _python(code, *args):
  command = [sys.executable, '-c', code, *args]
  return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60)
