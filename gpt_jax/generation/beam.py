"""Beam search: the most likely texts found by keeping a few of them at each length.

Of each prompt, K unfinished texts (beams) are kept. All their continuations by one token compete by
the sum of their tokens' scores, which are log-probabilities after bias, penalties and bans. Of the
2 K best, those that end and are among the first K become hypotheses, which compete by
score / length ** length_penalty (Wu et al. 2016, "Google's Neural Machine Translation System", §7,
in its simple form); the first K of the others are the next beams. A prompt is done when its K best
hypotheses are all at least as good as its best beam would be if it ended now. These are the rules
of `generate` in Hugging Face's transformers, with early_stopping=False.

Shapes in names: U prompts, K beams, R = U K rows, C = 2 K candidates, V vocabulary (padded).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import errors, models
from gpt_jax.generation import decode
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.generation import settings as settings_lib
from gpt_jax.generation import state as state_lib
from gpt_jax.models import attention, quantized


class _Beams(NamedTuple):
  """Everything that a step of the search changes."""

  rows: state_lib.State  # R rows, those of a prompt side by side, the best first
  scores_UK: jax.Array  # float32; -inf is no beam
  finished_UK: jax.Array  # float32: scores of the K best hypotheses, -inf if there are fewer
  best: state_lib.State  # U rows, the best hypotheses, without caches
  best_score_U: jax.Array  # float32, with the length penalty; -inf: no hypothesis yet
  done_U: jax.Array  # bool; a prompt that is done has its final best


def search(
  model: models.Model,
  params: Any,
  settings: settings_lib.Settings,
  prompts: Sequence[Sequence[int]],
) -> decode.Search:
  """Returns beam search; raises `UserError` if the prompts can't be continued by it."""
  config, K, found = model.config, settings.num_beams, []
  if config.vocab_size < K:
    problem = f'{K} must be at most the size of the vocabulary, {config.vocab_size}'
    found.append(errors.UserError('num_beams', problem))
  longest = max(map(len, prompts), default=0)
  room = config.block_size - longest
  if settings.max_new_tokens > room:
    problem = f'{settings.max_new_tokens} tokens after a prompt of {longest} exceed the context, '
    problem += f'{config.block_size}, which does not shift with `num_beams`'
    fix = f'use at most {room}' if room else 'shorten the prompt'
    found.append(errors.UserError('max_new_tokens', problem, fix))
  errors.raise_all(found)
  of_beams = functools.partial(advance, length_penalty=settings.length_penalty, num_beams=K)
  return decode.Search((model,), (params,), of_beams, K, step=settings.max_new_tokens)


@functools.partial(quantized.Jit, static_argnames=('models', 'num_beams'))
def advance(
  models: tuple[models.Model],
  params: tuple[Any],
  state: state_lib.State,
  sampling: sampling_lib.Sampling,
  target_length: jax.typing.ArrayLike,
  *,
  length_penalty: jax.typing.ArrayLike,
  num_beams: int,
) -> state_lib.State:
  """Returns the best hypothesis of each prompt, which ends or has `target_length` new tokens.

  In `state`, each `num_beams` rows are equal and have no new tokens; in the result, each prompt has
  one row, without caches. If processors leave no token to any beam of a prompt that has no
  hypothesis yet, its best beam is the result.
  """
  U, K = state.tokens_BM.shape[0] // num_beams, num_beams
  none_UK = jnp.full((U, K), -jnp.inf)
  start = _Beams(
    rows=state,
    scores_UK=none_UK.at[:, 0].set(0),  # all beams are equal at first: only one counts
    finished_UK=none_UK,
    best=_every(K, state),
    best_score_U=none_UK[:, 0],
    done_U=jnp.zeros(U, bool),
  )
  end = jax.lax.while_loop(
    lambda beams: ~beams.done_U.all(),
    lambda beams: _step(models[0], params[0], beams, sampling, target_length, length_penalty),
    start,
  )
  best = _choose(end.best_score_U > -jnp.inf, end.best, _every(K, end.rows))
  return best._replace(ended_B=jnp.ones(U, bool))


def _step(
  model: models.Model,
  params: Any,
  beams: _Beams,
  sampling: sampling_lib.Sampling,
  target_length: jax.typing.ArrayLike,
  length_penalty: jax.typing.ArrayLike,
) -> _Beams:
  """Makes all beams of the prompts that aren't done longer by one token."""
  U, K = beams.scores_UK.shape
  logits_RV, rows = decode.next_logits(model, params, beams.rows)
  V = logits_RV.shape[-1]
  token_scores_RV = sampling_lib.adjust(sampling, jax.nn.log_softmax(logits_RV), rows)
  all_UKV = beams.scores_UK[:, :, None] + token_scores_RV.reshape(U, K, V)
  score_UC, place_UC = jax.lax.top_k(all_UKV.reshape(U, K * V), 2 * K)
  token_UC = jnp.where(score_UC > -jnp.inf, place_UC % V, -1)
  row_UC = place_UC // V + K * jnp.arange(U)[:, None]
  going_U = ~beams.done_U & (score_UC[:, 0] > -jnp.inf)
  length_U = rows.num_generated_B[::K] + 1
  ends_UC = (token_UC == sampling.eos_id) | (length_U[:, None] >= target_length)
  penalty_U1 = (length_U.astype(jnp.float32) ** length_penalty)[:, None]

  def longer(place_UN: jax.Array, where_B: jax.Array) -> state_lib.State:
    """The beams of these candidates, with their tokens added in the rows of `where_B`."""
    row_B, token_B = (
      jnp.take_along_axis(x_UC, place_UN, axis=1).reshape(-1) for x_UC in (row_UC, token_UC)
    )
    (cache,), *others = rows
    caches = (attention.take_rows(cache, row_B),)
    taken = state_lib.State(caches, *jax.tree.map(lambda x: x[row_B], others))
    return decode.add(sampling, taken, token_B, where_B, logits_RV[row_B])

  new_UK = jnp.where(ends_UC & going_U[:, None], score_UC / penalty_U1, -jnp.inf)[:, :K]
  finished_UK, _ = jax.lax.top_k(jnp.concatenate([beams.finished_UK, new_UK], axis=1), K)
  hypothesis = longer(jnp.argmax(new_UK, axis=1, keepdims=True), going_U)
  better_U = new_UK.max(-1) > beams.best_score_U
  scores_UK, next_UK = jax.lax.top_k(jnp.where(ends_UC, -jnp.inf, score_UC), K)
  hopeless_U = scores_UK[:, 0] / penalty_U1[:, 0] <= finished_UK[:, -1]
  return _Beams(
    rows=longer(next_UK, jnp.repeat(going_U, K)),
    scores_UK=scores_UK,
    finished_UK=finished_UK,
    best=_choose(better_U, _every(1, hypothesis), beams.best),
    best_score_U=jnp.maximum(new_UK.max(-1), beams.best_score_U),
    done_U=~going_U | hopeless_U | (length_U >= target_length),
  )


def _every(n: int, state: state_lib.State) -> state_lib.State:
  """Every n-th row, without caches."""
  return jax.tree.map(lambda x: x[::n], state._replace(caches=()))


def _choose(where_U: jax.Array, one: state_lib.State, other: state_lib.State) -> state_lib.State:
  """The rows of `where_U` from `one`, the others from `other`."""

  def choose(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(where_U.reshape(-1, *[1] * (x.ndim - 1)), x, y)

  return jax.tree.map(choose, one, other)
