"""A bar tells the share and the time left on a terminal, is gone when done, and is nowhere else."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import time

import pytest
import tqdm.std
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax import progress
from gpt_jax.data import progress as data_progress
from gpt_jax.data.store import encoding


class Terminal(io.StringIO):
  """Keeps what is written to it; it has a width, a clock, and lines that never wrap."""

  encoding = 'utf-8'
  seconds = 0.0

  def __init__(self, columns):
    super().__init__()
    self._ours, self._theirs = pty.openpty()
    self.resize(columns)

  def resize(self, columns):
    fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))

  def close(self):
    super().close()
    for file in (self._ours, self._theirs):
      os.close(file)

  def fileno(self):
    return self._theirs

  def isatty(self):
    return True

  def now(self):
    return self.seconds

  def screen(self):
    """The lines that are seen in the end."""
    lines = []
    for line in self.getvalue().split('\n'):
      seen: list[str] = []
      for part in line.split('\r'):
        seen[: len(part)] = part
      lines.append(''.join(seen).rstrip())
    return lines


@contextlib.contextmanager
def put_up(columns=80):
  """A terminal as standard error, whose `seconds` are the time. (pytest undoes it in a fixture.)"""
  with pytest.MonkeyPatch.context() as patch, Terminal(columns) as found:
    patch.setenv('COLUMNS', str(columns))
    patch.setattr(sys, 'stderr', found)
    patch.setattr(tqdm.std, 'time', found.now)
    patch.setattr(time, 'monotonic', found.now)
    yield found


def test_the_share_and_the_time_left_are_told():
  with put_up() as terminal, progress.Bar() as bar:
    for done in range(0, 31, 10):
      terminal.seconds = done  # a unit a second
      bar.show('reading x', done, 100, f'{done} done')
      assert (terminal.screen() == ['']) == (done == 0), 'nothing is told at once'
    assert re.fullmatch(r'reading x:  30%\|█+.? *\| 01:10 left, 30 done', terminal.screen()[0])
    terminal.seconds = 60
    bar.show('reading x', 90, 100)
    assert re.search(r' 90%\|█+.? *\| 00:0\d left$', terminal.screen()[0])


def test_it_is_taken_away_when_done():
  with put_up() as terminal:
    with progress.Bar() as bar:
      for terminal.seconds in range(11):
        bar.show('reading x', int(terminal.seconds), 10)
      assert '100%' in terminal.screen()[0]
    assert terminal.screen() == ['']


def test_it_is_taken_away_by_an_error():
  with put_up() as terminal:
    with pytest.raises(OSError, match='mine'), progress.Bar() as bar:
      for terminal.seconds in range(3):
        bar.show('reading x', int(terminal.seconds), 10)
      assert terminal.screen() != ['']
      raise OSError('mine')
    assert terminal.screen() == ['']


def test_what_is_short_shows_nothing():
  with put_up() as terminal:
    with progress.Bar() as bar:
      for done in range(100):
        terminal.seconds += 0.0049
        bar.show('reading x', done, 99)
    assert terminal.getvalue() == ''


@pytest.mark.parametrize('columns', [40, 80])
def test_kept_bars_stay_each_on_its_line_however_short(columns):
  with put_up(columns) as terminal:
    with progress.Bar(keep=True) as bar:
      for what in ('one', 'two'):
        bar.show(what, 0, 2)
        terminal.seconds += 0.01
        bar.show(what, 2, 2, 'fast')
    first, second, last = terminal.screen()
  assert re.fullmatch(r'one: 100%\|█+\| 00:00 left, fast', first)
  assert re.fullmatch(r'two: 100%\|█+\| 00:00 left, fast', second)
  assert last == '' and len(first) == len(second) == columns - 1


def test_another_phase_is_another_bar_that_counts_its_own_time():
  with put_up() as terminal:
    with progress.Bar() as bar:
      bar.show('one', 0, 10)
      terminal.seconds = 100
      bar.show('one', 10, 10)
      bar.show('two', 500, 1000)  # some of it was there before
      terminal.seconds = 110
      bar.show('two', 600, 1000)
      (line,) = terminal.screen()
      assert 'one' not in line and re.match(r'two:  60%\|', line)
      assert '| 00:40 left' in line
    assert terminal.screen() == ['']


def test_small_amounts_move_it_after_a_large_one():
  with put_up() as terminal, progress.Bar() as bar:
    for seconds, done in enumerate([0, 10, 500, *range(501, 560)]):
      terminal.seconds = seconds
      bar.show('x', done, 560)
      if seconds:
        assert f'x: {done / 5.6:3.0f}%' in terminal.screen()[0]


def test_it_follows_the_width_of_the_terminal():
  with put_up() as terminal, progress.Bar() as bar:
    for terminal.seconds, columns in enumerate([80, 80, 50, 90]):
      terminal.resize(columns)
      bar.show('x', int(terminal.seconds), 9)
      drawn = terminal.getvalue().split('\r')[-1].rstrip()
      assert terminal.seconds == 0 or len(drawn) == columns - 1


@settings(deadline=None)
@given(
  what=st.text('abc/…é', min_size=1, max_size=200),
  columns=st.integers(10, 200),
  postfix=st.sampled_from(['', 'x' * 20]),
)
def test_every_line_fits_the_terminal_and_has_its_numbers(what, columns, postfix):
  with put_up(columns) as terminal, progress.Bar(postfix_width=len(postfix)) as bar:
    for terminal.seconds in range(0, 31, 10):
      bar.show(what, int(terminal.seconds), 100, postfix)
      (line,) = terminal.screen()
      assert len(line) <= columns
    assert columns < 12 or ' 30%|' in line
    if columns >= 30 + len(postfix):
      assert '…: ' in line or line.startswith(f'{what}: ')
      assert '| 01:10 left' in line and line.endswith(postfix)
    if len(what) <= columns - 24 - len(postfix):
      assert line.startswith(f'{what}: ')


@pytest.mark.parametrize('stderr', [io.StringIO(), None])
@pytest.mark.parametrize('keep', [False, True])
def test_without_a_terminal_nothing_is_shown(monkeypatch, capsys, stderr, keep):
  monkeypatch.setattr(sys, 'stderr', stderr)
  monkeypatch.setattr(progress, '_DELAY', 0)
  with progress.Bar(keep=keep) as bar:
    for done in range(3):
      bar.show('x', done, 2, 'postfix')
  assert stderr is None or stderr.getvalue() == ''
  assert capsys.readouterr() == ('', '')


def test_numbers_are_short():
  assert [progress.short(n) for n in (0, 7, 12345, 1e6)] == ['0.00', '7.00', '12.3k', '1.00M']


def test_rates_of_a_text_are_those_since_its_encoding_began():
  with put_up() as terminal:
    with data_progress.Bar() as bar:
      bar.show('counting', 0, 10, encoding.Counts())
      terminal.seconds = 50
      bar.show('counting', 10, 10, encoding.Counts())
      bar.show('encoding', 0, 10, encoding.Counts())
      terminal.seconds = 52
      bar.show('encoding', 5, 10, encoding.Counts(documents=10, characters=3000, tokens=4000))
      assert terminal.screen()[-1].endswith('| 00:02 left, 5.00 documents/s, 2.00k tokens/s')
      terminal.seconds = 54
      bar.show('encoding', 10, 10, encoding.Counts(documents=2, characters=500, tokens=0))
      bar.show('encoding', 10, 10, encoding.Counts(documents=2, characters=5000, tokens=4000))
      assert (bar.written.documents, bar.written.tokens, bar.seconds) == (12, 8000, 4)
      bar.show('encoding more', 0, 10, encoding.Counts())
      terminal.seconds = 56
      bar.show('encoding more', 10, 10, encoding.Counts(documents=3, characters=6, tokens=1000))
      assert (bar.written.tokens, bar.seconds) == (9000, 6)
      bar.show('verifying', 0, 10, encoding.Counts())
    counting, first, second, verifying, _ = terminal.screen()
  assert re.fullmatch(r'counting: 100%\|█+\| 00:00 left', counting)
  assert first.endswith('| 00:00 left, 3.00 documents/s, 2.00k tokens/s')
  assert second.endswith('| 00:00 left, 2.50 documents/s, 1.50k tokens/s')
  assert re.match(r'verifying:   0%\|', verifying) and '/s' not in verifying
