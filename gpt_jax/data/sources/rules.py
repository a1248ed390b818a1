"""Conversations made by rule: each is a pure function of its number.

What is asked about in validation is never asked about in training.
"""

import datetime
import random
import string
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

NUMBERS = {'train': 20_000, 'validation': 600}  # conversations of each split
# Sources whose prompts don't say what to do: all of a conversation, as many as here, follow a rule.
HIDDEN = {'analogies': 33}

_VOWELS, _CONSONANTS = 'aeiou', 'bcdfghjklmnpqrstvwxyz'
_PEOPLE = ('Ann', 'Ben', 'Eve', 'Ian', 'Kim', 'Leo', 'Mia', 'Tom')
_THINGS = ('ball', 'cat', 'dog', 'hat', 'map', 'pen', 'ring', 'sock')
_DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday')
_MONTHS = (
  *('January', 'February', 'March', 'April', 'May', 'June', 'July', 'August'),
  *('September', 'October', 'November', 'December'),
)
_ONES = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
_TENS = ('twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety')
_TEENS = (
  *('ten', 'eleven', 'twelve', 'thirteen', 'fourteen', 'fifteen', 'sixteen'),
  *('seventeen', 'eighteen', 'nineteen'),
)
# What follows the century in 1900, 1901, …
_YEARS = ['hundred', *(f'oh {one}' for one in _ONES), *_TEENS]
_YEARS += [year for ten in _TENS for year in (ten, *(f'{ten}-{one}' for one in _ONES))]
_FIRST = ('first', 'second', 'third', 'fourth', 'fifth', 'sixth', 'seventh', 'eighth', 'ninth')
_ORDINALS = [*_FIRST, 'tenth', 'eleventh', 'twelfth', *(f'{teen}th' for teen in _TEENS[3:])]
_ORDINALS += ['twentieth', *(f'twenty-{nth}' for nth in _FIRST), 'thirtieth', 'thirty-first']


class Conversation(NamedTuple):
  """Prompts and their responses; the kind is that of the last prompt."""

  place: str
  kind: str
  turns: list[str]


class _Rule(NamedTuple):
  """A kind of prompt."""

  prompts: tuple[str, ...]  # ways to ask about x
  draw: Callable[[random.Random], Any]  # returns x
  answer: Callable[[Any], str]


_Drawn = Callable[[random.Random], _Rule]  # a rule of its own for each conversation


def conversations(name: str, split: str) -> Iterator[Conversation]:
  """Yields the conversations of a split of `builtin:NAME`, its kinds in turn.

  A conversation of a source in `HIDDEN` has one kind and no prompt twice. Of the others, those to
  train on have up to three prompts of any kind before it, if there are several kinds.
  """
  rules = RULES[name]
  for number in range(NUMBERS[split]):
    random_ = random.Random(f'{name} {split} {number}')
    kind, turns = list(rules)[number % len(rules)], list[str]()
    kinds = [kind] * HIDDEN.get(name, 1)
    if split == 'train' and name in HIDDEN:
      kinds = kinds[random_.randrange(len(kinds)) :]
    elif split == 'train' and len(rules) > 1:
      kinds = [*random_.choices(list(rules), k=random_.randrange(4)), kind]
    drawn = {each: rule(random_) if callable(rule) else rule for each, rule in rules.items()}
    for each in kinds:
      rule = drawn[each]
      x = rule.draw(random_)
      held_out = split == 'validation'
      while (zlib.crc32(f'{each} {x}'.encode()) % 10 == 0) != held_out or x in turns[::2]:
        x = rule.draw(random_)
      turns += [random_.choice(rule.prompts).format(x=x), rule.answer(x)]
    yield Conversation(f'builtin:{name} {split} {number}', kind, turns)


def _sum(random_: random.Random) -> tuple[int, int]:
  """A number of two digits or one, and one to add without a carry."""
  number = random_.randrange(100)
  return number, random_.randrange(10 - number % 10)


def _word(random_: random.Random) -> str:
  length, offset = random_.randint(3, 5), random_.randint(0, 1)
  letters = (_VOWELS, _CONSONANTS)
  return ''.join(random_.choice(letters[(i + offset) % 2]) for i in range(length))


