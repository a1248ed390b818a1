"""Signals ask for an end; asked again, there is one."""

import signal

import pytest

from gpt_jax import errors, stopping


@pytest.fixture
def stop():
  with stopping.StopRequest() as request:
    yield request


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_only_asks(stop, number, capsys):
  stop.check()
  signal.raise_signal(number)
  assert stop.requested and signal.Signals(number).name in capsys.readouterr().err
  with pytest.raises(errors.Stopped, match='run the same command again'):
    stop.check()


def test_a_signal_that_comes_twice_is_one(stop):
  for _ in range(3):
    signal.raise_signal(signal.SIGINT)
  assert stop.requested


def test_asked_again_it_ends_at_once(stop, monkeypatch):
  signal.raise_signal(signal.SIGTERM)
  monkeypatch.setattr(stopping, '_ECHO_SECONDS', -1)
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGTERM)


def test_signals_are_as_before_behind_it():
  before = signal.getsignal(signal.SIGTERM)
  with stopping.StopRequest():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
