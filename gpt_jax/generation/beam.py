"""Beam search: the likeliest texts that can be found by keeping a few of them at each length.

Of each prompt, K unfinished texts (beams) are kept. All their continuations by one token compete by
the sum of their tokens' scores, which are log-probabilities after bias, penalties and bans. Of the
2 K best, those that end and are among the first K become hypotheses, which compete by
score / length ** length_penalty (Wu et al. 2016, "Google's Neural Machine Translation System", §7,
in its simple form); the first K of the others are the next beams. A prompt is done when its K best
hypotheses are all at least as good as its best beam would be if it ended now. These are the rules
of `generate` in Hugging Face's transformers, with early_stopping=False.

Shapes in names: U prompts, K beams, R = U K rows, C = 2 K candidates, M positions of a window,
V vocabulary (padded).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import validation
from gpt_jax.generation import decode as decode_lib
from gpt_jax.generation import engine as engine_lib
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import attention, gpt


class Best(NamedTuple):
  """The best hypothesis of each prompt."""

  score_U: jax.Array  # float32, with the length penalty; -inf: none yet
  produced_U: jax.Array  # int32: new tokens
  tokens_UM: jax.Array  # int32, with the prompt
  log_probs_UM: jax.Array | None  # float32, of the model alone


class State(NamedTuple):
  """All that a step of the search changes."""

  beams: decode_lib.State  # R rows, those of a prompt side by side, the best first
  scores_UK: jax.Array  # float32; -inf is no beam
  finished_UK: jax.Array  # float32: scores of the K best hypotheses, -inf where there are fewer
  best: Best
  done_U: jax.Array  # bool; what is done has its final best


class Session(engine_lib.Session):
  """As `engine.Session`, but all tokens come at once, and no window slides."""

  def __init__(
    self,
    engine: engine_lib.Engine,
    prompts: Sequence[Sequence[int]],
    sampling: sampling_lib.Sampling,
    *,
    num_beams: int,
    length_penalty: float,
    max_new_tokens: int,
    log_probs: bool = False,
  ):
    """Takes the prompts through the model; `check` has accepted them.

    Args:
      engine: The model.
      prompts: Token ids, at least 1 of each.
      sampling: Its bias, penalties and bans hold; nothing is drawn, so the rest doesn't count.
      num_beams: K, at least 2.
      length_penalty: Above 0 favours long texts.
      max_new_tokens: At least 1.
      log_probs: Whether to keep the log-probabilities of the new tokens.
    """
    self._prompts = prompts
    self._length_penalty = length_penalty
    self._program = _program(dataclasses.astuple(engine.config), num_beams)
    super().__init__(
      engine,
      [prompt for prompt in prompts for _ in range(num_beams)],
      dataclasses.replace(sampling, temperature=None, top_k=0),
      max_new_tokens=max_new_tokens,
      log_probs=log_probs,
    )
    self.slides, self.guessed = [0] * len(prompts), [0] * len(prompts)

  def advance(self, count: int) -> list[tuple[list[int], list[float]]]:
    """The tokens of each prompt's best hypothesis and their log-probabilities, all of them."""
    del count  # which token is best is not known before the end
    best = self._program(
      self._engine.params,
      self._state,
      self._sampling,
      self._length_penalty,
      self._max_new_tokens,
    )
    self._ended = [True] * len(self._ended)
    _, produced_U, tokens_UM, log_probs_UM = jax.device_get(best)
    added = []
    for i, prompt in enumerate(self._prompts):
      new = slice(len(prompt), len(prompt) + int(produced_U[i]))
      log_probs = [] if log_probs_UM is None else log_probs_UM[i, new].tolist()
      added.append((tokens_UM[i, new].tolist(), log_probs))
    return added


def check(
  config: config_lib.ModelConfig,
  prompts: Sequence[Sequence[int]],
  *,
  num_beams: int,
  max_new_tokens: int,
) -> None:
  """Raises `UserError` unless these prompts can be continued by beam search."""
  found = []
  if num_beams > config.vocab_size:
    found.append(f'num_beams: {num_beams} must be at most the vocabulary, {config.vocab_size}')
  longest = max(map(len, prompts))
  room = config.block_size - longest
  if room < 1:
    found.append(
      f'prompts: the longest has {longest} tokens, as many as the context (block_size): num_beams '
      'must have room for at least 1 more, for no context slides there'
    )
  elif max_new_tokens > room:
    found.append(
      f'max_new_tokens: {max_new_tokens} must be from 1 to {room} with num_beams: the longest '
      f'prompt has {longest} tokens, the context (block_size) {config.block_size}, and it does not '
      'slide'
    )
  validation.fail(found)


@functools.cache
def _program(model: tuple[Any, ...], num_beams: int) -> Callable[..., Best]:
  """`search`, compiled for a model of this `ModelConfig`, whatever its parameters."""
  of_model = functools.partial(search, gpt.GPT(config_lib.ModelConfig(*model)))
  return jax.jit(functools.partial(of_model, num_beams=num_beams))