def _letters(random_: random.Random) -> str:
  return ''.join(random_.choices('abcdefgh', k=random_.randint(3, 4)))


def _fact(random_: random.Random) -> tuple[str, ...]:
  thing, other = random_.sample(_THINGS, 2)
  return (random_.choice(_PEOPLE), thing, random_.choice((thing, other)))


def _date(random_: random.Random) -> types.SimpleNamespace:
  """A day from 1900 to 2099, in parts."""
  first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
  date = datetime.date.fromordinal(random_.randint(first, last))
  endings = {1: 'st', 2: 'nd', 3: 'rd'} if date.day not in (11, 12, 13) else {}
  return types.SimpleNamespace(
    iso=date.isoformat(),
    year=date.year,
    spoken=f'{("nineteen", "twenty")[date.year // 2000]} {_YEARS[date.year % 100]}',
    month=_MONTHS[date.month - 1],
    number=date.month,
    day=date.day,
    nth=f'{date.day}{endings.get(date.day % 10, "th")}',
    ordinal=_ORDINALS[date.day - 1],
    weekday=_DAYS[date.weekday()],
  )


def _analogy(answer: Callable[[str], str]) -> _Rule:
  upper, lower = string.ascii_uppercase, string.ascii_lowercase
  return _Rule(('{x}',), lambda random_: random_.choice(upper) + random_.choice(lower), answer)


def _code(letters: Sequence[str]) -> _Rule:
  """Has the first of 26 letters stand for a, and so on."""
  code = ''.join(letters)
  table = str.maketrans(string.ascii_letters, code + code.upper())
  return _analogy(lambda x: x.translate(table))


RULES: dict[str, dict[str, _Rule | _Drawn]] = {
  'instructions': {
    'add': _Rule(
      ('What is {x[0]} + {x[1]}?', 'Add {x[0]} and {x[1]}.'), _sum, lambda x: str(sum(x))
    ),
    'copy': _Rule(('Copy {x}.', 'Repeat the word {x}.'), _word, str),
    'count': _Rule(
      ('How many {x[0]} are in {x[1]}?', 'Count the {x[0]} in {x[1]}.'),
      lambda random_: (random_.choice('abc'), ''.join(random_.choices('abc', k=4))),
      lambda x: str(x[1].count(x[0])),
    ),
    'reverse': _Rule(('Reverse {x}.', 'Write {x} backwards.'), _word, lambda x: x[::-1]),
    'sort': _Rule(
      ('Sort {x}.', 'Sort the letters of {x}.'), _letters, lambda x: ''.join(sorted(x))
    ),
    'yes or no': _Rule(
      ('{x[0]} has a {x[1]}. Does {x[0]} have a {x[2]}?',),
      _fact,
      lambda x: 'yes' if x[1] == x[2] else 'no',
    ),
  },
  'dates': {
    'date': _Rule(
      (
        '{x.day} {x.month} {x.year}',
        '{x.month} {x.day}, {x.year}',
        '{x.nth} of {x.month} {x.year}',
        'the {x.ordinal} of {x.month} {x.year}',
        'the {x.ordinal} of {x.month}, {x.spoken}',
        '{x.month} the {x.nth}, {x.spoken}',
        '{x.weekday}, {x.month} {x.nth}, {x.year}',
        '{x.weekday} the {x.ordinal} of {x.month} {x.year}',
        '{x.day} {x.month:.3} {x.year}',
        '{x.weekday:.3} {x.month:.3} {x.day} {x.year}',
        '{x.day}.{x.number}.{x.year}',
      ),
      _date,
      lambda x: x.iso,
    ),
  },
  'analogies': {
    'copy': _analogy(str),
    'swap': _analogy(lambda x: x[::-1]),
    'first': _analogy(lambda x: x[0]),
    'last': _analogy(lambda x: x[1]),
    'first twice': _analogy(lambda x: x[0] * 2),
    'last twice': _analogy(lambda x: x[1] * 2),
    'upper': _analogy(str.upper),
    'lower': _analogy(str.lower),
    'next letter': _code(string.ascii_lowercase[1:] + 'a'),
    'cipher': lambda random_: _code(random_.sample(string.ascii_lowercase, 26)),
  },
}
