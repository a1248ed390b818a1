"""From logits to a token: pure functions, applied to every row of a batch independently.

Shapes in names: B rows, V vocabulary (padded), L history, K kept tokens, C choices (V, or K after
`top_k`). Logits are float32, -inf for a token that can't be drawn, which no processor makes
possible again; results are as wide. Parameters written `ArrayLike` are traced, scalars or (B, 1).

The usual order: bias, penalties, bans, then `temperature`, then truncation (`top_k`, `top_p`,
`min_p`, `typical`), then `sample`. Rows need a finite logit: truncation keeps one, bans may not.
"""

import jax
import jax.numpy as jnp


def repetition_penalty(
  logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.typing.ArrayLike
) -> jax.Array:
  """Divides positive logits of seen tokens by `penalty` (above 0), multiplies negative ones by it.

  `seen_BV` is bool, tokens of the prompt and the new text. Keskar et al. 2019, "CTRL", §4.1, with
  the usual care for the sign, which the paper leaves out.
  """
  penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, penalised_BV, logits_BV)


def count_penalties(
  logits_BV: jax.Array,
  counts_BV: jax.Array,
  *,
  presence: jax.typing.ArrayLike,
  frequency: jax.typing.ArrayLike,
) -> jax.Array:
  """Subtracts `presence` from logits of tokens that occur, and `frequency` for each time they do.

  `counts_BV` is int32. OpenAI API reference, "Frequency and presence penalties".
  """
  return logits_BV - presence * (counts_BV > 0) - frequency * counts_BV


def no_repeat_ngram(
  logits_BV: jax.Array, tokens_BL: jax.Array, length_B: jax.Array, n: int
) -> jax.Array:
  """Bans each token that would complete an n-gram that the row's history has already.

  Paulus et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", §2.5 (n = 3).

  `tokens_BL` is the history, int32, of which only the first `length_B` (int32, 0 to L) tokens of a
  row count. A row shorter than n bans nothing; `n` = 1 bans all tokens of the history.
  """
  (B, V), L = logits_BV.shape, tokens_BL.shape[1]
  starts = L - n + 1  # of the n-grams that fit into L tokens
  if starts < 1:
    return logits_BV
  repeats_BL = jnp.arange(starts) + n <= length_B[:, None]
  for i in range(n - 1):
    # Token i of each n-gram against token i of the unfinished one. A row shorter than that has no
    # such token, and no n-gram either.
    place_B1 = jnp.maximum(length_B - (n - 1) + i, 0)[:, None]
    latest_B1 = jnp.take_along_axis(tokens_BL, place_B1, axis=1)
    repeats_BL &= tokens_BL[:, i : i + starts] == latest_B1
  banned_BL = jnp.where(repeats_BL, tokens_BL[:, n - 1 :], V)
  return logits_BV.at[jnp.arange(B)[:, None], banned_BL].set(-jnp.inf, mode='drop')


def minimum_length(
  logits_BV: jax.Array,
  num_generated: jax.typing.ArrayLike,
  minimum: jax.typing.ArrayLike,
  eos_id: jax.typing.ArrayLike,
) -> jax.Array:
  """Bans the token `eos_id` (-1 if there is none) while `num_generated` is below `minimum`."""
  ends_V = jnp.arange(logits_BV.shape[-1]) == eos_id
  return jnp.where(ends_V & (jnp.asarray(num_generated) < minimum), -jnp.inf, logits_BV)


def temperature(logits_BV: jax.Array, value: jax.typing.ArrayLike) -> jax.Array:
  """Returns logits of softmax(logits / value), for a `value` from 0 to 1e37.

  At 0, and below the smallest normal float32, it is the limit, greedy decoding: only the largest
  logit stays, the lowest token id among equals. The largest logit of the result is 0, so that no
  temperature overflows.
  """
  logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)
  largest_BV = jnp.arange(logits_BV.shape[-1]) == jnp.argmax(logits_BV, -1, keepdims=True)
  greedy = value < jnp.finfo(jnp.float32).tiny
  return jnp.where(
    greedy,
    jnp.where(largest_BV & (logits_BV == 0), 0.0, -jnp.inf),
    logits_BV / jnp.where(greedy, 1.0, value),
  )


