"""The one loop of generation: prefill, advance, read; and prefill again when the context is full.

Shapes in names: U distinct prompts, B rows on the device, L length.
"""

import collections
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax.generation import decode
from gpt_jax.generation import rows as rows_lib
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.generation import state as state_lib

_SMALLEST_BUCKET = 16


def run(
  search: decode.Search,
  rows: Sequence[rows_lib.Row],
  sampling: sampling_lib.Sampling,
  *,
  max_new_tokens: int,
  patience: float = 0,
  at_most: int | None = None,
) -> Iterator[None]:
  """Adds tokens to `rows` until all have ended; yields after each call of the device.

  A full context shifts: its last half becomes the prompt of the next one, so that each token is
  predicted from at least half a context. A row shifts when it is full, whatever the others do.

  Calls ask for more and more tokens until they take about `patience` seconds, or for `at_most`.
  """
  block_size = search.models[0].config.block_size
  longest = max((len(row.context) for row in rows), default=0) + max_new_tokens - 1
  size = bucket(min(longest, block_size), block_size)  # the last token needs no position
  state: Any = None
  count = search.step
  while going := [(i, row) for i, row in enumerate(rows) if not row.sample.ended]:
    began = time.monotonic()
    if state is None or any(len(row.context) > block_size for _, row in going):
      for row in rows:
        row.shift(block_size)
      fresh = _prefill(search, rows, sampling, size)
      state = (state or fresh)._replace(caches=fresh.caches, tokens_BM=fresh.tokens_BM)
    room = size + 1 - max(len(row.context) for _, row in going)
    before = len(going[0][1].sample.tokens)  # of all that go on
    target = min(before + min(count, room, at_most or room), max_new_tokens)
    ended_B = np.repeat([bool(row.sample.ended) for row in rows], search.num_beams)
    state = state._replace(ended_B=ended_B)
    state = search.advance(search.models, search.params, state, sampling, target)
    # All but the large arrays.
    new = jax.device_get(state._replace(caches=(), keys_B=None, prompt_BV=None, counts_BV=None))
    for i, row in going:
      place = slice(len(row.context), len(row.context) + int(new.num_generated_B[i]) - before)
      tokens = new.tokens_BM[i, place].tolist()
      ended = 'no_token' if new.ended_B[i] else ''
      if new.num_generated_B[i] >= max_new_tokens:
        ended = 'length'
      if tokens and tokens[-1] == sampling.eos_id:
        ended = 'eos'
      log_probs = [] if new.log_probs_BM is None else new.log_probs_BM[i, place].tolist()
      row.add(tokens, log_probs, ended=ended)
      row.sample.accepted = min(int(new.accepted_B[i]), len(row.sample.tokens))
    if time.monotonic() - began < patience / 2:
      count *= 2
    yield


def bucket(length: int, block_size: int) -> int:
  """Returns what a length is padded to, a power of two or `block_size`: few programs compile."""
  return min(max(1 << (length - 1).bit_length(), _SMALLEST_BUCKET), block_size)


def _prefill(
  search: decode.Search, rows: Sequence[rows_lib.Row], sampling: sampling_lib.Sampling, size: int
) -> state_lib.State:
  """The state of the contexts of `rows`; equal ones are computed once, and have other keys."""
  place: dict[tuple[tuple[int, ...], ...], int] = {}
  samples: collections.Counter[int] = collections.Counter()
  rows_B, sample_index_B = [], []
  for row in rows:
    u = place.setdefault((tuple(row.context), tuple(row.source)), len(place))
    rows_B.append(u)
    sample_index_B.append(samples[u])
    samples[u] += 1
  contexts, sources = zip(*place, strict=True)
  block_size = search.models[0].config.block_size
  return state_lib.prefill(
    search.models,
    search.params,
    _padded(contexts, block_size, 0),
    np.array(list(map(len, contexts)), np.int32),
    np.repeat(np.array(rows_B, np.int32), search.num_beams),
    np.repeat(np.array(sample_index_B, np.int32), search.num_beams),
    sampling.seed,
    _padded(sources, block_size, -1) if any(sources) else None,
    size=size + search.lookahead,
    log_probs=rows[0].sample.log_probs is not None,
    counts=sampling.counts_tokens,
  )


def _padded(rows: Sequence[Sequence[int]], block_size: int, fill: int) -> np.ndarray:
  """Rows of one length, int32 (U, L)."""
  L = bucket(max(map(len, rows)), block_size)
  return np.array([[*row, *[fill] * (L - len(row))] for row in rows], np.int32)
