"""Typed options with documentation and limits, as fields of frozen dataclasses.

Imports only the standard library, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import difflib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gpt_jax import errors

# Name of a limit -> whether a value keeps it.
_HOLDS: dict[str, Callable[[Any, float], bool]] = {
  'at_least': operator.ge,
  'above': operator.gt,
  'at_most': operator.le,
  'below': operator.lt,
}
_MOST = 2**31 - 1  # what a program can count, unless a knob declares less or more
_EXPECTED = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}


def knob(default: Any, doc: str, *, choices: tuple[str, ...] | None = None, **limits: float) -> Any:
  """Declares a dataclass field with its default, a line of documentation and its limits.

  Limits are `at_least` or `above`, and `at_most` or `below`.
  """
  named = [(limit, name.replace('_', ' '), _HOLDS[name]) for name, limit in limits.items()]
  metadata = {'doc': doc, 'limits': named, 'choices': choices}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Knob:
  """A leaf of a config: its dotted key, declaration and value."""

  key: str
  field: dataclasses.Field[Any]
  value: Any


def knobs(config: Any, prefix: str = '') -> Iterator[Knob]:
  """Yields every leaf of `config`, in the order of declaration."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(field.type) and type(value) is field.type:
      yield from knobs(value, f'{prefix}{field.name}.')
    else:
      yield Knob(prefix + field.name, field, value)


def replace(config: Any, values: Mapping[str, Any]) -> Any:
  """Returns a copy of `config` with these values by dotted key; `TypeError` for an unknown key."""
  sections: dict[str, dict[str, Any]] = {}
  leaves = {}
  for key, value in values.items():
    section, dot, rest = key.partition('.')
    if dot:
      sections.setdefault(section, {})[rest] = value
    else:
      leaves[key] = value
  nested = {name: replace(getattr(config, name), inner) for name, inner in sections.items()}
  return dataclasses.replace(config, **nested, **leaves)


def parse(key: str, kind: Any, text: str) -> Any:
  """Parses the value of a knob of type `kind`; raises `UserError`."""
  try:
    if kind is bool:
      return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    return kind(text)
  except (ValueError, KeyError):
    raise errors.UserError(key, f'{text!r} must be {_EXPECTED[kind]}') from None


def problems(knob: Knob) -> Iterator[errors.UserError]:
  """Yields what is wrong with a value by itself: type, choices, limits."""
  value, wanted = knob.value, knob.field.type
  if wanted is float and type(value) is int:
    value = float(value)
  if type(value) is not wanted:
    name = getattr(wanted, '__name__', wanted)
    yield errors.UserError(knob.key, f'{value!r} is {type(value).__name__}, must be {name}')
    return
  if isinstance(value, float) and not math.isfinite(value):
    yield errors.UserError(knob.key, f'{value} must be a finite number')
    return
  if isinstance(value, str) and not is_utf8(value):
    yield errors.UserError(knob.key, f'{value!r} is not UTF-8')
  choices = knob.field.metadata['choices']
  if choices and value not in choices:
    hint = suggestion(value, choices)
    yield errors.UserError(knob.key, f'{value!r} must be one of {", ".join(choices)}', hint)
  limits = knob.field.metadata['limits']
  if wanted is int and not any(words == 'at most' for _, words, _ in limits) and value > _MOST:
    yield errors.UserError(knob.key, f'{value} must be at most {_MOST}')
  if not all(holds(value, limit) for limit, _, holds in limits):
    allowed = ' and '.join(f'{words} {limit}' for limit, words, _ in limits)
    yield errors.UserError(knob.key, f'{value} must be {allowed}')


def is_utf8(text: str) -> bool:
  """Returns whether text from the terminal was UTF-8: Python keeps other bytes as surrogates."""
  return not any('\ud800' <= character <= '\udfff' for character in text)


def suggestion(given: str, known: Iterable[str]) -> str:
  """Returns 'did you mean X?' for the nearest of the `known` names, or an empty string."""
  by_last: dict[str, list[str]] = {}
  for name in known:
    by_last.setdefault(name.rpartition('.')[2], []).append(name)
  given = given.lower()
  section, _, last = given.rpartition('.')
  whole = [name for names in by_last.values() for name in names]
  short = [key for key in by_last if last and _initials(key) == last]
  initials = [name for key in short for name in by_last[key]]
  initials = [name for name in initials if section in name] or initials
  near = initials or difflib.get_close_matches(given, whole, n=1, cutoff=0.75)
  near = near or [name for name in whole if len(given) > 2 and name.startswith(given)][:1]
  near = near or by_last.get(last, [])[:1]
  near = near or [by_last[k][0] for k in difflib.get_close_matches(last, by_last, n=1, cutoff=0.63)]
  return f'did you mean {" or ".join(f"`{name}`" for name in near)}?' if near else ''


def _initials(name: str) -> str:
  """Returns lr of learning_rate; nothing of a single word."""
  words = name.split('_')
  return ''.join(word[:1] for word in words) if len(words) > 1 else ''
