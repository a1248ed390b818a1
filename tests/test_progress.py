"""Progress is shown on a terminal, one phase at a time, and nowhere else."""

import io
import itertools
import os
import shutil
import subprocess
import sys
import termios

import pytest
import tqdm.std

from gpt_jax import progress
from tests import screen


@pytest.mark.parametrize('keep', [True, False])
def test_each_phase_is_named_with_its_share(monkeypatch, keep):
  terminal, seconds = screen.Terminal(), itertools.count()
  monkeypatch.setattr('sys.stderr', terminal)
  monkeypatch.setattr(tqdm.std, 'time', lambda: float(next(seconds)))  # it redraws by the clock
  with progress.Bar(keep=keep) as bar:
    for done in (0, 30, 100):
      bar.show('reading', done, 100, f'{done} bytes')
    bar.show('writing', 0, 10)
    bar.show('writing', 7, 10)
  shown = terminal.getvalue()
  assert 'reading:  30%' in shown and '30 bytes' in shown and 'writing:  70%' in shown
  assert shown.index('reading: 100%') < shown.index('writing')


def test_a_phase_and_a_note_are_shown_at_once(monkeypatch):
  """The first batch, or an evaluation, takes the longest."""
  terminal = screen.Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  with progress.Bar() as bar:
    bar.show('scoring', 0, 100)
    assert 'scoring:   0%' in terminal.getvalue()
    bar.show('scoring', 0, 100, 'evaluating')
    assert 'evaluating' in terminal.getvalue()


_COMMAND = """
import time
from absl import flags
from gpt_jax import cli, progress

def main(_):
  print('begins')
  with progress.doing('thinking'):
    time.sleep(0.1)
  with progress.Bar() as bar:
    bar.show('reading', 0, 3)
    bar.show('reading', 3, 3)
    bar.show('scoring', 0, 10)
    time.sleep(0.2)  # it redraws by the clock
    bar.show('scoring', 1, 10)
    time.sleep(60 * {waits})
  print('ends')

cli.run(main, flags.FlagValues(), doc='')
"""


@pytest.mark.skipif(not shutil.which('setsid'), reason='needs setsid')
@pytest.mark.parametrize(('waits', 'code', 'shown'), [(0, 0, 'ends'), (1, 130, '^C')])
def test_no_progress_is_left_on_the_terminal_when_a_command_ends(waits, code, shown):
  terminal, inside = os.openpty()
  termios.tcsetwinsize(inside, (24, 100))
  command = ['setsid', '--ctty', '--wait', sys.executable, '-c', _COMMAND.format(waits=waits)]
  process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside)
  os.close(inside)
  output = ''
  try:
    while data := os.read(terminal, 1 << 16):
      output += data.decode()
      if waits and 'scoring:  10%' in output:
        os.write(terminal, b'\x03')
        waits = 0
  except OSError:  # the other end is closed
    pass
  os.close(terminal)
  assert process.wait() == code
  assert output.endswith('\r\n')
  assert 'thinking' in output and 'scoring:  10%' in output
  assert [line.strip() for line in screen.lines(output) if line] == ['begins', shown]


def test_steps_of_different_sizes_are_all_counted(monkeypatch):
  terminal = screen.Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  with progress.Bar(keep=True) as bar:
    for done in (0, 900, 901, 1000):
      bar.show('reading', done, 1000)
  assert '100%' in terminal.getvalue()


def test_a_line_is_said_with_or_without_a_terminal(monkeypatch, capsys):
  with progress.Bar() as bar:
    bar.show('reading', 1, 2)
    bar.say('half')
  assert capsys.readouterr() == ('half\n', '')
  monkeypatch.setattr('sys.stderr', screen.Terminal())
  with progress.Bar(keep=True) as bar:
    bar.show('reading', 1, 2)
    bar.say('half')
  assert 'half\n' in capsys.readouterr().out


def test_what_cannot_be_counted_is_named_while_it_lasts_also_if_it_fails(monkeypatch):
  terminal = screen.Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  with pytest.raises(ZeroDivisionError), progress.doing('thinking'):
    print('a long warning', file=terminal)
    assert screen.lines(terminal.getvalue()) == ['a long warning', '']
    1 / 0  # noqa: B018
  assert terminal.getvalue().endswith('\r\033[K')


@pytest.mark.parametrize('stream', [io.StringIO(), None])
def test_without_a_terminal_nothing_is_shown(monkeypatch, stream):
  monkeypatch.setattr('sys.stderr', stream)
  with progress.Bar(keep=True) as bar:
    bar.show('reading', 1, 2)
  with progress.doing('thinking'):
    pass
  assert stream is None or stream.getvalue() == ''


@pytest.mark.parametrize(('number', 'text'), [(12_345, '12.3k'), (999, '999'), (2e6, '2.00M')])
def test_numbers_are_shortened(number, text):
  assert progress.short(number) == text
