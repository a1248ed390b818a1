"""From logits to a token: pure functions, applied to every row of a batch independently.

Shapes in names: B rows, V vocabulary (padded), L history. Logits are float32 with a finite number
in each row; one of -inf is a token that is never drawn, and no processor makes it possible again.
Parameters written `ArrayLike` are traced, a scalar or (B, 1) for one of each row. Results are
float32 (B, V).

Order matters. The usual one: bias, penalties, bans, then temperature, then what truncates
(`top_k`, `top_p`, `min_p`, `typical`), then `sample`. Those that truncate leave kept logits as they
are and keep at least one; `bias`, `no_repeat_ngram` and `minimum_length` can ban all that a row
has left, and then `sample` returns a meaningless token.
"""

import jax
import jax.numpy as jnp

MAX_TEMPERATURE = 1e37  # beyond, its reciprocal would be too small for a normal float32


def bias(logits_BV: jax.Array, bias_V: jax.typing.ArrayLike) -> jax.Array:
  """Adds `bias_V`, float32 (V,): finite to make a token likelier or less so, -inf to ban it."""
  return logits_BV + bias_V


def repetition_penalty(
  logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.typing.ArrayLike
) -> jax.Array:
  """Divides positive logits of seen tokens by `penalty`, multiplies the others of them by it.

  Keskar et al. 2019, "CTRL", §4.1, with the usual care for the sign, which the paper leaves out.

  Args:
    logits_BV: float32.
    seen_BV: bool, the tokens of prompt and output, however often they came.
    penalty: Above 0; 1 changes nothing, above 1 makes seen tokens less likely.
  """
  penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  return jnp.where(seen_BV, penalised_BV, logits_BV)


def presence_penalty(
  logits_BV: jax.Array, counts_BV: jax.Array, penalty: jax.typing.ArrayLike
) -> jax.Array:
  """Subtracts `penalty` from the logits of tokens that came at least once.

  OpenAI API reference, "Frequency and presence penalties".

  Args:
    logits_BV: float32.
    counts_BV: int32, how often each token came.
    penalty: Finite; 0 changes nothing, below 0 rewards.
  """
  return logits_BV - penalty * (counts_BV > 0)


def frequency_penalty(
  logits_BV: jax.Array, counts_BV: jax.Array, penalty: jax.typing.ArrayLike
) -> jax.Array:
  """Subtracts `penalty` from a token's logit for each time that it came.

  Source and arguments as `presence_penalty`.
  """
  return logits_BV - penalty * counts_BV


def no_repeat_ngram(
  logits_BV: jax.Array, tokens_BL: jax.Array, length_B: jax.Array, n: int
) -> jax.Array:
  """Bans each token that would complete an n-gram which the row's history already holds.

  Paulus et al. 2018, "A Deep Reinforced Model for Abstractive Summarization", §2.5 (n = 3).

  Args:
    logits_BV: float32.
    tokens_BL: int32, the history; what follows a row's first `length_B` tokens doesn't count.
    length_B: int32, 0 to L; while shorter than n it bans nothing.
    n: At least 1, which bans all tokens of the history. Static.
  """
  (B, V), L = logits_BV.shape, tokens_BL.shape[1]
  starts = L - n + 1  # of the n-grams that fit into L tokens
  if starts < 1:
    return logits_BV
  repeats_BL = jnp.arange(starts) + n <= length_B[:, None]
  for i in range(n - 1):
    # Token i of each n-gram against token i of the one in the making. A row shorter than that has
    # no such token, and no n-gram either.
    place_B1 = jnp.maximum(length_B - (n - 1) + i, 0)[:, None]
    latest_B1 = jnp.take_along_axis(tokens_BL, place_B1, axis=1)
    repeats_BL &= tokens_BL[:, i : i + starts] == latest_B1
  banned_BL = jnp.where(repeats_BL, tokens_BL[:, n - 1 :], V)
  return logits_BV.at[jnp.arange(B)[:, None], banned_BL].set(-jnp.inf, mode='drop')


def minimum_length(
  logits_BV: jax.Array,
  produced: jax.typing.ArrayLike,
  minimum: jax.typing.ArrayLike,
  end: jax.typing.ArrayLike,
) -> jax.Array:
  """Bans the token `end`, -1 where there is none, while fewer than `minimum` are produced."""
  ends_V = jnp.arange(logits_BV.shape[-1]) == end
  return jnp.where(ends_V & (jnp.asarray(produced) < minimum), -jnp.inf, logits_BV)


def temperature(logits_BV: jax.Array, value: jax.typing.ArrayLike) -> jax.Array:
  """Logits of softmax(logits / value).

  At 0 it is the limit, greedy decoding: only the largest logit stays, the lowest token id among
  equals. The largest logit of the result is 0, so that no temperature overflows.

  Args:
    logits_BV: float32.
    value: 0 to `MAX_TEMPERATURE`; below the smallest normal float32 it counts as 0.
  """
  logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)
  largest_BV = jnp.arange(logits_BV.shape[-1]) == jnp.argmax(logits_BV, -1, keepdims=True)
  greedy = value < jnp.finfo(jnp.float32).tiny
  return jnp.where(
    greedy,
    jnp.where(largest_BV & (logits_BV == 0), 0.0, -jnp.inf),
    logits_BV / jnp.where(greedy, 1.0, value),
  )


