"""The first signal is a request to stop; a later one stops at once."""

import signal

import pytest

from gpt_jax import errors, shutdown


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


def test_the_previous_handlers_return():
  before = signal.getsignal(signal.SIGTERM)
  with shutdown.Guard():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
