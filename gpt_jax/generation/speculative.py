"""Speculative decoding: a small draft model guesses some tokens, the model judges them all at once.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv
2211.17192), and Chen et al. 2023 (arXiv 2302.01318). The text has the distribution that the model
alone gives it, and without drawing it is the same text, whatever the draft guesses.

Both papers take one more token from the model where it accepted all guesses. Here the draft guesses
that one too, in the step that it needs anyway to see its last guess. So each token is a function of
what comes before it and of its number, and not of where a round of guesses begins: a text is the
same however many tokens are asked for at a time.

Shapes in names: B rows, M positions of a window, V vocabulary (padded), G guesses of a round.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.generation import decode as decode_lib
from gpt_jax.generation import engine as engine_lib
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import attention, gpt

# What the key of a token is folded with, for each of its draws.
_GUESS, _VERDICT, _REPLACEMENT = range(3)


class State(NamedTuple):
  """All that a round of guesses changes."""

  main: decode_lib.State  # of the model
  draft: attention.KVCache  # as far filled as the model's
  guessed_B: jax.Array  # int32: guesses that became tokens


class _Proposal(NamedTuple):
  """The guesses of a round, with the logits that they were drawn from."""

  tokens_GB: jax.Array  # int32; in the draft's loop one of them, (B,)
  choices_GBV: jax.Array


class Session(engine_lib.Session):
  """As `engine.Session`, with a draft model."""

  _draft_cache: attention.KVCache

  def __init__(
    self,
    engine: engine_lib.Engine,
    draft: engine_lib.Engine,
    prompts: Sequence[Sequence[int]],
    sampling: sampling_lib.Sampling,
    *,
    draft_tokens: int,
    max_new_tokens: int,
    log_probs: bool = False,
  ):
    """Takes the prompts through both models.

    Args:
      engine: The model.
      draft: The draft model, one that `check` accepts.
      prompts: As `engine.Session` takes them, and all that follows.
      sampling: How to choose; it holds for the guesses too.
      draft_tokens: Guesses that the model looks at once, beside one for the token after them.
      max_new_tokens: At least 1.
      log_probs: Whether to keep the log-probabilities of the new tokens.
    """
    self._draft = draft
    self._guesses = draft_tokens + 1
    self._program = _program(
      dataclasses.astuple(engine.config), dataclasses.astuple(draft.config), self._guesses
    )
    super().__init__(engine, prompts, sampling, max_new_tokens=max_new_tokens, log_probs=log_probs)

  def _decode(self, goal: int) -> None:
    none_B = jnp.zeros(self._copies_B.size, jnp.int32)
    self._state, self._draft_cache, guessed_B = self._program(
      self._engine.params,
      self._draft.params,
      State(self._state, self._draft_cache, none_B),
      self._sampling,
      self._copies_B,
      goal,
    )
    for row, guessed in enumerate(guessed_B.tolist()):
      self.guessed[row] += guessed

  def _fill(self) -> decode_lib.Window:
    # A round reaches beyond the last position that is kept.
    self._draft_cache = self._window(self._draft, spare=self._guesses).cache
    return self._window(self._engine, spare=self._guesses)


def check(
  config: config_lib.ModelConfig,
  tokenizer: tokenizers.Tokenizer | None,
  draft_config: config_lib.ModelConfig,
  draft_tokenizer: tokenizers.Tokenizer | None,
) -> None:
  """Raises `UserError` unless the second model can guess for the first."""
  hashes = [t.hash if t else None for t in (tokenizer, draft_tokenizer)]
  if hashes[0] != hashes[1] or config.vocab_size != draft_config.vocab_size:
    raise errors.UserError(
      'draft: a draft model with another vocabulary; it must have been trained with the tokenizer '
      'of the model'
    )
  if draft_config.block_size < config.block_size:
    raise errors.UserError(
      f'draft: its context of {draft_config.block_size} tokens is shorter than that of the model, '
      f'{config.block_size}: take a draft model with a block_size of at least as many'
    )


@functools.cache
def _program(model: tuple[Any, ...], draft: tuple[Any, ...], guesses: int) -> Callable[..., State]:
  """`decode`, compiled for models of these `ModelConfig`s, whatever their parameters."""
  main, other = (gpt.GPT(config_lib.ModelConfig(*values)) for values in (model, draft))
  return jax.jit(functools.partial(decode, main, other, guesses=guesses), donate_argnames='state')


def decode(
  model: gpt.GPT,
  draft: gpt.GPT,
  params: Any,
  draft_params: Any,
  state: State,
  sampling: sampling_lib.Sampling,
  copies_B: jax.Array,
  goal: jax.typing.ArrayLike,
  *,
  guesses: int,
) -> State:
  """Adds tokens to every row until it has `goal` new ones or ends, as `generation.decode.decode`.

  A round adds 1 to `guesses` tokens to each row.

  Args:
    model: The model.
    draft: The draft model, with the same `vocab_size`.
    params: The parameters of the model.
    draft_params: Those of the draft.
    state: With room for the new tokens of each row that hasn't ended, and for `guesses` more.
    sampling: How to choose.
    copies_B: int32, which copy of its prompt each row is, from 0.
    goal: At least 0; may be traced.
    guesses: G, at least 1.
  """
  keys_B = sampling_lib.row_keys(sampling.seed, copies_B)

  def add_tokens(state: State) -> State:
    (cache, tokens_BM), text = state.main
    of_draft = decode_lib.Window(state.draft, tokens_BM), text._replace(log_probs_BM=None)
    guessed, proposal = _guess(
      draft,
      draft_params,
      decode_lib.State(*of_draft),
      sampling,
      keys_B,
      width=model.config.padded_vocab_size,
      guesses=guesses,
    )
    # What the guesses come after: the last known token, and all of them but the last.
    place_BG = cache.length_B[:, None] + jnp.arange(guesses)
    before_BG = jnp.take_along_axis(guessed.window.tokens_BM, place_BG, axis=1)
    logits_BGV, longer = decode_lib.apply(model, params, before_BG, cache)
    window = decode_lib.Window(longer._replace(length_B=cache.length_B), tokens_BM)
    main, guessed_B = _judge_all(
      decode_lib.State(window, text), logits_BGV, proposal, sampling, keys_B, goal
    )
    filled = guessed.window.cache._replace(length_B=main.window.cache.length_B)
    return State(main, filled, state.guessed_B + guessed_B)

  return jax.lax.while_loop(lambda state: _active(state.main, goal).any(), add_tokens, state)


def _active(state: decode_lib.State, goal: jax.typing.ArrayLike) -> jax.Array:
  return (state.text.produced_B < goal) & ~state.text.ended_B


def _guess(
  draft: gpt.GPT,
  params: Any,
  state: decode_lib.State,
  sampling: sampling_lib.Sampling,
  keys_B: jax.Array,
  *,
  width: int,
  guesses: int,
) -> tuple[decode_lib.State, _Proposal]:
  """What the draft adds to `state`, which has its cache; its logits are made `width` wide."""
  B, vocab_size = keys_B.size, draft.config.vocab_size

  def guess(state: decode_lib.State, _: None) -> tuple[decode_lib.State, _Proposal]:
    own_BV, state = decode_lib.next_logits(draft, params, state)
    # The two vocabularies may be padded to different widths.
    logits_BV = jnp.full((B, width), -jnp.inf).at[:, :vocab_size].set(own_BV[:, :vocab_size])
    choices_BV = decode_lib.processed(sampling, state, logits_BV)
    token_keys_B = sampling_lib.token_keys(keys_B, state.text.produced_B)
    token_B = sampling_lib.draw(sampling, choices_BV, _folded(token_keys_B, _GUESS))
    # In all rows: whether a text ends is the model's to say.
    everywhere_B = jnp.ones(B, bool)
    state = decode_lib.add(sampling, state, token_B, everywhere_B, logits_BV, choices_BV)
    return state, _Proposal(token_B, choices_BV)

  return jax.lax.scan(guess, state, length=guesses)


def _judge_all(
  state: decode_lib.State,
  logits_BGV: jax.Array,
  proposal: _Proposal,
  sampling: sampling_lib.Sampling,
  keys_B: jax.Array,
  goal: jax.typing.ArrayLike,
) -> tuple[decode_lib.State, jax.Array]:
  """Adds to each row the guesses up to the first wrong one, and a token in its place.

  Processors see each guess with the text before it, as in decoding without a draft.

  Returns:
    The state, and guessed_B: int32, how many of its new tokens are guesses.
  """

  def more(carry: tuple[Any, ...]) -> jax.Array:
    g, open_B, _, _ = carry
    return (g < len(proposal.tokens_GB)) & open_B.any()

  def judge_next(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    g, open_B, state, guessed_B = carry
    logits_BV, guess_B = logits_BGV[:, g], proposal.tokens_GB[g]
    choices_BV = decode_lib.processed(sampling, state, logits_BV)
    token_keys_B = sampling_lib.token_keys(keys_B, state.text.produced_B)
    token_B, right_B = judge(sampling, choices_BV, proposal.choices_GBV[g], guess_B, token_keys_B)
    before_B = state.text.produced_B
    state = decode_lib.add(sampling, state, token_B, open_B, logits_BV, choices_BV)
    guessed_B += right_B & (state.text.produced_B > before_B)
    return g + 1, open_B & right_B & _active(state, goal), state, guessed_B

  start = 0, _active(state, goal), state, jnp.zeros(keys_B.size, jnp.int32)
  _, _, state, guessed_B = jax.lax.while_loop(more, judge_next, start)
  return state, guessed_B


def judge(
  sampling: sampling_lib.Sampling,
  p_BV: jax.Array,
  q_BV: jax.Array,
  guess_B: jax.Array,
  keys_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Tokens drawn from p, which are guesses drawn from q wherever that may be.

  A guess is taken with probability min(1, p / q); if not, a token is drawn from max(0, p - q),
  normalised. Leviathan et al. 2023, §2.3; that it is exact: Chen et al. 2023, theorem 1.

  Args:
    sampling: How to draw.
    p_BV: The processed logits of the model, float32.
    q_BV: Those of the draft.
    guess_B: int32.
    keys_B: Of the tokens.

  Returns:
    token_B, int32, and right_B, bool: which guesses are taken. Both mean nothing in a row where p
    has no possible token.
  """
  p_BV, q_BV = jax.nn.softmax(p_BV), jax.nn.softmax(q_BV)
  p_B1, q_B1 = (jnp.take_along_axis(x_BV, guess_B[:, None], axis=1) for x_BV in (p_BV, q_BV))
  uniform_B = jax.vmap(jax.random.uniform)(_folded(keys_B, _VERDICT))
  right_B = uniform_B * q_B1[:, 0] < p_B1[:, 0]
  more_BV = jnp.maximum(p_BV - q_BV, 0)
  # Of two equal distributions, rounding can refuse a guess, and then nothing is left.
  more_BV = jnp.where(more_BV.any(-1, keepdims=True), more_BV, p_BV)
  other_B = sampling_lib.draw(sampling, jnp.log(more_BV), _folded(keys_B, _REPLACEMENT))
  return jnp.where(right_B, guess_B, other_B), right_B


def _folded(keys_B: jax.Array, number: int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)
