"""Contrastive search: likely tokens that don't make the text turn in circles.

Su et al. 2022, "A Contrastive Framework for Neural Text Generation" (arXiv 2202.06417), §3.2: of
the k likeliest tokens v, the one with the largest

  (1 - α) p(v) - α max_j cos(h_v, h_j)

where h_v is the last hidden state that the model has of v, and h_j those of all tokens before it.
Hidden states are those that the output layer reads.

Shapes in names: U prompts, B rows, C = B k continuations (those of a row side by side), k
candidates of a row, L length, M positions of a window, D width, V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.generation import decode as decode_lib
from gpt_jax.generation import engine as engine_lib
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import attention, gpt


class State(NamedTuple):
  """All that a step changes."""

  main: decode_lib.State  # in whose cache is the last known token too, as `next_logits` gives it
  hidden_BMD: jax.Array  # float32, of length 1: hidden states of the known tokens
  logits_BV: jax.Array  # float32, of the token after them


class Session(engine_lib.Session):
  """As `engine.Session`, by contrastive search.

  A candidate needs a position of its own, so that a window slides one token earlier.
  """

  _unseen = 0
  _hidden_BMD: jax.Array

  def __init__(
    self,
    engine: engine_lib.Engine,
    prompts: Sequence[Sequence[int]],
    sampling: sampling_lib.Sampling,
    *,
    alpha: float,
    candidates: int,
    max_new_tokens: int,
    log_probs: bool = False,
  ):
    """Takes the prompts through the model, one that `check` accepts.

    Args:
      engine: The model.
      prompts: As `engine.Session` takes them.
      sampling: Its bias, penalties and bans hold; nothing is drawn, so the rest doesn't count.
      alpha: 0, which is greedy decoding, to 1, where probability only selects the candidates.
      candidates: k, at least 1.
      max_new_tokens: At least 1.
      log_probs: Whether to keep the log-probabilities of the new tokens.
    """
    self._alpha = alpha
    self._prefill, self._program = _programs(
      dataclasses.astuple(engine.config), min(candidates, engine.config.vocab_size)
    )
    plain = dataclasses.replace(sampling, temperature=np.float32(1), top_k=0)
    super().__init__(engine, prompts, plain, max_new_tokens=max_new_tokens, log_probs=log_probs)

  def _decode(self, goal: int) -> None:
    self._state, self._hidden_BMD = self._program(
      self._engine.params, self._state, self._hidden_BMD, self._sampling, self._alpha, goal
    )

  def _fill(self) -> decode_lib.Window:
    window, self._hidden_BMD = self._prefill(
      self._engine.params, *self._unique_prompts(), size=self._size
    )
    return window


def check(config: config_lib.ModelConfig) -> None:
  """Raises `UserError` unless the model has room for a candidate."""
  if config.block_size < 2:
    raise errors.UserError('contrastive_alpha: the context (block_size) must be at least 2 tokens')


@functools.cache
def _programs(
  model: tuple[Any, ...], candidates: int
) -> tuple[Callable[..., Any], Callable[..., Any]]:
  """`prefill` and `decode`, compiled for a model of this `ModelConfig`."""
  of_model = gpt.GPT(config_lib.ModelConfig(*model))
  return (
    jax.jit(functools.partial(prefill, of_model), static_argnames='size'),
    jax.jit(
      functools.partial(decode, of_model, candidates=candidates),
      donate_argnames=('state', 'hidden_BMD'),
    ),
  )


def prefill(
  model: gpt.GPT,
  params: Any,
  tokens_UL: jax.Array,
  length_U: jax.Array,
  rows_B: jax.Array,
  *,
  size: int,
) -> tuple[decode_lib.Window, jax.Array]:
  """A window that knows the prompts, as `generation.decode.prefill`, and its hidden_BMD."""
  config, (U, L) = model.config, tokens_UL.shape
  _, hidden_ULD, cache = _apply(model, params, tokens_UL, attention.empty_cache(config, U, size))
  hidden_BMD = jnp.zeros((rows_B.size, size, config.n_embd)).at[:, :L].set(hidden_ULD[rows_B])
  return decode_lib.window_of(cache, tokens_UL, length_U, rows_B, size=size), hidden_BMD


def decode(
  model: gpt.GPT,
  params: Any,
  state: decode_lib.State,
  hidden_BMD: jax.Array,
  sampling: sampling_lib.Sampling,
  alpha: jax.typing.ArrayLike,
  goal: jax.typing.ArrayLike,
  *,
  candidates: int,
) -> tuple[decode_lib.State, jax.Array]:
  """Adds tokens to every row until it has `goal` new ones or ends, as `generation.decode.decode`.

  Args:
    model: The model.
    params: Its parameters.
    state: With room in the window of each row that has not ended, for the last new token too.
    hidden_BMD: Of the known tokens, the last one included; float32, each of length 1.
    sampling: Its bias, penalties and bans are applied.
    alpha: May be traced.
    goal: At least 0; may be traced.
    candidates: k, at most V.

  Returns:
    The same two, longer.
  """

  def active(state: State) -> jax.Array:
    text = state.main.text
    return (text.produced_B < goal) & ~text.ended_B

  def add_token(state: State) -> State:
    return _add_token(model, params, state, sampling, alpha, active(state), candidates=candidates)

  (cache, tokens_BM), text = state
  position_B = cache.length_B
  last_B1 = jnp.take_along_axis(tokens_BM, position_B[:, None], axis=1)
  logits_B1V, cache = decode_lib.apply(model, params, last_B1, cache)
  window = decode_lib.Window(cache._replace(length_B=position_B), tokens_BM)
  start = State(decode_lib.State(window, text), hidden_BMD, logits_B1V[:, 0])
  main, hidden_BMD, _ = jax.lax.while_loop(lambda state: active(state).any(), add_token, start)
  return main, hidden_BMD


def _add_token(
  model: gpt.GPT,
  params: Any,
  state: State,
  sampling: sampling_lib.Sampling,
  alpha: jax.typing.ArrayLike,
  where_B: jax.Array,
  *,
  candidates: int,
) -> State:
  """One token more in the rows of `where_B`."""
  ((cache, tokens_BM), text), hidden_BMD, logits_BV = state
  B, M, D = hidden_BMD.shape
  choices_BV = decode_lib.processed(sampling, state.main, logits_BV)
  choices_Bk, token_Bk = jax.lax.top_k(choices_BV, candidates)
  p_Bk = jnp.take_along_axis(jax.nn.softmax(choices_BV), token_Bk, axis=1)

  row_C, position_B = jnp.repeat(jnp.arange(B), candidates), cache.length_B
  each = attention.take_rows(cache._replace(length_B=position_B + 1), row_C)
  logits_C1V, hidden_C1D, each = _apply(model, params, token_Bk.reshape(-1, 1), each)
  hidden_BkD = hidden_C1D.reshape(B, candidates, D)
  # At the default precision, a GPU or TPU would round what is float32.
  cosine_BkM = jnp.einsum('BkD,BMD->BkM', hidden_BkD, hidden_BMD, precision='highest')
  known_B1M = (jnp.arange(M) <= position_B[:, None])[:, None]
  likeness_Bk = jnp.where(known_B1M, cosine_BkM, -jnp.inf).max(-1)
  score_Bk = (1 - alpha) * p_Bk - alpha * likeness_Bk
  # Fewer tokens than candidates may be possible.
  choice_B = jnp.argmax(jnp.where(choices_Bk > -jnp.inf, score_Bk, -jnp.inf), -1)

  chosen_B = jnp.arange(B) * candidates + choice_B
  token_B = token_Bk.reshape(-1)[chosen_B]
  chosen = attention.take_rows(each, chosen_B)._replace(length_B=position_B)
  before = decode_lib.State(decode_lib.Window(chosen, tokens_BM), text)
  main = decode_lib.add(sampling, before, token_B, where_B, logits_BV, choices_BV)
  added_B = main.text.produced_B > text.produced_B
  return State(
    main,
    decode_lib.put(hidden_BMD, hidden_C1D[chosen_B, 0], position_B + 1, added_B),
    jnp.where(added_B[:, None], logits_C1V[chosen_B, 0], logits_BV),
  )


def _apply(
  model: gpt.GPT, params: Any, tokens_BL: jax.Array, cache: attention.KVCache
) -> tuple[jax.Array, jax.Array, attention.KVCache]:
  """As `decode.apply`, with hidden_BLD between, float32 and each of length 1."""
  result: Any = gpt.with_hidden(model, params, tokens_BL, cache=cache)
  logits_BLV, hidden_BLD, cache = result
  hidden_BLD = hidden_BLD.astype(jnp.float32)
  squares_BL1 = (hidden_BLD**2).sum(-1, keepdims=True)
  tiny = jnp.finfo(jnp.float32).tiny
  return logits_BLV, hidden_BLD * jax.lax.rsqrt(jnp.maximum(squares_BL1, tiny)), cache
