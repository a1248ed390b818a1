"""Which windows of the tokens make a batch: pure functions of (seed, step) or of the index.

Shapes: B sequences, L tokens of context (`block_size`). Nothing here has a state, so that a run
which resumes, on any number of hosts, sees the batches it would have seen.
"""

import numpy as np


def train_starts(
  num_tokens: int, *, block_size: int, batch_size: int, seed: int, step: int
) -> np.ndarray:
  """Where the windows of training batch `step` start: uniform, with replacement.

  The generator is counter-based (Philox: Salmon et al., "Parallel random numbers: as easy as
  1, 2, 3", 2011), keyed by (seed, step), hence as fast at step 10**9 as at step 0. Its raw words
  are reduced here rather than by NumPy's `integers`, whose stream may change between versions.

  Args:
    num_tokens: Tokens to draw from; more than `block_size`.
    block_size: L. A window has L + 1 tokens: L inputs and, one further, L targets.
    batch_size: B.
    seed: At least 0.
    step: At least 0.

  Returns:
    int64 (B,), each in [0, num_tokens - block_size - 1].
  """
  key = np.random.SeedSequence(seed, spawn_key=(step,))
  words = np.random.Philox(key).random_raw(batch_size)
  # 64-bit words modulo 10**10 places favour some by less than one part in 10**9.
  return (words % np.uint64(num_tokens - block_size)).astype(np.int64)


def val_starts(
  num_tokens: int, *, block_size: int, batch_size: int, num_batches: int, index: int
) -> np.ndarray:
  """Where the windows of validation batch `index` of `num_batches` start.

  The windows of all batches are spread evenly over the tokens, the first at the start and the last
  at the end (a single one: at the start); they overlap only if there are more of them than fit.

  Args:
    num_tokens: Tokens of the validation split; more than `block_size`.
    block_size: L, as in `train_starts`.
    batch_size: B.
    num_batches: Batches in an evaluation.
    index: Which of them, from 0.

  Returns:
    int64 (B,), each in [0, num_tokens - block_size - 1], ascending over rows, then over batches.
  """
  rank = index * batch_size + np.arange(batch_size, dtype=np.int64)
  last = num_tokens - block_size - 1
  return rank * last // max(1, num_batches * batch_size - 1)


def windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
  """Reads the windows of `length` tokens that begin at `starts`: any rows of a batch, on any host.

  The inputs of a batch begin at its starts, the targets one token further on.

  Args:
    tokens: (N,), any integer type, memory-mapped or not.
    starts: (B,), each in [0, N - length].
    length: Tokens in a window.

  Returns:
    int32 (B, length).
  """
  return np.lib.stride_tricks.sliding_window_view(tokens, length)[starts].astype(np.int32)
