"""What generation gives: texts, made and in the making."""

import dataclasses
from collections.abc import Sequence

from gpt_jax.data import tokenizers
from gpt_jax.generation import streaming


@dataclasses.dataclass(frozen=True)
class Sample:
  """What the model adds to a prompt.

  Attributes:
    text: `tokens` decoded, up to a stop string; None if the model has no tokenizer.
    tokens: The new token ids, without the end of the text; up to the one that completed a stop
      string.
    log_probs: Natural logarithms of their probabilities under the model alone (temperature 1, no
      processors); None unless asked for.
    ended: Why there are no more: `end_of_text`, `stop` or `length`.
    slides: Times that the context slid: see `engine.Session`.
    guessed: How many of `tokens` a draft model had guessed; at most so many where they were cut.
  """

  text: str | None
  tokens: list[int]
  log_probs: list[float] | None
  ended: str
  slides: int
  guessed: int = dataclasses.field(compare=False)


class Row:
  """A text in the making, in tokens and, if the model has a tokenizer, in characters."""

  def __init__(
    self, tokenizer: tokenizers.Tokenizer | None, prompt: list[int], stop: Sequence[str]
  ):
    self._end_of_text = tokenizer.end_of_text if tokenizer else None
    self._tokens: list[int] = []
    self._log_probs: list[float] = []
    self._parts: list[str] = []
    self._ended = 'length'
    self._stream = streaming.TextStream(tokenizer, prompt, stop) if tokenizer else None

  @property
  def stopped(self) -> bool:
    return self._ended == 'stop'

  def add(self, tokens: list[int], log_probs: list[float]) -> str:
    """Takes new tokens; returns the text that is certain now."""
    if tokens and tokens[-1] == self._end_of_text:
      tokens, self._ended = tokens[:-1], 'end_of_text'
    self._tokens += tokens
    self._log_probs += log_probs
    if self._stream is None:
      return ''
    self._parts.append(self._stream.add(tokens))
    if self._stream.stopped:
      self._tokens, self._ended = self._stream.tokens, 'stop'
    return self._parts[-1]

  def finish(self) -> str:
    """The rest of the text."""
    self._parts.append(self._stream.finish() if self._stream else '')
    return self._parts[-1]

  def sample(self, *, log_probs: bool, slides: int, guessed: int) -> Sample:
    """All of it."""
    self.finish()
    text = ''.join(self._parts) if self._stream else None
    known = self._log_probs[: len(self._tokens)] if log_probs else None
    return Sample(text, self._tokens, known, self._ended, slides, min(guessed, len(self._tokens)))
