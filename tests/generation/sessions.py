"""What tests of sessions share."""

import jax
import numpy as np
import pytest

from gpt_jax.generation import engine
from gpt_jax.parallel import sharding


def prompt(vocab_size: int, length: int, seed: int = 0) -> list[int]:
  """Random token ids."""
  return np.random.default_rng([length, seed]).integers(0, vocab_size, length).tolist()


def sharded(made: engine.Engine) -> engine.Engine:
  """The same model, its parameters cut over four devices along both axes that cut them."""
  if jax.device_count() < 4:
    pytest.skip('needs 4 devices')
  mesh = jax.make_mesh(
    (1, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
    devices=jax.devices()[:4],
  )
  return engine.Engine(
    made.config, jax.device_put(made.params, sharding.tree_shardings(mesh, made.params))
  )


def run(session: engine.Session, count: int = 10**6) -> list[tuple[list[int], list[float]]]:
  """All new tokens of each row, taken `count` at a time, and their log-probabilities."""
  rows: list[tuple[list[int], list[float]]] = []
  while not session.done:
    added = session.advance(count)
    rows = rows or [([], []) for _ in added]
    for (tokens, log_probs), (more, more_log_probs) in zip(rows, added, strict=True):
      assert len(more) <= count
      tokens += more
      log_probs += more_log_probs
  return rows
