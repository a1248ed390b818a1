"""How the next token is chosen: which processors there are for it, and their values.

Shapes in names: B rows, V vocabulary (padded), M positions of a window.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.generation import processors


def _static() -> int:
  """A field that is compiled into the program."""
  return dataclasses.field(default=0, metadata={'static': True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """The processors of a program, and their values.

  What is None is off and not part of the program; other values may change without compiling anew,
  except for those of `top_k` and `no_repeat_ngram`.
  """

  seed: np.uint32
  temperature: np.float32 | None  # None: greedy
  end_of_text: np.int32  # -1 where there is none
  top_k: int = _static()
  no_repeat_ngram: int = _static()
  top_p: np.float32 | None = None
  min_p: np.float32 | None = None
  typical_p: np.float32 | None = None
  repetition_penalty: np.float32 | None = None
  presence_penalty: np.float32 | None = None
  frequency_penalty: np.float32 | None = None
  min_new_tokens: np.int32 | None = None
  bias_V: np.ndarray | None = None  # float32, -inf for what is banned

  @property
  def counts_tokens(self) -> bool:
    """Whether it asks how often each token came."""
    penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
    return any(penalty is not None for penalty in penalties)


def make(
  options: config_lib.GenerationConfig,
  *,
  vocab_size: int,
  end_of_text: int | None,
  bias_V: np.ndarray | None,
) -> Sampling:
  """The sampling of sound options; what an option switches off is left out."""

  def on(value: float, off: float) -> np.float32 | None:
    return None if value == off else np.float32(value)

  return Sampling(
    seed=np.uint32(options.seed),
    temperature=on(options.temperature, 0),
    end_of_text=np.int32(-1 if end_of_text is None else end_of_text),
    top_k=options.top_k if options.top_k < vocab_size else 0,
    no_repeat_ngram=options.no_repeat_ngram,
    top_p=on(options.top_p, 1),
    min_p=on(options.min_p, 0),
    typical_p=on(options.typical_p, 1),
    repetition_penalty=on(options.repetition_penalty, 1),
    presence_penalty=on(options.presence_penalty, 0),
    frequency_penalty=on(options.frequency_penalty, 0),
    min_new_tokens=np.int32(options.min_new_tokens) if options.min_new_tokens else None,
    bias_V=bias_V,
  )


class History(NamedTuple):
  """What processors may ask about the text so far.

  Attributes:
    tokens_BM: int32, the window.
    length_B: int32, how much of it is known.
    produced_B: int32, new tokens.
    prompt_BV: bool, the tokens of the prompt; None unless the sampling counts tokens.
    counts_BV: int32, how often each token is among the new ones; None as above.
  """

  tokens_BM: jax.Array
  length_B: jax.Array
  produced_B: jax.Array
  prompt_BV: jax.Array | None
  counts_BV: jax.Array | None


def adjust(sampling: Sampling, logits_BV: jax.Array, history: History) -> jax.Array:
  """What bias, penalties and bans make of logits or log-probabilities, float32 (B, V)."""
  if sampling.bias_V is not None:
    logits_BV = processors.bias(logits_BV, sampling.bias_V)
  if history.counts_BV is not None and history.prompt_BV is not None:
    logits_BV = _penalised(sampling, logits_BV, history.prompt_BV, history.counts_BV)
  if sampling.no_repeat_ngram:
    logits_BV = processors.no_repeat_ngram(
      logits_BV, history.tokens_BM, history.length_B, sampling.no_repeat_ngram
    )
  if sampling.min_new_tokens is not None:
    logits_BV = processors.minimum_length(
      logits_BV, history.produced_B[:, None], sampling.min_new_tokens, sampling.end_of_text
    )
  return logits_BV


def process(sampling: Sampling, logits_BV: jax.Array, history: History) -> jax.Array:
  """The logits that tokens are drawn from, float32 (B, V); the order is the usual one."""
  logits_BV = adjust(sampling, logits_BV, history)
  if sampling.temperature is None:
    return processors.temperature(logits_BV, 0)
  logits_BV = processors.temperature(logits_BV, sampling.temperature)
  if sampling.top_k:
    logits_BV = processors.top_k(logits_BV, sampling.top_k)
  if sampling.top_p is not None:
    logits_BV = processors.top_p(logits_BV, sampling.top_p)
  if sampling.min_p is not None:
    logits_BV = processors.min_p(logits_BV, sampling.min_p)
  if sampling.typical_p is not None:
    logits_BV = processors.typical(logits_BV, sampling.typical_p)
  return logits_BV


def _penalised(
  sampling: Sampling, logits_BV: jax.Array, prompt_BV: jax.Array, counts_BV: jax.Array
) -> jax.Array:
  if sampling.repetition_penalty is not None:
    seen_BV = prompt_BV | (counts_BV > 0)
    logits_BV = processors.repetition_penalty(logits_BV, seen_BV, sampling.repetition_penalty)
  if sampling.presence_penalty is not None:
    logits_BV = processors.presence_penalty(logits_BV, counts_BV, sampling.presence_penalty)
  if sampling.frequency_penalty is not None:
    logits_BV = processors.frequency_penalty(logits_BV, counts_BV, sampling.frequency_penalty)
  return logits_BV


def draw(sampling: Sampling, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of each row from what `process` gave, int32 (B,)."""
  if sampling.temperature is None:
    return jnp.argmax(logits_BV, -1).astype(jnp.int32)
  if not sampling.top_k:
    return processors.sample(logits_BV, keys_B)
  # Noise for the whole vocabulary costs 1.3 ms a row of GPT-2's, and 10 ms for 8 rows.
  kept_BK, ids_BK = jax.lax.top_k(logits_BV, sampling.top_k)
  place_B = processors.sample(kept_BK, keys_B)
  return jnp.take_along_axis(ids_BK, place_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def row_keys(seed: jax.typing.ArrayLike, copies_B: jax.Array) -> jax.Array:
  """A key for each row: that of a copy of its prompt (0 for the first), wherever the row stands."""
  # Threefry draws the same for a row whatever the other rows; not every generator does.
  key = jax.random.key(seed, impl='threefry2x32')
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, copies_B)


def token_keys(keys_B: jax.Array, produced_B: jax.Array) -> jax.Array:
  """The keys of the rows' next tokens."""
  return jax.vmap(jax.random.fold_in)(keys_B, produced_B)
