"""Perplexity of a text, by a window that slides over it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import stream
from gpt_jax.evaluation import scoring

_BLOCK = 1 << 16  # tokens counted or decoded in one go


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """How well a model predicts a text.

  Attributes:
    tokens: Tokens scored: all but the first, which nothing predicts.
    loss: Mean negative log-likelihood, nats a token; those that end or begin a document count.
    perplexity: e to the loss.
    bits_per_byte: All of the negative log-likelihood in bits, over `bytes`; None if they are, or 0.
    bytes: UTF-8 bytes of text that the scored tokens spell, by the sum over tokens (tokenizer hf:
      by decoding 65,536 tokens at a time, some bytes off where that cuts a character). Ends and
      beginnings of documents spell none. None for tokens that don't spell the text: those of
      tokenizer word, and where some are unknown.
    block_size: Tokens that the model sees at most.
    stride: By which the window is moved: each token sees at least `block_size` - `stride` + 1
      before it, or all there are.
  """

  tokens: int
  loss: float
  perplexity: float
  bits_per_byte: float | None
  bytes: int | None
  block_size: int
  stride: int

  def table(self) -> list[tuple[str, str]]:
    """Names and values to print."""
    bits = 'none: these tokens do not spell the text'
    if self.bits_per_byte is not None:
      bits = f'{self.bits_per_byte:.4f} ({self.bytes:,} bytes)'
    context = self.block_size - self.stride + 1
    return [
      ('tokens scored', f'{self.tokens:,}'),
      ('loss', f'{self.loss:.4f} nats a token'),
      ('perplexity', f'{self.perplexity:.3f}'),
      ('bits per byte', bits),
      ('context', f'{context:,} to {self.block_size:,} tokens (stride {self.stride:,})'),
    ]


class Window(NamedTuple):
  """A stretch of the text: its tokens are `start` to `stop`, those from `first` on are scored."""

  start: int
  first: int
  stop: int


def windows(num_tokens: int, *, block_size: int, stride: int) -> Iterator[Window]:
  """Windows that score each token but the first exactly once.

  A window has at most `block_size` + 1 tokens, as the last is no input. The first scores all but
  its first token, each later one its last `stride`, or what is left.

  Args:
    num_tokens: At least 2.
    block_size: The model's.
    stride: 1 to `block_size`.
  """
  yield Window(0, 1, min(block_size + 1, num_tokens))
  for first in range(block_size + 1, num_tokens, stride):
    yield Window(first + stride - block_size - 1, first, min(first + stride, num_tokens))


def check_stride(stride: int, block_size: int) -> None:
  """Raises `UserError` unless a window can be moved by `stride`."""
  if not 1 <= stride <= block_size:
    raise errors.UserError(
      f'--stride={stride} must be from 1 to {block_size}, the block_size of the model'
    )


def measure(
  scorer: scoring.Scorer,
  tokens: stream.Tokens,
  *,
  stride: int,
  progress: scoring.Progress | None,
) -> Perplexity:
  """Perplexity of `tokens` as one stream, as in training: documents see those before them.

  Args:
    scorer: Of a model with the tokenizer that made `tokens`.
    tokens: Read window by window; never all of them are in memory.
    stride: See `Perplexity`; smaller gives the tokens more context and takes longer.
    progress: See `scoring.Progress`.

  Raises:
    UserError: There are fewer than two tokens, an id is outside the vocabulary, or `stride` is
      not from 1 to `block_size`.
  """
  model = scorer.model
  assert model.tokenizer is not None
  block_size, total = model.config.block_size, len(tokens)
  check_stride(stride, block_size)
  if total < 2:
    raise errors.UserError(
      f'the text has {total} {"token" if total == 1 else "tokens"}, and at least 2 are needed: the '
      'first is predicted by nothing'
    )
  num_bytes = _text_bytes(tokens, model.tokenizer, model.config.vocab_size)
  rows = (
    scoring.Row(tokens.read(start, stop), first - start)
    for start, first, stop in windows(total, block_size=block_size, stride=stride)
  )
  nats, done = 0.0, 0
  if progress:
    progress('scoring tokens', 0, total - 1)  # the first result takes the longest
  for _, scores in scorer.score(rows):
    nats -= float(scores.log_probs.sum(dtype=np.float64))
    done += len(scores.log_probs)
    if progress:
      progress('scoring tokens', done, total - 1)
  loss = nats / done
  return Perplexity(
    tokens=done,
    loss=loss,
    perplexity=scoring.perplexity(loss),
    bits_per_byte=nats / (math.log(2) * num_bytes) if num_bytes else None,
    bytes=num_bytes,
    block_size=block_size,
    stride=stride,
  )


def _text_bytes(
  tokens: stream.Tokens, tokenizer: tokenizers.Tokenizer, vocab_size: int
) -> int | None:
  """`Perplexity.bytes`; raises `UserError` for an id outside the vocabulary."""
  silent = {tokenizer.start_of_text, tokenizer.end_of_text, tokenizer.padding} - {None}
  counts_V = np.zeros(vocab_size, np.int64)
  decoded = 0
  for start in range(0, len(tokens), _BLOCK):
    ids = tokens.read(start, start + _BLOCK)
    if ids.max() >= vocab_size:
      at = int(np.argmax(ids >= vocab_size))
      raise errors.UserError(
        f'token {start + at:,} is {ids[at]}, but the model has {vocab_size:,} ids: another '
        'tokenizer made these tokens, or they are damaged; give the text itself'
      )
    ids = ids[1:] if not start else ids
    counts_V += np.bincount(ids, minlength=vocab_size)
    if tokenizer.kind == 'hf':
      decoded += len(tokenizer.decode(ids).encode())
  unknown = tokenizer.unknown is not None and counts_V[tokenizer.unknown]
  if tokenizer.kind == 'word' or unknown:
    return None
  if tokenizer.kind == 'hf':
    return decoded
  seen = (i for i in np.flatnonzero(counts_V).tolist() if i not in silent)
  return sum(int(counts_V[i]) * len(tokenizer.token_bytes(i)) for i in seen)