def top_k(logits_BV: jax.Array, k: int) -> jax.Array:
  """Keeps the k largest logits of a row; the others become -inf.

  Of equal logits at the threshold, the lowest token ids are kept, so that exactly k stay.
  Fan et al. 2018, "Hierarchical Neural Story Generation", §5.2.

  Args:
    logits_BV: float32.
    k: At least 1; beyond V it keeps all. Static: one compilation for each value, which is what
      spares sorting the vocabulary for every token.
  """
  B, V = logits_BV.shape
  # -0 becomes 0, which `lax.top_k` would prefer to it.
  unsigned_BV = jnp.where(logits_BV == 0, 0.0, logits_BV)
  kept_BK, ids_BK = jax.lax.top_k(unsigned_BV, min(k, V))
  return jnp.full_like(logits_BV, -jnp.inf).at[jnp.arange(B)[:, None], ids_BK].set(kept_BK)


def top_p(logits_BV: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the smallest set of most probable tokens whose probabilities sum to at least `p`.

  Of equally probable tokens, the lowest ids are kept.
  Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", §3.1 (nucleus sampling).

  Args:
    logits_BV: float32.
    p: 0, which keeps one token, to 1, which keeps all.
  """
  kept_BV = _first_to_reach(p, -logits_BV, jax.nn.softmax(logits_BV))
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def min_p(logits_BV: jax.Array, p: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the tokens that are at least `p` times as probable as the most probable one.

  Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling" (arXiv 2407.01082), §3.

  Args:
    logits_BV: float32.
    p: 0, which keeps all, to 1, which keeps the largest logit and its equals.
  """
  largest_B1 = logits_BV.max(-1, keepdims=True)
  return jnp.where(logits_BV - largest_B1 >= jnp.log(p), logits_BV, -jnp.inf)


def typical(logits_BV: jax.Array, mass: jax.typing.ArrayLike) -> jax.Array:
  """Keeps the smallest set of most typical tokens whose probabilities sum to at least `mass`.

  Typical is what surprises about as much as is expected: |-log p(token) - entropy| is small. Of
  equally typical tokens, the lowest ids are kept.
  Meister et al. 2023, "Locally Typical Sampling", §4.

  Args:
    logits_BV: float32.
    mass: 0, which keeps one token, to 1, which keeps all.
  """
  surprise_BV = -jax.nn.log_softmax(logits_BV)
  p_BV = jnp.exp(-surprise_BV)
  # An impossible token adds its limit 0 to the entropy, not 0 · ∞.
  entropy_B1 = jnp.where(p_BV > 0, p_BV * surprise_BV, 0).sum(-1, keepdims=True)
  kept_BV = _first_to_reach(mass, jnp.abs(surprise_BV - entropy_B1), p_BV)
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def sample(logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
  """A token of each row, drawn from softmax(logits) with the row's own key: int32 (B,)."""
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def _first_to_reach(mass: jax.typing.ArrayLike, costs_BV: jax.Array, p_BV: jax.Array) -> jax.Array:
  """The fewest tokens, cheapest and then lowest id first, whose `p_BV` reach `mass`: bool (B, V).

  A token is one of them if those before it sum to less. Which cost that ends at is found bit by
  bit, and so is the id among the tokens of that cost: 48 sums, where XLA's sort on a CPU takes as
  long as some 900.
  """
  V = costs_BV.shape[-1]
  # At least one token; and at 1 all of them, whatever the rounding of the sum.
  mass = jnp.where(jnp.asarray(mass) < 1, jnp.maximum(mass, jnp.finfo(jnp.float32).tiny), jnp.inf)
  ranks_BV = _order_preserving(costs_BV)
  last_B1 = _last_before(mass, ranks_BV, p_BV, bits=32)
  ids_BV = jnp.where(ranks_BV < last_B1, 0, jnp.arange(1, V + 1, dtype=jnp.uint32))
  ids_BV = jnp.where(ranks_BV > last_B1, V + 1, ids_BV)
  # At most V: should a sum be rounded otherwise this time, no dearer token gets in.
  return ids_BV <= jnp.minimum(_last_before(mass, ids_BV, p_BV, bits=V.bit_length()), V)


def _last_before(mass: jax.Array, ranks_BV: jax.Array, p_BV: jax.Array, *, bits: int) -> jax.Array:
  """The largest rank of so many bits below which `p_BV` sums to less than `mass`: uint32 (B, 1)."""

  def add_bit(i: jax.Array, rank_B1: jax.Array) -> jax.Array:
    higher_B1 = rank_B1 | jnp.uint32(1) << jnp.uint32(bits - 1 - i)
    below_B1 = jnp.where(ranks_BV < higher_B1, p_BV, 0).sum(-1, keepdims=True)
    return jnp.where(below_B1 < mass, higher_B1, rank_B1)

  return jax.lax.fori_loop(0, bits, add_bit, jnp.zeros((len(p_BV), 1), jnp.uint32))


def _order_preserving(x: jax.Array) -> jax.Array:
  """uint32 that compare as the float32 `x` do, -0 and 0 as equals."""
  bits, middle = jax.lax.bitcast_convert_type(x, jnp.uint32), jnp.uint32(2**31)
  magnitude = bits & ~middle
  return jnp.where(bits < middle, middle + magnitude, middle - magnitude)
