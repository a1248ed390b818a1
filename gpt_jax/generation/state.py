"""The state of generation on the device, and prefill, which creates it from prompts.

Shapes in names: U distinct prompts, B rows, L length, M positions of the context, V vocabulary
(padded).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt_jax import models
from gpt_jax.models import attention


class State(NamedTuple):
  """Everything that a step of generation changes."""

  # Of the model and, if there is one, of its draft model. `length_B` is one less than the known
  # tokens: the model has yet to see the last one, so that a full cache predicts one more.
  caches: tuple[attention.KVCache, ...]
  tokens_BM: jax.Array  # int32, the tokens in the context
  num_generated_B: jax.Array  # int32, new tokens, with those that left the context
  ended_B: jax.Array  # bool, rows that get no more tokens
  keys_B: jax.Array  # of the rows, for `token_keys`
  accepted_B: jax.Array  # int32, new tokens that the draft model proposed
  log_probs_BM: jax.Array | None  # float32, of new tokens in the context; None unless asked for
  prompt_BV: jax.Array | None  # bool, tokens of the prompt; None unless a penalty needs them
  counts_BV: jax.Array | None  # int32, occurrences among the new tokens; None as above

  def token_keys(self, draw: int | None = None) -> jax.Array:
    """Returns the keys of the rows' next tokens, (B,); one of several draws has a number."""
    keys_B = jax.vmap(jax.random.fold_in)(self.keys_B, self.num_generated_B)
    if draw is None:
      return keys_B
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, draw)


@functools.partial(jax.jit, static_argnames=('models', 'size', 'log_probs', 'counts'))
def prefill(
  models: tuple[models.Model, ...],
  params: tuple[Any, ...],
  tokens_UL: jax.Array,
  length_U: jax.Array,
  rows_B: jax.Array,
  sample_index_B: jax.Array,
  seed: jax.typing.ArrayLike,
  sources_UM: jax.Array | None = None,
  *,
  size: int,
  log_probs: bool,
  counts: bool,
) -> State:
  """Returns the state in which prompts are known and nothing is generated.

  `models` are the model and, if there is one, its draft model. `tokens_UL` are padded prompts,
  int32, of which `length_U` tokens count, 1 to L. Padding changes nothing: no token of the prompt
  attends to it, and decoding overwrites it in the cache. `sources_UM`, padded with -1, are what an
  encoder–decoder translates; the prompts are what is known of their translations.

  `rows_B` is the prompt of each row, int32: it is computed once, however many rows have it.
  `sample_index_B`, int32, is which sample of its prompt each row is; its key is folded with that.
  The caches get `size` positions, M - 1, at least L. `log_probs` and `counts` say what to record.
  """
  (U, L), B, V = tokens_UL.shape, rows_B.size, models[0].config.padded_vocab_size
  caches = []
  for model, its_params in zip(models, params, strict=True):
    cache: Any = attention.empty_cache(model.config, U, size)
    if sources_UM is not None:
      memory: Any = model.apply({'params': its_params}, sources_UM, method='remember')
      cache = cache._replace(memory=memory)
    _, cache = model.apply({'params': its_params}, tokens_UL, cache=cache, method='hidden')
    caches.append(attention.take_rows(cache._replace(length_B=length_U - 1), rows_B))
  # Threefry draws the same for a row whatever the other rows; not every generator does.
  key = jax.random.key(seed, impl='threefry2x32')
  ids_UL = jnp.where(jnp.arange(L) < length_U[:, None], tokens_UL, V)
  prompt_UV = jnp.zeros((U, V), bool).at[jnp.arange(U)[:, None], ids_UL].set(True, mode='drop')
  return State(
    caches=tuple(caches),
    tokens_BM=jnp.zeros((B, size + 1), jnp.int32).at[:, :L].set(tokens_UL[rows_B]),
    num_generated_B=jnp.zeros(B, jnp.int32),
    ended_B=jnp.zeros(B, bool),
    keys_B=jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, sample_index_B),
    accepted_B=jnp.zeros(B, jnp.int32),
    log_probs_BM=jnp.zeros((B, size + 1)) if log_probs else None,
    prompt_BV=prompt_UV[rows_B] if counts else None,
    counts_BV=jnp.zeros((B, V), jnp.int32) if counts else None,
  )
