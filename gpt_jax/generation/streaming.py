"""Text as it grows: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from gpt_jax.data import tokenizers

_REPLACEMENT = '\N{REPLACEMENT CHARACTER}'  # what a part of a character decodes to
_MOST_PARTS = 3  # of a character that is not whole yet, in UTF-8
_CONTEXT = 16  # tokens that others are decoded with
_OPEN = 64  # tokens that are decoded again with later ones, unless they end within a character


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
    self._stop = stop
    # Words of some tokenizers have a space between them only where another one stands before.
    self._context = list(prompt[-_CONTEXT:])
    self._open: list[int] = []  # those after the context
    self._text = ''  # of them, cut at a stop string
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
      places = [self._text.find(stop, self._given) for stop in self._stop]
      if max(places) >= 0:
        self._text, self.stopped = self._text[: min(p for p in places if p >= 0)], True
    given = self._give(len(self._text) if self.stopped else self._certain())
    self._settle()
    return given

  def finish(self) -> str:
    """The rest of the text: there will be no more tokens."""
    return self._give(len(self._text))

  def _take(self, tokens: Sequence[int]) -> None:
    self.tokens += tokens
    self._open += tokens
    self._text = self._decoded(self._open)

  def _decoded(self, tokens: list[int]) -> str:
    """The text of `tokens` behind the context."""
    before = self._tokenizer.decode(self._context)
    text = self._tokenizer.decode(self._context + tokens)
    if text.startswith(before):
      return text[len(before) :]
    return self._tokenizer.decode(tokens)  # the prompt ends within a character

  def _settle(self) -> None:
    """Makes tokens whose text was given the context of later ones: the cost is that of a length."""
    if len(self._open) < _OPEN or self.stopped:
      return
    settled = self._open[:-_MOST_PARTS]
    text = self._decoded(settled)
    # Else it ends within a character.
    if self._text.startswith(text) and len(text) <= self._given:
      self._context = (self._context + settled)[-_CONTEXT:]
      self._open = self._open[-_MOST_PARTS:]
      self._text = self._text[len(text) :]
      self._given -= len(text)

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
