"""Text in, text out: a model with its parameters and tokenizer, as `gpt_jax.load` gives it."""

import dataclasses
import functools
import numbers
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.generation import decode
from gpt_jax.generation import logits as logits_lib
from gpt_jax.models import gpt

_MAX_INT32 = 2**31 - 1
_MAX_SEED = 2**32 - 1  # JAX takes seeds modulo 2**32: larger ones would repeat smaller ones

Prompt = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Sample:
  """What the model adds to a prompt, up to the end of the text (that token isn't included).

  Attributes:
    text: `tokens` decoded; None if the model has no tokenizer.
    tokens: The new token ids; fewer than were asked for if the text ended.
  """

  text: str | None
  tokens: list[int]


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
  """A language model to use: everything here is in tokens or text, on the host.

  Attributes:
    config: The architecture, with a resolved `vocab_size`.
    params: The parameters, as `models.gpt.GPT` names them.
    tokenizer: None where the model came without one; prompts are token ids then.
  """

  config: config_lib.ModelConfig
  params: Any = dataclasses.field(repr=False)
  tokenizer: tokenizers.Tokenizer | None

  def generate(
    self,
    prompts: str | Sequence[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
  ) -> list[Sample]:
    """Continues each prompt; for several samples of one, repeat it: `generate([prompt] * 5, …)`.

    Equal prompts are computed together. Result i depends on prompt i, i and `seed`, not on the
    other prompts nor on how many there are.

    Args:
      prompts: Strings or lists of token ids, each of at most `block_size` tokens; one string is
        a list of one. An empty prompt is the start of a text.
      max_new_tokens: Tokens to add, at least 1. Beyond `block_size` the oldest are forgotten, so
        that the next is predicted from the latest half to whole window.
      temperature: What logits are divided by; 0 takes the most probable token.
      top_k: Draw from the k most probable tokens only; 0 draws from all.
      seed: 0 to 2**32 - 1.

    Raises:
      UserError: Lists every prompt and option that is amiss.
    """
    if isinstance(prompts, str):
      prompts = [prompts]
    found = list(_option_problems(max_new_tokens, temperature, top_k, seed))
    groups: dict[tuple[int, ...], list[int]] = {}
    complaints: dict[str, int] = {}  # with the first prompt that each is about
    for i, prompt in enumerate(prompts):
      try:
        groups.setdefault(self._ids(prompt), []).append(i)
      except errors.UserError as error:
        complaints.setdefault(str(error), i)
    found += [f'prompts[{i}]: {complaint}' for complaint, i in complaints.items()]
    if found:
      raise errors.UserError('cannot generate:\n' + '\n'.join(f'  {line}' for line in found))
    samples: dict[int, Sample] = {}
    for ids, rows in groups.items():
      tokens_NL = self._decoder(
        self.params,
        np.array(ids),
        rows_N=np.array(rows),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=min(top_k, self.config.vocab_size),
        seed=seed,
        end_of_text=self._end_of_text,
      )
      samples.update(zip(rows, map(self._sample, tokens_NL.tolist()), strict=True))
    return [samples[i] for i in range(len(prompts))]

  def logits(self, tokens_BL: np.ndarray | Sequence[Sequence[int]]) -> jax.Array:
    """Logits of the token after each position, float32 (B, L, `vocab_size`).

    Args:
      tokens_BL: Token ids, L from 1 to `block_size`; each new shape is compiled once.

    Raises:
      UserError: The shape or an id is out of range.
    """
    tokens_BL = np.asarray(tokens_BL)
    if tokens_BL.ndim != 2 or not tokens_BL.size:
      raise errors.UserError(f'tokens of shape {tokens_BL.shape}: it must be (batch, length)')
    for row in tokens_BL:
      self._check(row)
    return self._forward(self.params, tokens_BL.astype(np.int32))

  @functools.cached_property
  def _decoder(self) -> decode.Decoder:
    return decode.Decoder(self.config)

  @functools.cached_property
  def _forward(self) -> Any:
    model, vocab_size = gpt.GPT(self.config), self.config.vocab_size
    return jax.jit(lambda params, t_BL: model.apply({'params': params}, t_BL)[0][..., :vocab_size])

  @property
  def _end_of_text(self) -> int | None:
    return self.tokenizer.end_of_text if self.tokenizer else None

  def _sample(self, tokens: list[int]) -> Sample:
    """A row of the decoder's output, cut where it ends."""
    if self._end_of_text in tokens:
      tokens = tokens[: tokens.index(self._end_of_text)]
    return Sample(self.tokenizer.decode(tokens) if self.tokenizer else None, tokens)

  def _ids(self, prompt: Prompt) -> tuple[int, ...]:
    """The token ids that decoding starts from; raises `UserError`."""
    if isinstance(prompt, str):
      if not self.tokenizer:
        raise errors.UserError('the model has no tokenizer: give lists of token ids, not text')
      prompt = self.tokenizer.encode(prompt)
      if self.tokenizer.start_of_text is not None:
        prompt = np.concatenate([[self.tokenizer.start_of_text], prompt])
    ids = np.asarray(prompt)
    if ids.ndim != 1:
      raise errors.UserError(f'{prompt!r} must be text or a list of token ids')
    if not ids.size:
      return (self._start(),)
    self._check(ids)
    return tuple(ids.tolist())

  def _start(self) -> int:
    """The token of an empty prompt: what stands before a text, a newline, or token 0."""
    if self.tokenizer and self.tokenizer.start_of_text is not None:
      return self.tokenizer.start_of_text
    if self._end_of_text is not None:
      return self._end_of_text
    try:
      return int(self.tokenizer.encode('\n')[0]) if self.tokenizer else 0
    except errors.UserError:  # a vocabulary without newline
      return 0

  def _check(self, ids_L: np.ndarray) -> None:
    """Raises `UserError` unless the model can read `ids_L`."""
    if not np.issubdtype(ids_L.dtype, np.integer):
      raise errors.UserError(f'token ids are {ids_L.dtype}, must be integers')
    outside = ids_L[(ids_L < 0) | (ids_L >= self.config.vocab_size)]
    if outside.size:
      raise errors.UserError(
        f'token id {outside[0]} is outside the vocabulary: 0 to {self.config.vocab_size - 1}'
      )
    if ids_L.size > self.config.block_size:
      raise errors.UserError(
        f'{ids_L.size} tokens, at most {self.config.block_size} (the block_size) fit'
      )


def _option_problems(
  max_new_tokens: int, temperature: float, top_k: int, seed: int
) -> Iterator[str]:
  """What is wrong with the options, a line each: name, bad value, what is allowed."""
  integers = [
    ('max_new_tokens', max_new_tokens, 1, _MAX_INT32, ''),
    ('top_k', top_k, 0, _MAX_INT32, '; 0 draws from the whole vocabulary'),
    ('seed', seed, 0, _MAX_SEED, ''),
  ]
  for name, value, low, high, note in integers:
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
      yield f'{name}: {value!r} must be a whole number from {low} to {high}{note}'
  if (
    not isinstance(temperature, numbers.Real) or not 0 <= temperature <= logits_lib.MAX_TEMPERATURE
  ):
    yield f'temperature: {temperature!r} must be a number from 0 to {logits_lib.MAX_TEMPERATURE:g}'