def search(
  model: gpt.GPT,
  params: Any,
  state: decode_lib.State,
  sampling: sampling_lib.Sampling,
  length_penalty: jax.typing.ArrayLike,
  goal: jax.typing.ArrayLike,
  *,
  num_beams: int,
) -> Best:
  """The best hypothesis of each prompt.

  A hypothesis ends with `end_of_text` or has `goal` new tokens. Where processors leave no token to
  any beam of a prompt that has no hypothesis yet, its best beam is the result, as it is.

  Args:
    model: The model.
    params: Its parameters.
    state: R rows of which each K are equal, with nothing produced, and room for `goal` tokens.
    sampling: Its bias, penalties and bans are applied.
    length_penalty: May be traced.
    goal: At least 1; may be traced.
    num_beams: K, at most V.
  """
  U = state.text.produced_B.size // num_beams
  # All beams of a prompt start equal: only one of them counts.
  none_UK = jnp.full((U, num_beams), -jnp.inf)
  start = State(
    state, none_UK.at[:, 0].set(0), none_UK, _first_beams(state, num_beams), jnp.zeros(U, bool)
  )
  result = jax.lax.while_loop(
    lambda state: ~state.done_U.all(),
    lambda state: _step(model, params, state, sampling, length_penalty, goal),
    start,
  )
  found_U = result.best.score_U > -jnp.inf
  return _choose(found_U, result.best, _first_beams(result.beams, num_beams))


def _step(
  model: gpt.GPT,
  params: Any,
  state: State,
  sampling: sampling_lib.Sampling,
  length_penalty: jax.typing.ArrayLike,
  goal: jax.typing.ArrayLike,
) -> State:
  """All beams of the prompts that aren't done, by one token longer."""
  U, K = state.scores_UK.shape
  logits_RV, beams = decode_lib.next_logits(model, params, state.beams)
  V = logits_RV.shape[-1]
  token_scores_RV = sampling_lib.adjust(
    sampling, jax.nn.log_softmax(logits_RV), decode_lib.history(beams)
  )
  all_UKV = state.scores_UK[:, :, None] + token_scores_RV.reshape(U, K, V)
  score_UC, place_UC = jax.lax.top_k(all_UKV.reshape(U, K * V), 2 * K)
  token_UC, row_UC = place_UC % V, place_UC // V + K * jnp.arange(U)[:, None]
  going_U = ~state.done_U & (score_UC[:, 0] > -jnp.inf)
  produced_U = beams.text.produced_B[::K] + 1
  ends_UC = (token_UC == sampling.end_of_text) | (produced_U[:, None] >= goal)

  def longer(row_B: jax.Array, token_B: jax.Array, where_B: jax.Array) -> decode_lib.State:
    """These rows of the beams with these tokens added, in the rows of `where_B`."""
    taken = _take(beams, row_B)
    scores_BV = token_scores_RV[row_B]
    return decode_lib.add(sampling, taken, token_B, where_B, logits_RV[row_B], scores_BV)

  penalty_U1 = (produced_U.astype(jnp.float32) ** length_penalty)[:, None]
  new_UK = jnp.where(ends_UC & going_U[:, None], score_UC / penalty_U1, -jnp.inf)[:, :K]
  finished_UK, _ = jax.lax.top_k(jnp.concatenate([state.finished_UK, new_UK], axis=1), K)
  first_U1 = jnp.argmax(new_UK, axis=1, keepdims=True)
  first = longer(_at(row_UC, first_U1)[:, 0], _at(token_UC, first_U1)[:, 0], going_U)
  hypothesis = _first_beams(first, 1)._replace(score_U=new_UK.max(-1))
  best = _choose(hypothesis.score_U > state.best.score_U, hypothesis, state.best)

  scores_UK, next_UK = jax.lax.top_k(jnp.where(ends_UC, -jnp.inf, score_UC), K)
  # Where no token is possible, the lowest candidates are taken: the first beam stays the first.
  row_R, token_R = (_at(x_UC, next_UK).reshape(-1) for x_UC in (row_UC, token_UC))
  beams = longer(row_R, token_R, jnp.repeat(going_U, K))
  hopeless_U = scores_UK[:, 0] / penalty_U1[:, 0] <= finished_UK[:, -1]
  return State(
    beams,
    scores_UK,
    finished_UK,
    best,
    ~going_U | hopeless_U | (produced_U >= goal),
  )


def _take(state: decode_lib.State, row_B: jax.Array) -> decode_lib.State:
  """These rows of `state`."""
  (cache, tokens_RM), text = state
  window = decode_lib.Window(attention.take_rows(cache, row_B), tokens_RM[row_B])
  return decode_lib.State(window, jax.tree.map(lambda x: x[row_B], text))


def _first_beams(state: decode_lib.State, num_beams: int) -> Best:
  """The first of each prompt's beams, without a score."""
  produced_U, log_probs_RM = state.text.produced_B[::num_beams], state.text.log_probs_BM
  return Best(
    jnp.full(produced_U.shape, -jnp.inf),
    produced_U,
    state.window.tokens_BM[::num_beams],
    None if log_probs_RM is None else log_probs_RM[::num_beams],
  )


def _choose(where_U: jax.Array, one: Best, other: Best) -> Best:
  """The rows of `where_U` from one, the others from the other."""

  def choose(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(where_U.reshape(-1, *[1] * (x.ndim - 1)), x, y)

  return jax.tree.map(choose, one, other)


def _at(array_UC: jax.Array, place_UK: jax.Array) -> jax.Array:
  return jnp.take_along_axis(array_UC, place_UK, axis=1)
