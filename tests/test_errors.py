"""User errors carry a key, a problem and a fix, alone or together, also between processes."""

import pickle

import pytest

from gpt_jax import errors

_ONE = errors.UserError('data.source', "no such source 'x'", 'use `data.source=text:x`')
_OTHER = errors.UserError('seed', '-1 must be at least 0')


def test_a_message_has_the_key_the_problem_and_the_fix():
  assert str(_ONE) == "data.source: no such source 'x'; use `data.source=text:x`"
  assert str(_OTHER) == 'seed: -1 must be at least 0'


def test_errors_are_raised_alone_or_together():
  errors.raise_all([])
  with pytest.raises(errors.UserError) as e:
    errors.raise_all([_ONE])
  assert e.value is _ONE and e.value.all == (_ONE,)
  with pytest.raises(errors.UserError) as e:
    errors.raise_all([_ONE, errors.UserErrors([_OTHER, _ONE])])
  assert e.value.all == (_ONE, _OTHER, _ONE) and e.value.key == 'data.source'
  assert str(_ONE) in str(e.value) and str(_OTHER) in str(e.value)


def test_an_error_can_be_found_at_another_key():
  moved = _ONE.at('prompt')
  assert (moved.key, moved.problem, moved.fix) == ('prompt', _ONE.problem, _ONE.fix)
  both = errors.UserErrors([_ONE, _OTHER]).at('prompt')
  assert [error.key for error in both.all] == ['prompt', 'prompt']


@pytest.mark.parametrize('error', [_ONE, errors.UserErrors([_ONE, _OTHER])])
def test_an_error_survives_the_way_between_processes(error):
  copy = pickle.loads(pickle.dumps(error))
  assert type(copy) is type(error) and str(copy) == str(error) and len(copy.all) == len(error.all)
