"""A command speaks UTF-8; nothing that is wrong with its output is a traceback."""

import pathlib
import subprocess
import sys

import pytest

_COMMAND = """
import contextlib, os, sys
from absl import flags
from gpt_jax import cli

def main(values):
  file = open('out.txt', 'w')
  for _ in range(20000):
    print('8 × 8')
  print('warning: ×', file=sys.stderr)
  with contextlib.suppress(OSError):
    os.write(2, b'XLA says something')  # as C++ does
  file.write('done')

cli.run(main, flags.FlagValues(), doc='', reports='--reports' in sys.argv.pop())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs a command that prints, then writes `done`; returns its exit code, output and messages."""
  root = pathlib.Path(__file__).resolve().parents[1]
  monkeypatch.setenv('PYTHONPATH', str(root))
  monkeypatch.chdir(tmp_path)
  pathlib.Path('command.py').write_text(_COMMAND)

  def run(redirected, *, reports=False, **environment):
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    option = '--reports' if reports else '--prints'
    line = f'{sys.executable} command.py {option} {redirected}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', line], capture_output=True, timeout=60)
    assert b'Traceback' not in done.stderr and b'Exception' not in done.stderr
    return done.returncode, done.stdout.decode(), done.stderr.decode()

  return run


def _is_done():
  return pathlib.Path('out.txt').read_text() == 'done'


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-16'])
def test_output_is_utf_8_whatever_the_locale(run, encoding):
  code, output, messages = run('', PYTHONIOENCODING=encoding)
  assert (code, output) == (0, '8 × 8\n' * 20000)
  assert messages == 'warning: ×\nXLA says something'


@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_closed_files_are_no_reason_to_stop_nor_taken_by_others(run, closed):
  assert run(closed)[0] == 0 and _is_done()


def test_a_result_that_nobody_reads_ends_the_command_and_a_report_does_not(run):
  assert run('| head -1') == (0, '8 × 8\n', '') and not _is_done()
  code, output, _ = run('| head -1', reports=True)
  assert (code, output) == (0, '8 × 8\n') and _is_done()


def test_a_result_that_cannot_be_written_is_a_user_error_and_a_report_is_lost(run):
  code, _, messages = run('>/dev/full')
  assert code == 2 and messages.startswith('error: standard output: ') and not _is_done()
  assert run('>/dev/full', reports=True)[0] == 0 and _is_done()
  assert run('2>/dev/full')[0] == 0 and _is_done()
