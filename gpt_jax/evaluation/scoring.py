"""Log-probabilities of given tokens, the basis of every measurement of a model.

Shapes in names: B batch, L length, S scored tokens, D width, V vocabulary.
"""

import collections
import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import errors, models, oom
from gpt_jax.generation import language_model, loop
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding

_Batch = list[tuple[int, 'Row']]  # rows with their numbers


class Row(NamedTuple):
  """Tokens to score; those before `first` are context."""

  tokens: np.ndarray  # integers (L,), L at most block_size + 1, as the last one is no input
  first: int  # position of the first token to score, at least 1


class Scores(NamedTuple):
  """Scores of the tokens of a row from `first` on."""

  log_probs: np.ndarray  # float32 (S,), log p(token | all before it in the row), in nats
  greedy: np.ndarray  # bool (S,), whether greedy decoding chooses the token (lowest id of equals)


class Scorer:
  """Scores rows in batches on the model's device.

  Rows are padded to one of a few lengths, so that few programs are compiled. Scores don't depend on
  the other rows, except for the rounding of matrix products.
  """

  def __init__(self, model: language_model.LanguageModel, *, batch_size: int) -> None:
    """Compiles nothing yet.

    Raises `UserError` if the model has no tokenizer, or its devices don't divide `batch_size` or
    have no room for it.
    """
    if model.tokenizer is None:
      raise errors.UserError('model', 'has no tokenizer', 'add its tokenizer.json to the directory')
    model.check_plain()
    model.check_predicts('measure it on run:validation or run:test')
    self.config, self.tokenizer = model.config, model.tokenizer
    self._params, self._batch_size = model.params, batch_size
    self._mesh = mesh_lib.mesh_of(model.params)
    forward = functools.partial(_forward, models.make(model.config))
    self._forward = jax.jit(sharding.on_mesh(self._mesh, forward))
    size = 4 * (self.config.block_size + self.config.hidden_width)
    oom.check('batch_size', f'{batch_size} windows', batch_size * size)
    parts = self._mesh.shape['data'] * self._mesh.shape['fsdp'] if self._mesh else 1
    if batch_size % parts:
      problem = f'{batch_size} must be divisible by {parts}, the size of mesh axis data × fsdp'
      raise errors.UserError('batch_size', problem)

  def score(self, rows: Iterable[Row]) -> Iterator[tuple[int, Scores]]:
    """Scores rows as they come, holding those of a few batches at a time.

    Yields the number of each row, from 0, with its scores, in any order. Raises `ValueError` if a
    row is too long or has nothing to score, `UserError` if a log-probability is not finite.
    """
    running = None
    for length, batch in self._batches(rows):
      arrays = (mesh_lib.spread(self._mesh, rows) for rows in self._arrays(length, batch))
      started = batch, self._forward(self._params, *arrays)
      if running:  # fetched while the device computes the next batch
        yield from _fetch(*running)
      running = started
    if running:
      yield from _fetch(*running)

  def _batches(self, rows: Iterable[Row]) -> Iterator[tuple[int, _Batch]]:
    """Yields batches of rows with the same padded length, and that length."""
    waiting: dict[int, _Batch] = collections.defaultdict(list)
    for number, row in enumerate(rows):
      if not 1 <= row.first < len(row.tokens) <= self.config.block_size + 1:
        raise ValueError(f'cannot score a row of {len(row.tokens)} tokens from {row.first} on')
      length = loop.bucket(len(row.tokens) - 1, self.config.block_size)
      waiting[length].append((number, row))
      if len(waiting[length]) == self._batch_size:
        yield length, waiting.pop(length)
    yield from waiting.items()

  def _arrays(self, length: int, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens (B, L + 1) and the positions of those to score (B, S), 0 where padded."""
    most = max(len(row.tokens) - row.first for _, row in batch)
    num_scored = loop.bucket(most, self.config.block_size)
    tokens_BL = np.zeros((self._batch_size, length + 1), np.int32)
    scored_BS = np.zeros((self._batch_size, num_scored), np.int32)
    for tokens_L, scored_S, (_, row) in zip(tokens_BL, scored_BS, batch, strict=False):
      tokens_L[: len(row.tokens)] = row.tokens
      scored_S[: len(row.tokens) - row.first] = np.arange(row.first, len(row.tokens))
    return tokens_BL, scored_BS


def _forward(
  model: models.Model, params: Any, tokens_BL: jax.Array, scored_BS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the `Scores` of the tokens at `scored_BS`; no other logits are computed."""
  hidden_BLD, _ = model.apply({'params': params}, tokens_BL[:, :-1], method='hidden')
  hidden_BSD = jnp.take_along_axis(hidden_BLD, scored_BS[..., None] - 1, axis=1)
  logits_BSV: Any = model.apply({'params': params}, hidden_BSD, method='logits')
  targets_BS = jnp.take_along_axis(tokens_BL, scored_BS, axis=1)
  log_probs_BSV = jax.nn.log_softmax(logits_BSV)
  log_probs_BS1 = jnp.take_along_axis(log_probs_BSV, targets_BS[..., None], axis=-1)
  return log_probs_BS1[..., 0], logits_BSV.argmax(-1) == targets_BS


def _fetch(batch: _Batch, computed: tuple[jax.Array, jax.Array]) -> Iterator[tuple[int, Scores]]:
  """Waits for the results of a batch, and yields those of each row."""
  for (number, row), *scores in zip(batch, *map(np.asarray, computed), strict=False):
    log_probs_S, greedy_S = (values[: len(row.tokens) - row.first] for values in scores)
    if not np.isfinite(log_probs_S).all():
      problem = 'its log-probabilities are not finite: the training diverged'
      raise errors.UserError('model', problem, 'measure WORKDIR/checkpoints/STEP, an earlier one')
    yield number, Scores(log_probs_S, greedy_S)
