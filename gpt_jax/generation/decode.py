"""Continues one prompt N times, on the device, with a cache of keys and values.

A *window* is what the cache holds, up to `block_size` tokens. `prefill` takes its known tokens
through the model at once, `decode` adds tokens one by one until the window is full. Then the last
half of it becomes the prompt of the next window: a prefill for every half window, and however many
tokens are asked for, each is predicted from at least half a window (or all there is, if less).

Shapes in names: N samples, B = 1 or N, L length, M = block_size + 1, V vocabulary (padded).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.generation import logits as logits_lib
from gpt_jax.models import gpt


class State(NamedTuple):
  """Where N samples stand within a window.

  `tokens_NM` is known up to and including position `cache.length`, whose token the model has yet
  to see: the cache is one behind, so that a full window still predicts the token after it.
  """

  cache: gpt.KVCache
  tokens_NM: jax.Array  # int32
  ended_N: jax.Array  # bool: has produced end_of_text
  produced: jax.Array  # int32 scalar: new tokens of each sample, over all windows


class Sampling(NamedTuple):
  """How tokens are chosen; all of it may change without compiling anew."""

  seed: np.uint32
  rows_N: np.ndarray  # int32: which sample of the seed each row is
  temperature: np.float32
  end_of_text: np.int32  # -1 where there is none


def prefill(
  model: gpt.GPT,
  params: Any,
  tokens_BL: jax.Array,
  *,
  length: jax.Array | int,
  ended_N: jax.Array,
  produced: jax.Array | int,
) -> State:
  """The state in which the first `length` tokens of a window are known.

  What follows them in `tokens_BL` is padding. No real position sees it: it comes later, the cache
  is cut to the real length, and decoding overwrites it.

  Args:
    model: Its config decides the window.
    params: The model's parameters.
    tokens_BL: int32; with B = 1 all N samples start from this row, which is computed once.
    length: Known tokens, 1 to L.
    ended_N: Samples that are over.
    produced: New tokens of each sample so far.
  """
  config, (B, L), (N,) = model.config, tokens_BL.shape, ended_N.shape
  cache = gpt.empty_cache(config, B)
  # XLA drops the logits, which nobody uses, from the program.
  _, cache = _apply(model, params, tokens_BL, cache)
  batch_axis = 1 if config.scan_layers else 0
  layers = jax.tree.map(lambda x: jnp.repeat(x, N // B, batch_axis), cache.layers)
  tokens_NM = jnp.zeros((N, config.block_size + 1), jnp.int32).at[:, :L].set(tokens_BL)
  length, produced = jnp.asarray(length, jnp.int32), jnp.asarray(produced, jnp.int32)
  return State(gpt.KVCache(layers, length - 1), tokens_NM, ended_N, produced)


def decode(
  model: gpt.GPT,
  params: Any,
  state: State,
  sampling: Sampling,
  *,
  steps: jax.Array | int,
  top_k: int,
) -> State:
  """Adds `steps` tokens to every sample, fewer if all of them end before.

  A sample that has ended goes on with `end_of_text`. New token t of row r is drawn with
  fold_in(fold_in(key(seed), r), t), whatever the number of samples, tokens or windows.

  Args:
    model: Its config decides the window.
    params: The model's parameters.
    state: With room for `steps` tokens: at most block_size - state.cache.length.
    sampling: How to choose.
    steps: At least 0; may be traced.
    top_k: Static; 0 keeps the whole vocabulary.
  """
  fold_in = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  # Threefry draws the same for a row whatever the other rows; not every generator does.
  keys_N = fold_in(jax.random.key(sampling.seed, impl='threefry2x32'), sampling.rows_N)
  goal = state.produced + steps

  def unfinished(state: State) -> jax.Array:
    return (state.produced < goal) & ~state.ended_N.all()

  def add_token(state: State) -> State:
    position = state.cache.length
    token_N1 = jax.lax.dynamic_slice_in_dim(state.tokens_NM, position, 1, axis=1)
    logits_N1V, cache = _apply(model, params, token_N1, state.cache)
    logits_NV = logits_lib.temperature(logits_N1V[:, 0], sampling.temperature)
    if top_k:
      logits_NV = logits_lib.top_k(logits_NV, top_k)
    step_keys_N = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_N, state.produced)
    token_N = logits_lib.sample(logits_NV, step_keys_N)
    token_N = jnp.where(state.ended_N, sampling.end_of_text, token_N)
    tokens_NM = jax.lax.dynamic_update_slice_in_dim(
      state.tokens_NM, token_N[:, None], position + 1, axis=1
    )
    ended_N = token_N == sampling.end_of_text
    return State(cache, tokens_NM, ended_N, state.produced + 1)

  return jax.lax.while_loop(unfinished, add_token, state)


def _apply(
  model: gpt.GPT, params: Any, tokens_BL: jax.Array, cache: gpt.KVCache
) -> tuple[jax.Array, gpt.KVCache]:
  result: Any = model.apply({'params': params}, tokens_BL, cache=cache)
  return result


class Decoder:
  """`prefill` and `decode`, compiled for one model.

  Both are compiled for each number of samples, `prefill` also for each power of two that a prompt
  is padded to, `decode` for each `top_k`; for nothing else, lengths included.
  """

  def __init__(self, config: config_lib.ModelConfig):
    self._block_size = config.block_size
    model = gpt.GPT(config)
    self._prefill = jax.jit(functools.partial(prefill, model))
    self._decode = jax.jit(
      functools.partial(decode, model), static_argnames='top_k', donate_argnames='state'
    )

  def __call__(
    self,
    params: Any,
    prompt_L: np.ndarray,
    *,
    rows_N: np.ndarray,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    end_of_text: int | None,
  ) -> np.ndarray:
    """Continues `prompt_L` once for each of `rows_N`.

    A row's tokens depend on (seed, row, prompt) alone, as far as the rounding of matrix products,
    which may differ with the number of rows, doesn't tip a draw.

    Args:
      params: The model's parameters.
      prompt_L: Token ids, 1 to `block_size` of them.
      rows_N: Which samples of the seed to draw, at least one.
      max_new_tokens: New tokens of a sample, at least 1; beyond the window it slides, see above.
      temperature: As `logits.temperature`.
      top_k: As `logits.top_k`, 0 for off.
      seed: 0 to 2**32 - 1.
      end_of_text: The token that ends a sample, if there is one.

    Returns:
      int32 (N, at most `max_new_tokens`), fewer if all samples end before; a sample that ends
      before the others is filled up with `end_of_text`.
    """
    end = np.int32(-1 if end_of_text is None else end_of_text)
    sampling = Sampling(np.uint32(seed), rows_N.astype(np.int32), np.float32(temperature), end)
    context_BL, ended_N, produced = prompt_L[None], np.zeros(len(rows_N), bool), 0
    windows = []
    while produced < max_new_tokens and not ended_N.all():
      L = context_BL.shape[1]
      state = self._prefill(
        params, self._padded(context_BL), length=L, ended_N=ended_N, produced=produced
      )
      steps = min(max_new_tokens - produced, self._block_size + 1 - L)
      state = self._decode(params, state, sampling, steps=steps, top_k=top_k)
      tokens_NM, ended_N, total = jax.device_get((state.tokens_NM, state.ended_N, state.produced))
      windows.append(tokens_NM[:, L : L + total - produced])
      context_BL, produced = tokens_NM[:, -max(1, self._block_size // 2) :], int(total)
    return np.concatenate(windows, axis=1)

  def _padded(self, tokens_BL: np.ndarray) -> np.ndarray:
    """`tokens_BL`, int32, filled up to a power of two (or the window) with token 0."""
    L = tokens_BL.shape[1]
    bucket = min(1 << (L - 1).bit_length(), self._block_size)
    return np.pad(tokens_BL.astype(np.int32), ((0, 0), (0, bucket - L)))
