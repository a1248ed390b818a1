"""Prefill and decode: the pure functions that every way of generating is made of.

A *window* is what the cache holds of each row: the known tokens, but for the last. `prefill` takes
prompts of any lengths through the model at once, `decode` adds tokens one by one, on the device.

Shapes in names: U prompts, B rows (samples of the prompts), L length, M positions of the cache,
V vocabulary (padded).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import attention, gpt


class Window(NamedTuple):
  """What the model has seen of each row.

  A row's tokens are known up to and including position `cache.length_B`, whose token the model has
  yet to see: the cache is one behind, so that a full one still predicts the token after it.
  """

  cache: attention.KVCache
  tokens_BM: jax.Array  # int32, M + 1 of them


class Text(NamedTuple):
  """What has become of each row, over all its windows."""

  produced_B: jax.Array  # int32: new tokens
  ended_B: jax.Array  # bool: nothing is added any more
  log_probs_BM: jax.Array | None  # float32, at the places of the window's tokens; None: not asked
  prompt_BV: jax.Array | None  # bool; see sampling.History
  counts_BV: jax.Array | None  # int32


class State(NamedTuple):
  """All that a step of decoding changes."""

  window: Window
  text: Text


def prefill(
  model: gpt.GPT,
  params: Any,
  tokens_UL: jax.Array,
  length_U: jax.Array,
  rows_B: jax.Array,
  *,
  size: int,
) -> Window:
  """A window that knows the prompts.

  What follows a prompt in its row of `tokens_UL` is padding. No token sees it: it comes later, the
  cache is cut to the real length, and decoding overwrites it.

  Args:
    model: The model.
    params: Its parameters.
    tokens_UL: int32, L at most `size`.
    length_U: Known tokens of each prompt, 1 to L.
    rows_B: The prompt of each row. A prompt is computed once, however many rows start from it.
    size: M, at least L. Static.
  """
  # XLA drops the logits, which nobody uses, from the program.
  _, cache = apply(
    model, params, tokens_UL, attention.empty_cache(model.config, len(tokens_UL), size)
  )
  return window_of(cache, tokens_UL, length_U, rows_B, size=size)


def window_of(
  cache: attention.KVCache,
  tokens_UL: jax.Array,
  length_U: jax.Array,
  rows_B: jax.Array,
  *,
  size: int,
) -> Window:
  """The window of each row, from the cache of the prompts; arguments as of `prefill`."""
  B, L = rows_B.size, tokens_UL.shape[1]
  cache = attention.take_rows(cache._replace(length_B=length_U - 1), rows_B)
  tokens_BM = jnp.zeros((B, size + 1), jnp.int32).at[:, :L].set(tokens_UL[rows_B])
  return Window(cache, tokens_BM)


def empty_text(rows_B: jax.Array, prompt_BV: jax.Array | None, *, log_probs_of: int) -> Text:
  """No new tokens yet.

  Args:
    rows_B: As many entries as there are rows.
    prompt_BV: bool, the tokens of each prompt, if the sampling counts tokens.
    log_probs_of: Positions to keep log-probabilities of, 0 for none. Static.
  """
  B = rows_B.size
  return Text(
    produced_B=jnp.zeros(B, jnp.int32),
    ended_B=jnp.zeros(B, bool),
    log_probs_BM=jnp.zeros((B, log_probs_of), jnp.float32) if log_probs_of else None,
    prompt_BV=prompt_BV,
    counts_BV=None if prompt_BV is None else jnp.zeros(prompt_BV.shape, jnp.int32),
  )


def decode(
  model: gpt.GPT,
  params: Any,
  state: State,
  sampling: sampling_lib.Sampling,
  copies_B: jax.Array,
  goal: jax.typing.ArrayLike,
) -> State:
  """Adds tokens to every row until it has `goal` new ones or ends.

  New token t of the c-th copy of a prompt is drawn with fold_in(fold_in(key(seed), c), t), whatever
  else is in the batch. A row ends with `end_of_text`, and where processors leave it no token.

  Args:
    model: The model.
    params: Its parameters.
    state: With room in the window of each row that has not ended.
    sampling: How to choose.
    copies_B: int32, which copy of its prompt each row is, from 0.
    goal: At least 0; may be traced.
  """
  keys_B = sampling_lib.row_keys(sampling.seed, copies_B)

  def active(state: State) -> jax.Array:
    return (state.text.produced_B < goal) & ~state.text.ended_B

  def add_token(state: State) -> State:
    logits_BV, state = next_logits(model, params, state)
    choices_BV = processed(sampling, state, logits_BV)
    token_keys_B = sampling_lib.token_keys(keys_B, state.text.produced_B)
    token_B = sampling_lib.draw(sampling, choices_BV, token_keys_B)
    return add(sampling, state, token_B, active(state), logits_BV, choices_BV)

  return jax.lax.while_loop(lambda state: active(state).any(), add_token, state)


def next_logits(model: gpt.GPT, params: Any, state: State) -> tuple[jax.Array, State]:
  """Logits of the token after the known ones, and the state in whose cache the last of them is.

  The cache's `length_B` stays: `add` moves it on.
  """
  window = state.window
  position_B = window.cache.length_B
  token_B1 = jnp.take_along_axis(window.tokens_BM, position_B[:, None], axis=1)
  logits_B1V, cache = apply(model, params, token_B1, window.cache)
  cache = cache._replace(length_B=position_B)
  return logits_B1V[:, 0], state._replace(window=window._replace(cache=cache))


def processed(sampling: sampling_lib.Sampling, state: State, logits_BV: jax.Array) -> jax.Array:
  """The logits that the next token of each row is drawn from."""
  return sampling_lib.process(sampling, logits_BV, history(state))


def history(state: State) -> sampling_lib.History:
  """What processors may ask about `state`."""
  (cache, tokens_BM), text = state
  return sampling_lib.History(
    tokens_BM, cache.length_B + 1, text.produced_B, text.prompt_BV, text.counts_BV
  )


def add(
  sampling: sampling_lib.Sampling,
  state: State,
  token_B: jax.Array,
  where_B: jax.Array,
  logits_BV: jax.Array,
  choices_BV: jax.Array,
) -> State:
  """The state with one more token in each row of `where_B`, or ended where none was possible.

  Args:
    sampling: How the token was chosen.
    state: In whose cache the token before is, as `next_logits` gives it.
    token_B: int32.
    where_B: bool; other rows stay as they are.
    logits_BV: What the model said.
    choices_BV: The same, processed.
  """
  (cache, tokens_BM), text = state
  possible_B = choices_BV.max(-1) > -jnp.inf
  added_B = where_B & possible_B
  place_B = cache.length_B + 1
  text = _with_token(text, token_B, added_B, place_B, logits_BV)
  ends_B = ~possible_B | (token_B == sampling.end_of_text)
  text = text._replace(ended_B=text.ended_B | (where_B & ends_B))
  tokens_BM = put(tokens_BM, token_B, place_B, added_B)
  cache = cache._replace(length_B=cache.length_B + added_B)
  return State(Window(cache, tokens_BM), text)


def _with_token(
  text: Text, token_B: jax.Array, added_B: jax.Array, place_B: jax.Array, logits_BV: jax.Array
) -> Text:
  """`text` with one more token in the rows of `added_B`, whose model's logits are given."""
  log_probs_BM, counts_BV = text.log_probs_BM, text.counts_BV
  if log_probs_BM is not None:
    all_BV = jax.nn.log_softmax(logits_BV)
    chosen_B = jnp.take_along_axis(all_BV, token_B[:, None], axis=1)[:, 0]
    log_probs_BM = put(log_probs_BM, chosen_B, place_B, added_B)
  if counts_BV is not None:
    rows_B = jnp.arange(token_B.size)
    counts_BV = counts_BV.at[rows_B, token_B].add(added_B.astype(jnp.int32))
  produced_B = text.produced_B + added_B
  return text._replace(produced_B=produced_B, log_probs_BM=log_probs_BM, counts_BV=counts_BV)


def put(array_BM: jax.Array, value_B: jax.Array, place_B: jax.Array, where_B: jax.Array) -> Any:
  """`array_BM` with `value_B` at `place_B`, in the rows of `where_B`."""
  nowhere = array_BM.shape[1]
  place_B = jnp.where(where_B, place_B, nowhere)
  return array_BM.at[jnp.arange(place_B.size), place_B].set(value_B, mode='drop')


def apply(
  model: gpt.GPT, params: Any, tokens_BL: jax.Array, cache: attention.KVCache
) -> tuple[jax.Array, attention.KVCache]:
  """The model after what `cache` holds: logits_BLV and the cache with L more positions."""
  result: Any = model.apply({'params': params}, tokens_BL, cache=cache)
  return result
