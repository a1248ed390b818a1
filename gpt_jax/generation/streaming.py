"""Text as it grows: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from gpt_jax.data import tokenizers

_REPLACEMENT = '\N{REPLACEMENT CHARACTER}'  # what a part of a character decodes to
_MOST_PARTS = 3  # of a character that is not whole yet, in UTF-8
_CONTEXT = 16  # tokens of the prompt


class TextStream:
  """The text of one row, given out as far as later tokens can't change it.

  Attributes:
    tokens: All that were taken: up to the one that completed a stop string.
    stopped: Whether a stop string came. The text ends before it.
  """

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int], stop: Sequence[str] = ()
  ):
    """A text that follows `prompt`; it ends before the first of the strings in `stop`."""
    self.tokens: list[int] = []
    self.stopped = False
    self._tokenizer = tokenizer
    # Words of some tokenizers have a space between them only where another one stands before.
    self._context = list(prompt[-_CONTEXT:])
    self._context_text = tokenizer.decode(self._context)
    self._stop = stop
    self._text = ''  # of all tokens, cut at a stop string
    self._given = 0  # characters of it

  def add(self, tokens: Sequence[int]) -> str:
    """Takes tokens, and returns the text that is certain now."""
    if not self._stop:
      self._take(tokens)
    for token in tokens if self._stop else ():
      if self.stopped:
        break
      # One by one, so that the result doesn't depend on how many come at a time.
      self._take([token])
      places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
      if places:
        self._text, self.stopped = self._text[: min(places)], True
    return self._give(len(self._text) if self.stopped else self._certain())

  def finish(self) -> str:
    """The rest of the text: there will be no more tokens."""
    return self._give(len(self._text))

  def _take(self, tokens: Sequence[int]) -> None:
    self.tokens += tokens
    text = self._tokenizer.decode(self._context + self.tokens)
    if text.startswith(self._context_text):
      self._text = text[len(self._context_text) :]
    else:  # the prompt ends within a character
      self._text = self._tokenizer.decode(self.tokens)

  def _certain(self) -> int:
    """How many characters can't change any more."""
    text = self._text
    for _ in range(_MOST_PARTS):
      text = text.removesuffix(_REPLACEMENT)
    for stop in self._stop:
      for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
          text = text[:-length]
          break
    return len(text)

  def _give(self, end: int) -> str:
    given, self._given = self._given, max(end, self._given)
    return self._text[given : self._given]
