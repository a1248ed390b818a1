"""The two exceptions that end a command early without a defect; `gpt_jax.cli` sets exit codes."""

import contextlib
import errno
from collections.abc import Iterator, Sequence

# What to do about an error of the system, by its number.
_FIXES = {
  **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), 'free some space, or use another disk'),
  **dict.fromkeys((errno.ENOENT, errno.ESTALE), 'is it, or its folder, there?'),
  **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), 'move away what has its name'),
}


class UserError(Exception):
  """A mistake that the user can fix: exit code 2, no traceback.

  Messages are written for Python callers. An argument or config key in backticks is rendered as a
  flag by `gpt_jax.cli`, the only module that spells flags.

  Attributes:
    key: The argument, config key or file at fault.
    problem: What is wrong with it.
    fix: What to do about it; empty if `problem` says it.
  """

  def __init__(self, key: str, problem: str, fix: str = '') -> None:
    super().__init__(key, problem, fix)  # what an exception pickles
    self.key, self.problem, self.fix = key, problem, fix

  def __str__(self) -> str:
    return f'{self.key}: {self.problem}{"; " if self.fix else ""}{self.fix}'

  @property
  def all(self) -> Sequence['UserError']:
    """The single errors in this one."""
    return (self,)

  def at(self, key: str) -> 'UserError':
    """Returns a copy with another key."""
    return UserError(key, self.problem, self.fix)


class UserErrors(UserError):
  """Several user errors, reported together."""

  def __init__(self, found: Sequence[UserError]) -> None:
    Exception.__init__(self, found)
    self._found = tuple(error for each in found for error in each.all)
    self.key, self.problem, self.fix = self._found[0].key, str(self), ''

  def __str__(self) -> str:
    return '\n'.join([f'{len(self._found)} problems:', *(f'  {error}' for error in self._found)])

  @property
  def all(self) -> Sequence[UserError]:
    return self._found

  def at(self, key: str) -> UserError:
    """Returns a copy with another key."""
    return UserErrors([error.at(key) for error in self._found])


def raise_all(found: Sequence[UserError]) -> None:
  """Raises the errors in `found` as one, if there are any."""
  if found:
    raise found[0] if len(found) == 1 else UserErrors(found)


@contextlib.contextmanager
def placed(name: str, places: Sequence[str]) -> Iterator[None]:
  """Raises user errors of the `with` block at `name[i]`, an argument, at the i-th of `places`."""
  try:
    yield
  except UserError as e:
    at = {f'{name}[{i}]': place for i, place in enumerate(places)}
    raise_all([error.at(at.get(error.key, error.key)) for error in e.all])


def of_system(error: OSError) -> UserError | None:
  """Returns the user error for what the system refuses; None if it names no file."""
  name = error.filename
  if isinstance(error, FileNotFoundError) and name is None:
    name = 'the current folder'
  if name is None:
    return None
  fix = _FIXES.get(error.errno or 0, 'use another place')
  return UserError(str(name), f'cannot be used ({error.strerror})', fix)


class Stopped(Exception):
  """The run was asked to stop and has saved what it needs to resume: exit code 75."""
