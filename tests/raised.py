"""The user error that a call raises. Tests compare its key; messages.txt has the wording."""

from collections.abc import Callable

import pytest

from gpt_jax import errors


def user_error(use: Callable[..., object], *args: object, **options: object) -> errors.UserError:
  """Returns the error that `use(*args, **options)` raises: for each problem, one paragraph."""
  with pytest.raises(errors.UserError) as e:
    use(*args, **options)
  assert not any('\n' in str(error) for error in e.value.all)
  return e.value
