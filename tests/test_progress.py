"""Progress is shown on a terminal, one phase at a time, and nowhere else."""

import io
import itertools

import pytest
import tqdm.std

from gpt_jax import progress


class _Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('keep', [True, False])
def test_each_phase_is_named_with_its_share(monkeypatch, keep):
  terminal, seconds = _Terminal(), itertools.count()
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


def test_steps_of_different_sizes_are_all_counted(monkeypatch):
  terminal = _Terminal()
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
  monkeypatch.setattr('sys.stderr', _Terminal())
  with progress.Bar(keep=True) as bar:
    bar.show('reading', 1, 2)
    bar.say('half')
  assert 'half\n' in capsys.readouterr().out


def test_what_cannot_be_counted_is_named_while_it_lasts_also_if_it_fails(monkeypatch):
  terminal = _Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  with pytest.raises(ZeroDivisionError), progress.doing('thinking'):
    assert terminal.getvalue() == 'thinking …'
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
