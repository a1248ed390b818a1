"""Generation in steps: compiled functions in buckets, and windows that slide.

Shapes in names: U prompts, B rows, L length, V vocabulary (padded).
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.generation import decode
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import gpt

_SMALLEST_BUCKET = 32


class Engine:
  """`prefill` and `decode`, compiled for one model.

  Both are compiled for each number of rows and each bucket (a power of two) that prompts and
  windows are filled up to, `decode` also for each set of processors; for nothing else, lengths
  included.
  """

  def __init__(self, config: config_lib.ModelConfig, params: Any):
    self.config = config
    self.params = params
    model = gpt.GPT(config)
    self.prefill = jax.jit(functools.partial(decode.prefill, model), static_argnames='size')
    self.empty_text = jax.jit(decode.empty_text, static_argnames='log_probs_of')
    self.decode = jax.jit(functools.partial(decode.decode, model), donate_argnames='state')

  def bucket(self, length: int) -> int:
    """The length that `length` tokens are filled up to."""
    return min(max(1 << (length - 1).bit_length(), _SMALLEST_BUCKET), self.config.block_size)


class Session:
  """Texts in the making: some tokens are added at a time, by `advance`.

  A window that is full slides: its last half becomes the prompt of the next, so that each token is
  predicted from at least half a window (or all there is, if less). A row slides when it is full
  itself, whatever the others do.
  """

  _unseen = 1  # known tokens of a full window that the model has no position for: the last one

  def __init__(
    self,
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: sampling_lib.Sampling,
    *,
    max_new_tokens: int,
    log_probs: bool = False,
  ):
    """Takes the prompts through the model.

    Args:
      engine: The model.
      prompts: Token ids, 1 to `block_size` of each. Equal ones are computed once, and their draws
        differ.
      sampling: How to choose.
      max_new_tokens: At least 1.
      log_probs: Whether to keep the log-probabilities of the new tokens.
    """
    self._engine = engine
    self._sampling = sampling
    self._max_new_tokens = max_new_tokens
    self._windows = [list(prompt) for prompt in prompts]
    self._produced = [0] * len(prompts)
    self._ended = [False] * len(prompts)
    self.slides = [0] * len(prompts)  # times that each window slid
    self.guessed = [0] * len(prompts)  # new tokens that a draft model had guessed
    copies: dict[tuple[int, ...], int] = {}
    self._copies_B = np.zeros(len(prompts), np.int32)
    for row, prompt in enumerate(map(tuple, prompts)):
      copies[prompt] = copies.get(prompt, -1) + 1
      self._copies_B[row] = copies[prompt]
    longest = max(map(len, prompts)) + max_new_tokens - self._unseen
    self._size = engine.bucket(min(longest, engine.config.block_size))
    text = engine.empty_text(
      self._copies_B, self._prompt_tokens(), log_probs_of=log_probs and self._size + 1
    )
    window = self._fill()
    # Committed to a device, as what decoding gives back is: else all were compiled once more.
    text = jax.device_put(text, window.cache.length_B.sharding)
    self._state = decode.State(window, text)

  @property
  def done(self) -> bool:
    """Whether nothing is left to be added."""
    return all(self._ended)

  def end(self, rows: Iterable[int]) -> None:
    """Adds nothing to these rows any more."""
    for row in rows:
      self._ended[row] = True

  def advance(self, count: int) -> list[tuple[list[int], list[float]]]:
    """Adds up to `count` tokens, at least one, to each row that hasn't ended.

    Returns:
      The new tokens of each row and their log-probabilities (under the model alone, without
      processors; empty unless asked for). There may be fewer than `count`, where a window is full.
    """
    going = [row for row, ended in enumerate(self._ended) if not ended]
    if any(self._full(self._windows[row]) for row in going):
      self._slide()
    room = min(self._size + self._unseen - len(self._windows[row]) for row in going)
    before = self._produced[going[0]]  # of all that go on
    goal = min(before + min(count, room), self._max_new_tokens)
    window, text = self._state
    self._state = decode.State(window, text._replace(ended_B=jnp.asarray(self._ended)))
    self._decode(goal)
    return self._read()

  def _decode(self, goal: int) -> None:
    """Adds tokens on the device, until each row has `goal` new ones or ends."""
    self._state = self._engine.decode(
      self._engine.params, self._state, self._sampling, self._copies_B, goal
    )

  def _read(self) -> list[tuple[list[int], list[float]]]:
    """What the last call added; and brings the host's books up to date."""
    window, text = self._state
    tokens_BM, produced_B, ended_B, log_probs_BM = jax.device_get(
      (window.tokens_BM, text.produced_B, text.ended_B, text.log_probs_BM)
    )
    added = []
    for row, known in enumerate(self._windows):
      begin = len(known)
      end = begin + int(produced_B[row]) - self._produced[row]
      known += tokens_BM[row, begin:end].tolist()
      log_probs = [] if log_probs_BM is None else log_probs_BM[row, begin:end].tolist()
      added.append((known[begin:], log_probs))
      self._produced[row] += end - begin
      self._ended[row] |= bool(ended_B[row]) or self._produced[row] >= self._max_new_tokens
    return added

  def _slide(self) -> None:
    half = max(1, self._engine.config.block_size // 2)
    for row, known in enumerate(self._windows):
      if self._full(known):
        self._windows[row] = known[-half:]
        self.slides[row] += not self._ended[row]
    self._state = self._state._replace(window=self._fill())

  def _full(self, known: Sequence[int]) -> bool:
    return len(known) >= self._engine.config.block_size + self._unseen

  def _fill(self) -> decode.Window:
    """The device's window of what is known."""
    return self._window(self._engine)

  def _window(self, model: Engine, *, spare: int = 0) -> decode.Window:
    """What is known as a window of `model`, with `spare` more positions."""
    return model.prefill(model.params, *self._unique_prompts(), size=self._size + spare)

  def _unique_prompts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens_UL, length_U and rows_B of what is known; equal rows are one prompt."""
    unique = list(dict.fromkeys(map(tuple, self._windows)))
    place = {prompt: i for i, prompt in enumerate(unique)}
    lengths_U = np.array([len(prompt) for prompt in unique], np.int32)
    tokens_UL = np.zeros((len(unique), self._engine.bucket(int(lengths_U.max()))), np.int32)
    for row, prompt in enumerate(unique):
      tokens_UL[row, : len(prompt)] = prompt
    rows_B = np.array([place[tuple(known)] for known in self._windows], np.int32)
    return tokens_UL, lengths_U, rows_B

  def _prompt_tokens(self) -> np.ndarray | None:
    if not self._sampling.counts_tokens:
      return None
    prompt_BV = np.zeros((len(self._windows), self._engine.config.padded_vocab_size), bool)
    for row, prompt in enumerate(self._windows):
      prompt_BV[row, prompt] = True
    return prompt_BV
