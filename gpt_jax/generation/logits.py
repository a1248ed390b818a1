"""From logits to a token: pure functions, applied to every row of a batch independently.

Shapes in names: B rows, V vocabulary. A token whose logit is -inf is never drawn.
"""

import jax
import jax.numpy as jnp

MAX_TEMPERATURE = 1e37  # beyond, its reciprocal would be too small for a normal float32


def temperature(logits_BV: jax.Array, value: jax.typing.ArrayLike) -> jax.Array:
  """Logits of softmax(logits / value).

  At 0 it is the limit, greedy decoding: only the largest logit stays, the lowest token id among
  equals. The largest logit of the result is 0, so that no temperature overflows.

  Args:
    logits_BV: float32, with a finite number in each row.
    value: 0 to `MAX_TEMPERATURE`; below the smallest normal float32 it counts as 0.

  Returns:
    float32 (B, V).
  """
  logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)
  largest_BV = jnp.arange(logits_BV.shape[-1]) == jnp.argmax(logits_BV, -1, keepdims=True)
  greedy = value < jnp.finfo(jnp.float32).tiny
  return jnp.where(
    greedy, jnp.where(largest_BV, 0.0, -jnp.inf), logits_BV / jnp.where(greedy, 1.0, value)
  )


def top_k(logits_BV: jax.Array, k: int) -> jax.Array:
  """Keeps the k largest logits of a row; the others become -inf.

  Of equal logits at the threshold, the lowest token ids are kept, so that exactly k stay.
  Fan et al. 2018, "Hierarchical Neural Story Generation", §5.2.

  Args:
    logits_BV: float32.
    k: At least 1; beyond V it keeps all. Static: one compilation for each value, which is what
      spares sorting the vocabulary for every token.

  Returns:
    float32 (B, V).
  """
  B, V = logits_BV.shape
  kept_BK, ids_BK = jax.lax.top_k(logits_BV, min(k, V))
  return jnp.full_like(logits_BV, -jnp.inf).at[jnp.arange(B)[:, None], ids_BK].set(kept_BK)


def sample(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of each row, drawn from softmax(logits) with the row's own key: int32 (B,)."""
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)
