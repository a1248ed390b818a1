"""How the next token is chosen: which processors apply, with their values, and the draw.

Shapes in names: B rows, V vocabulary (padded), K kept tokens, C choices (K or V).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.generation import processors
from gpt_jax.generation import settings as settings_lib
from gpt_jax.generation import state as state_lib

# Options, and the values with which they change nothing.
_PENALTIES = {'repetition_penalty': 1, 'presence_penalty': 0, 'frequency_penalty': 0}
_DRAWING = {'temperature': 0, 'top_p': 1, 'min_p': 0, 'typical_p': 1}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
  """The processors of a program, and their values, which need no other program if they change."""

  # Of options that change something, by name; without `temperature` it is greedy.
  values: dict[str, np.float32]
  seed: np.uint32
  min_new_tokens: np.int32
  eos_id: np.int32  # -1 if there is none
  bias_V: np.ndarray | None  # float32, -inf for banned tokens
  top_k: int = dataclasses.field(metadata={'static': True})  # 0: all tokens
  no_repeat_ngram: int = dataclasses.field(metadata={'static': True})  # 0: no limit

  @property
  def counts_tokens(self) -> bool:
    """Whether it needs to know how often each token occurs."""
    return any(name in _PENALTIES for name in self.values)


class Choices(NamedTuple):
  """What a token is drawn from."""

  logits_BC: jax.Array  # float32, processed; -inf for tokens that can't be drawn
  ids_BC: jax.Array | None  # int32, their ids; None if C is the whole vocabulary, in order

  def probabilities(self, vocab_size: int) -> jax.Array:
    """Returns the probability of each token of the vocabulary, float32 (B, `vocab_size`)."""
    p_BC, ids_BC = jax.nn.softmax(self.logits_BC), self.ids_BC
    if ids_BC is None:
      return p_BC
    B = len(ids_BC)
    return jnp.zeros((B, vocab_size)).at[jnp.arange(B)[:, None], ids_BC].set(p_BC)


def make(
  settings: settings_lib.Settings,
  *,
  vocab_size: int,
  eos_id: int | None = None,
  bias_V: np.ndarray | None = None,
) -> Sampling:
  """Returns the sampling of valid options, without processors that would change nothing."""
  greedy = settings.temperature == 0
  off = _PENALTIES if greedy else _PENALTIES | _DRAWING
  values = {name: getattr(settings, name) for name in off}
  return Sampling(
    values={name: np.float32(value) for name, value in values.items() if value != off[name]},
    seed=np.uint32(settings.seed),
    min_new_tokens=np.int32(settings.min_new_tokens),
    eos_id=np.int32(-1 if eos_id is None else eos_id),
    bias_V=bias_V,
    top_k=0 if greedy or settings.top_k >= vocab_size else settings.top_k,
    no_repeat_ngram=settings.no_repeat_ngram,
  )


def adjust(sampling: Sampling, logits_BV: jax.Array, state: state_lib.State) -> jax.Array:
  """Applies bias, penalties and bans to logits or log-probabilities, float32 (B, V)."""
  if sampling.bias_V is not None:
    logits_BV = logits_BV + sampling.bias_V
  if state.prompt_BV is not None and state.counts_BV is not None:
    repetition, presence, frequency = (sampling.values.get(k, off) for k, off in _PENALTIES.items())
    seen_BV = state.prompt_BV | (state.counts_BV > 0)
    logits_BV = processors.repetition_penalty(logits_BV, seen_BV, repetition)
    logits_BV = processors.count_penalties(
      logits_BV, state.counts_BV, presence=presence, frequency=frequency
    )
  if sampling.no_repeat_ngram:
    length_B = state.caches[0].length_B + 1
    logits_BV = processors.no_repeat_ngram(
      logits_BV, state.tokens_BM, length_B, sampling.no_repeat_ngram
    )
  return processors.minimum_length(
    logits_BV, state.num_generated_B[:, None], sampling.min_new_tokens, sampling.eos_id
  )


def process(sampling: Sampling, logits_BV: jax.Array, state: state_lib.State) -> Choices:
  """Returns what the next token of each row is drawn from."""
  values, ids_BC = sampling.values, None
  logits_BC = adjust(sampling, logits_BV, state)
  logits_BC = processors.temperature(logits_BC, values.get('temperature', 0))
  if sampling.top_k:
    logits_BC, ids_BC = processors.top_k(logits_BC, sampling.top_k)
  if 'top_p' in values:
    logits_BC = processors.top_p(logits_BC, values['top_p'])
  if 'min_p' in values:
    logits_BC = processors.min_p(logits_BC, values['min_p'])
  if 'typical_p' in values:
    logits_BC = processors.typical(logits_BC, values['typical_p'])
  return Choices(logits_BC, ids_BC)


def draw(sampling: Sampling, choices: Choices, keys_B: jax.Array) -> jax.Array:
  """Draws a token of each row, int32 (B,); -1 if none is possible."""
  logits_BC, ids_BC = choices
  if ids_BC is not None:
    # In descending order, so that a draw doesn't depend on which processor removed the others.
    logits_BC, place_BC = jax.lax.top_k(logits_BC, logits_BC.shape[-1])
    ids_BC = jnp.take_along_axis(ids_BC, place_BC, axis=1)
  if 'temperature' in sampling.values:
    token_B = processors.sample(logits_BC, keys_B)
  else:
    token_B = jnp.argmax(logits_BC, axis=-1).astype(jnp.int32)
  if ids_BC is not None:
    token_B = jnp.take_along_axis(ids_BC, token_B[:, None], axis=1)[:, 0]
  return jnp.where(logits_BC.max(-1) > -jnp.inf, token_B, -1)
