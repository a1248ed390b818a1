"""Reads the text of a compiled program: its collectives and its arrays."""

import re

import numpy as np

_BYTES = {'pred': 1, 's32': 4, 'u32': 4, 'bf16': 2, 'f32': 4}
_ARRAY = re.compile(r'\b(' + '|'.join(_BYTES) + r')\[([\d,]*)\]')
_COLLECTIVE = re.compile(
  r' = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\('
)


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
  """Returns type and shape of each array that a piece of HLO mentions."""
  return [
    (kind, tuple(int(size) for size in sizes.split(',') if size))
    for kind, sizes in _ARRAY.findall(text)
  ]


def collectives(text: str) -> dict[str, int]:
  """Returns the bytes that each kind of collective gives to a device; loops must be unrolled.

  Arrays of at most 64 bytes, such as losses, are left out.
  """
  found: dict[str, int] = {}
  for result, kind, _ in _COLLECTIVE.findall(text):
    for element, shape in arrays(result):
      size = _BYTES[element] * int(np.prod(shape))
      if size > 64:
        found[kind] = found.get(kind, 0) + size
  return found
