"""Log-probabilities of given tokens: what every measurement of a model is made of.

Shapes in names: B batch, L length, V vocabulary.
"""

import collections
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import errors
from gpt_jax.generation import text
from gpt_jax.models import gpt

# Called now and then with what is done, how much of it, and how much there is in all.
Progress = Callable[[str, int, int], None]
_SHORTEST = 32  # inputs of the smallest program; the others double up to block_size


class Row(NamedTuple):
  """Tokens to score.

  Attributes:
    tokens: Integers (L,), L at most `block_size` + 1: the last one is never an input.
    first: Position of the first token to score, from 1: the tokens before are context only.
  """

  tokens: np.ndarray
  first: int


class Scores(NamedTuple):
  """What the model says of the tokens of a row from `first` on.

  Attributes:
    log_probs: float32 (L - first,), log p(token | all before it in the row), in nats.
    greedy: bool (L - first,), whether no other token is more probable (of equals the lowest id
      counts, as greedy decoding has it).
  """

  log_probs: np.ndarray
  greedy: np.ndarray


class Scorer:
  """Scores rows in batches on the model's device.

  A row is padded behind to the next of a few lengths, by its own length alone, and every batch has
  `batch_size` rows: no result depends on other rows, but for the rounding of the matrix products.
  """

  def __init__(self, model: text.TextModel, *, batch_size: int) -> None:
    """Compiles nothing yet; each length is compiled when the first row of it comes."""
    self.model = model
    self._batch_size = batch_size
    self._forward = jax.jit(_forward_of(gpt.GPT(model.config)))

  def score(self, rows: Iterable[Row]) -> Iterator[tuple[int, Scores]]:
    """Scores rows as they come; only those of some batches are held.

    Yields:
      The number of each row, from 0, with its scores; not in the order of the rows.

    Raises:
      ValueError: A row is too long, or has nothing to score.
      UserError: The model gives no finite log-probabilities.
    """
    running = None
    for length, batch in self._batches(rows):
      started = batch, self._forward(self.model.params, self._padded(length, batch))
      if running:  # fetched while the device is busy with the next
        yield from _unpacked(*running)
      running = started
    if running:
      yield from _unpacked(*running)

  def _batches(self, rows: Iterable[Row]) -> Iterator[tuple[int, list[tuple[int, Row]]]]:
    """Numbered rows that are padded to one length, and that length."""
    waiting = collections.defaultdict(list)
    for number, row in enumerate(rows):
      if not 1 <= row.first < len(row.tokens) <= self.model.config.block_size + 1:
        raise ValueError(f'a row of {len(row.tokens)} tokens from {row.first} on')
      length = self._padded_length(len(row.tokens) - 1)
      waiting[length].append((number, row))
      if len(waiting[length]) == self._batch_size:
        yield length, waiting.pop(length)
    yield from waiting.items()

  def _padded_length(self, length: int) -> int:
    padded = _SHORTEST
    while padded < length:
      padded *= 2
    return min(padded, self.model.config.block_size)

  def _padded(self, length: int, batch: list[tuple[int, Row]]) -> np.ndarray:
    """The inputs and the targets behind them: int32 (B, length + 1); 0 where there is nothing."""
    tokens_BL = np.zeros((self._batch_size, length + 1), np.int32)
    for tokens_L, (_, row) in zip(tokens_BL, batch, strict=False):
      tokens_L[: len(row.tokens)] = row.tokens
    return tokens_BL


def perplexity(loss: float) -> float:
  """e to a loss in nats; infinite where a float doesn't reach."""
  return math.exp(loss) if loss < math.log(sys.float_info.max) else math.inf


def _forward_of(model: gpt.GPT) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The function to jit: (params, tokens (B, L + 1)) -> log-probabilities, greedy, each (B, L)."""

  def forward(params: Any, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    targets_BL = tokens_BL[:, 1:]
    logits_BLV, _ = model.apply({'params': params}, tokens_BL[:, :-1])  # -inf in the padding of V
    log_probs_BLV = jax.nn.log_softmax(logits_BLV)
    picked_BL1 = jnp.take_along_axis(log_probs_BLV, targets_BL[..., None], axis=-1)
    return picked_BL1[..., 0], logits_BLV.argmax(-1) == targets_BL

  return forward


def _unpacked(
  batch: list[tuple[int, Row]], computed: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[int, Scores]]:
  """The results of a batch, waited for."""
  log_probs_BL, greedy_BL = map(np.asarray, computed)
  for (number, row), log_probs_L, greedy_L in zip(batch, log_probs_BL, greedy_BL, strict=False):
    scored = slice(row.first - 1, len(row.tokens) - 1)
    if not np.isfinite(log_probs_L[scored]).all():
      raise errors.UserError(
        "the model's log-probabilities are not finite numbers: its training has diverged; measure "
        'an earlier checkpoint, as --model=WORKDIR/checkpoints/STEP'
      )
    yield number, Scores(log_probs_L[scored], greedy_L[scored])
