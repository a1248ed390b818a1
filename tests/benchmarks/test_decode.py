"""The first token and the rate after it follow from when tokens were there."""

from typing import Any

import numpy as np
import pytest

from gpt_jax.benchmarks import decode


class _Model:
  """Generates a token, then two, then four, for which a clock stands still or moves on."""

  def __init__(self, clock):
    self._clock = clock

  def generate(self, prompts, *, max_new_tokens, temperature, progress):
    assert temperature == 0 and len(prompts) == 3
    for done, seconds in ((1, 0.5), (3, 1.0), (max_new_tokens, 3.0)):
      self._clock[0] += seconds
      progress('tokens', done, max_new_tokens)


def test_milliseconds_to_the_first_token_and_the_rate_of_the_others(monkeypatch):
  clock = [7.0]
  monkeypatch.setattr(decode.time, 'perf_counter', lambda: clock[0])
  model: Any = _Model(clock)
  first, rate = decode._generate(model, [np.array([1])] * 3, 7)
  assert first == pytest.approx(500)
  assert rate == pytest.approx(3 * 6 / 4)
