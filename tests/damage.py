"""Damage as disks and transfers do it."""

import numpy as np


def damaged(data: bytes, seed: int) -> bytes:
  """Flips a bit, cuts bytes off, puts some in, zeroes some, or exchanges two stretches."""
  rng = np.random.default_rng(seed)
  a, b, c = sorted(rng.integers(len(data), size=3))
  return [
    data[:a] + bytes([data[a] ^ 1 << int(rng.integers(8))]) + data[a + 1 :],
    data[:a],
    data[:a] + rng.bytes(int(rng.integers(1, 100))) + data[a:],
    data[:a] + bytes(int(b - a)) + data[b:],
    data[:a] + data[b:c] + data[a:b] + data[c:],
  ][seed % 5]
