"""Decoding on the device, token by token: the pure functions that every search is made of.

Shapes in names: B rows, L length, M positions of the context, V vocabulary (padded).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import models
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.generation import state as state_lib
from gpt_jax.models import attention, quantized


class Search(NamedTuple):
  """A way to find new tokens, for `loop.run`: pure functions and constants."""

  models: tuple[models.Model, ...]  # the model and, if there is one, its draft model
  params: tuple[Any, ...]  # theirs
  # (models, params, state, sampling, target_length) -> state, as `advance` below.
  advance: Callable[..., state_lib.State]
  num_beams: int = 1  # rows on the device for each text
  step: int = 1  # the fewest tokens that are worth a call
  lookahead: int = 0  # positions that it uses after the last token it keeps


@functools.partial(quantized.Jit, static_argnames='models', donate_argnames='state')
def advance(
  models: tuple[models.Model],
  params: tuple[Any],
  state: state_lib.State,
  sampling: sampling_lib.Sampling,
  target_length: jax.typing.ArrayLike,
) -> state_lib.State:
  """Adds tokens to every row until it has `target_length` new ones or ends.

  New token t of sample i of a prompt is drawn with fold_in(fold_in(key(seed), i), t), whatever
  else is in the batch. A row ends with `eos_id`, and if processors allow no token. `state` has room
  for the new tokens of each row that hasn't ended.
  """

  def add_token(state: state_lib.State) -> state_lib.State:
    logits_BV, state = next_logits(models[0], params[0], state)
    choices = sampling_lib.process(sampling, logits_BV, state)
    token_B = sampling_lib.draw(sampling, choices, state.token_keys())
    return add(sampling, state, token_B, active(state, target_length), logits_BV)

  return jax.lax.while_loop(lambda state: active(state, target_length).any(), add_token, state)


def active(state: state_lib.State, target_length: jax.typing.ArrayLike) -> jax.Array:
  """Returns which rows get more tokens, bool (B,)."""
  return (state.num_generated_B < target_length) & ~state.ended_B


def next_logits(
  model: models.Model, params: Any, state: state_lib.State
) -> tuple[jax.Array, state_lib.State]:
  """Computes logits_BV of the next tokens, with the only cache of `state`, and the new state."""
  (cache,) = state.caches
  token_B1 = jnp.take_along_axis(state.tokens_BM, cache.length_B[:, None], axis=1)
  logits_B1V, cache = apply(model, params, token_B1, cache)
  return logits_B1V[:, 0], state._replace(caches=(cache,))


def apply(
  model: models.Model, params: Any, tokens_BL: jax.Array, cache: attention.KVCache
) -> tuple[jax.Array, attention.KVCache]:
  """Computes logits_BLV after what `cache` holds; returns it with L more, its `length_B` as is."""
  result: Any = model.apply({'params': params}, tokens_BL, cache=cache)
  return result[0], result[1]._replace(length_B=cache.length_B)


def add(
  sampling: sampling_lib.Sampling,
  state: state_lib.State,
  token_B: jax.Array,
  where_B: jax.Array,
  logits_BV: jax.Array,
) -> state_lib.State:
  """Adds a token to each row of `where_B`, or ends the row if its token is -1.

  `state` has one cache, as `next_logits` returns it, and `logits_BV` are the model's own.
  """
  (cache,) = state.caches
  added_B = where_B & (token_B >= 0)
  rows_B = jnp.arange(token_B.size)
  place_B = jnp.where(added_B, cache.length_B + 1, state.tokens_BM.shape[1])  # beyond: dropped
  log_probs_BM, counts_BV = state.log_probs_BM, state.counts_BV
  if log_probs_BM is not None:
    log_prob_B = jax.nn.log_softmax(logits_BV)[rows_B, token_B]
    log_probs_BM = log_probs_BM.at[rows_B, place_B].set(log_prob_B, mode='drop')
  if counts_BV is not None:
    counts_BV = counts_BV.at[rows_B, token_B].add(added_B.astype(jnp.int32))
  return state._replace(
    caches=(cache._replace(length_B=cache.length_B + added_B),),
    tokens_BM=state.tokens_BM.at[rows_B, place_B].set(token_B, mode='drop'),
    num_generated_B=state.num_generated_B + added_B,
    ended_B=state.ended_B | (where_B & ((token_B < 0) | (token_B == sampling.eos_id))),
    log_probs_BM=log_probs_BM,
    counts_BV=counts_BV,
  )