def top_k(logits_BV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns the k (at most V, static) largest logits in descending order, and their token ids.

  Of equal logits, the lowest ids come first. Fan et al. 2018, "Hierarchical Neural Story
  Generation", §5.2. Each k is compiled, which spares sorting the vocabulary for every token.
  """
  # -0 becomes 0, which `lax.top_k` would prefer to it.
  unsigned_BV = jnp.where(logits_BV == 0, 0.0, logits_BV)
  logits_BK, ids_BK = jax.lax.top_k(unsigned_BV, min(k, logits_BV.shape[-1]))
  return logits_BK, ids_BK


def top_p(logits_BC: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the smallest set of most probable tokens whose probabilities sum to at least `p`.

  0 keeps one token, 1 all. Of equally probable tokens, the first are kept. Holtzman et al. 2020,
  "The Curious Case of Neural Text Degeneration", §3.1 (nucleus sampling).
  """
  kept_BC = _first_to_reach(p, -logits_BC, jax.nn.softmax(logits_BC))
  return jnp.where(kept_BC, logits_BC, -jnp.inf)


def min_p(logits_BC: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the tokens that are at least `p` times as probable as the most probable one.

  0 keeps all, 1 the largest logit and its equals. Nguyen et al. 2024, "Turning Up the Heat: Min-p
  Sampling" (arXiv 2407.01082), §3.
  """
  largest_B1 = logits_BC.max(-1, keepdims=True)
  return jnp.where(logits_BC - largest_B1 >= jnp.log(p), logits_BC, -jnp.inf)


def typical(logits_BC: jax.Array, mass: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the smallest set of most typical tokens whose probabilities sum to at least `mass`.

  A token is typical if its surprise, -log p(token), is close to the expected one, the entropy. 0
  keeps one token, 1 all. Of equally typical tokens, the first are kept. Meister et al. 2023,
  "Locally Typical Sampling", §4.
  """
  surprise_BC = -jax.nn.log_softmax(logits_BC)
  p_BC = jnp.exp(-surprise_BC)
  # An impossible token adds its limit 0 to the entropy, not 0 · ∞.
  entropy_B1 = jnp.where(p_BC > 0, p_BC * surprise_BC, 0).sum(-1, keepdims=True)
  kept_BC = _first_to_reach(mass, jnp.abs(surprise_BC - entropy_B1), p_BC)
  return jnp.where(kept_BC, logits_BC, -jnp.inf)


def sample(logits_BC: jax.Array, keys_B: jax.Array) -> jax.Array:
  """Draws a place of each row from softmax(logits), with the row's own key: int32 (B,)."""
  return jax.vmap(jax.random.categorical)(keys_B, logits_BC).astype(jnp.int32)


def _first_to_reach(mass: jax.typing.ArrayLike, costs_BC: jax.Array, p_BC: jax.Array) -> jax.Array:
  """The fewest tokens, cheapest and then first, whose `p_BC` sum to `mass`: bool (B, C)."""
  # At least one token; and at 1 all of them, however the sum is rounded.
  mass = jnp.where(jnp.asarray(mass) < 1, jnp.maximum(mass, jnp.finfo(jnp.float32).tiny), jnp.inf)
  place_BC = jnp.broadcast_to(jnp.arange(costs_BC.shape[-1]), costs_BC.shape)
  sorted_BC = jax.lax.sort((costs_BC, place_BC, p_BC))
  before_BC = jnp.cumsum(sorted_BC[2], axis=-1) - sorted_BC[2]
  last_B1 = (before_BC < mass).sum(-1, keepdims=True) - 1
  cost_B1, last_B1 = (jnp.take_along_axis(x_BC, last_B1, axis=-1) for x_BC in sorted_BC[:2])
  return (costs_BC < cost_B1) | ((costs_BC == cost_B1) & (place_BC <= last_B1))
