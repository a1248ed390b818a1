"""Generated texts, and how they grow: whole characters only, and nothing of a stop string."""

import dataclasses
import functools
from collections.abc import Sequence

from gpt_jax.data import tokenizers
from gpt_jax.generation import prompts

_REPLACEMENT = '\N{REPLACEMENT CHARACTER}'  # what a part of a character decodes to
_MOST_PARTS = 3  # of an incomplete character, in UTF-8
_BEFORE = 16  # earlier tokens that new ones are decoded with
_OPEN = 64  # tokens that are decoded again with later ones, unless they end within a character


@dataclasses.dataclass
class Sample:
  """What the model adds to a prompt."""

  text: str | None  # `tokens` decoded, up to a stop string; None if the model has no tokenizer
  tokens: list[int]  # new ones, without `eos_id`; up to the one that completed a stop string
  # Natural logarithms of their probabilities under the model alone (temperature 1, no processors);
  # None unless asked for.
  log_probs: list[float] | None
  ended: str = ''  # why: `eos`, `stop`, `length`, or `no_token` if options allowed none
  context_shifts: int = 0  # times that the context was full; see `loop.run`
  accepted: int = dataclasses.field(default=0, compare=False)  # tokens that a draft proposed


class Row:
  """A text that grows."""

  def __init__(
    self,
    prompt: Sequence[int],
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    stop: Sequence[str] = (),
    log_probs: bool = False,
    source: Sequence[int] = (),
    mask_id: int = -1,
  ) -> None:
    """Starts a text after `prompt`; it ends before the first of the strings in `stop`.

    `source` is what an encoder–decoder reads; `mask_id` is written as `prompts.MASK`.
    """
    # The text so far, without what later tokens can change; `ended` is empty until it is complete.
    self.sample = Sample('' if tokenizer else None, [], [] if log_probs else None)
    self.source = list(source)
    self.context = list(prompt)  # the tokens that the next one is predicted from
    self._tokenizer, self._stop, self._mask_id = tokenizer, stop, mask_id
    # Some tokenizers put a space between words only if another word stands before.
    self._before = self.context[-_BEFORE:]
    self._open: list[int] = []  # the tokens after those
    self._text = ''  # of the open tokens
    self._given = 0  # characters of it that are in `sample.text`

  def add(self, tokens: Sequence[int], log_probs: Sequence[float] = (), *, ended: str = '') -> None:
    """Adds new tokens; `ended` says why they are the last ones, if they are."""
    sample, new = self.sample, list(tokens)
    self.context += new
    if ended == 'eos':
      new.pop()
    # With stop strings one by one, so that the result doesn't depend on how many come at a time.
    for part in [[token] for token in new] if self._stop else [new]:
      sample.tokens += part
      self._open += part
      self._text = self._decoded(self._open)
      places = [self._text.find(stop, self._given) for stop in self._stop]
      if max(places, default=-1) >= 0:
        self._text, ended = self._text[: min(p for p in places if p >= 0)], 'stop'
        break
    if sample.log_probs is not None:
      sample.log_probs += log_probs
      del sample.log_probs[len(sample.tokens) :]
    certain = len(self._text) if ended else self._certain()
    if sample.text is not None and certain > self._given:
      sample.text += self._text[self._given : certain]
      self._given = certain
    sample.ended = ended
    if len(self._open) >= _OPEN:
      self._settle()

  def shift(self, block_size: int) -> None:
    """Keeps the last half of a full context."""
    if len(self.context) > block_size:
      self.context = self.context[-max(1, block_size // 2) :]
      self.sample.context_shifts += not self.sample.ended

  def _decoded(self, tokens: list[int]) -> str:
    """The text of `tokens` after those before."""
    if self._tokenizer is None:
      return ''
    decode = functools.partial(prompts.decode_masked, self._tokenizer, mask_id=self._mask_id)
    before, text = decode(self._before), decode(self._before + tokens)
    if text.startswith(before):
      return text[len(before) :]
    return decode(tokens)  # the prompt ends within a character

  def _certain(self) -> int:
    """How many characters can't change any more."""
    text = self._text
    for _ in range(_MOST_PARTS):
      text = text.removesuffix(_REPLACEMENT)
    for stop in self._stop:  # which may have begun
      begun = (n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
      text = text[: len(text) - next(begun, 0)]
    return len(text)

  def _settle(self) -> None:
    """Moves open tokens whose text is certain before the others: a text costs its length."""
    settled = self._open[:-_MOST_PARTS]
    text = self._decoded(settled)
    # Else it ends within a character.
    if self._text.startswith(text) and len(text) <= self._given:
      self._before = (self._before + settled)[-_BEFORE:]
      self._open = self._open[-_MOST_PARTS:]
      self._text = self._text[len(text) :]
      self._given -= len(text)
