"""Perplexity of a text by a sliding window."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data.batches import stream
from gpt_jax.evaluation import scoring

_BLOCK = 1 << 16  # tokens counted or decoded at once


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """How well a model predicts a text.

  Each token has at least `block_size` - `stride` + 1 tokens of context, or all before it.
  """

  tokens: int  # those scored: all but the first, which has no context
  loss: float  # mean negative log-likelihood, nats per token; ends of documents count
  perplexity: float  # e to the loss
  bits_per_byte: float | None  # the whole negative log-likelihood in bits, divided by bytes
  bytes: int | None  # UTF-8 bytes of the scored text; None if the tokens don't spell it
  block_size: int  # tokens that the model sees at most
  stride: int  # tokens by which the window moves

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    bits = 'none: these tokens do not spell the text'
    if self.bits_per_byte is not None:
      bits = f'{self.bits_per_byte:.4f} ({self.bytes:,} bytes)'
    context = self.block_size - self.stride + 1
    return [
      ('tokens scored', f'{self.tokens:,}'),
      ('loss', f'{self.loss:.4f} nats per token'),
      ('perplexity', f'{self.perplexity:.3f}'),
      ('bits per byte', bits),
      ('context', f'{context:,} to {self.block_size:,} tokens (stride {self.stride:,})'),
    ]


def windows(num_tokens: int, *, block_size: int, stride: int) -> Iterator[tuple[int, int, int]]:
  """Yields windows that together score each of at least 2 tokens, but the first, exactly once.

  A window is (start, first, stop): tokens `start` to `stop`, scored from `first` on. There are at
  most `block_size` + 1, as the last is no input. Each window but the first scores `stride` of them.
  """
  yield 0, 1, min(block_size + 1, num_tokens)
  for first in range(block_size + 1, num_tokens, stride):
    yield first + stride - block_size - 1, first, min(first + stride, num_tokens)


def measure(
  scorer: scoring.Scorer, tokens: stream.Tokens, *, stride: int, progress: progress.Report
) -> Perplexity:
  """Measures the perplexity of `tokens` as one stream: documents see those before them.

  Tokens are read window by window. `stride` is from 1 to `block_size`, see `Perplexity`; smaller
  gives more context and takes longer. Raises `UserError` for tokens that aren't of the vocabulary.
  """
  block_size, total = scorer.config.block_size, len(tokens)
  if total < 2:
    raise errors.UserError('tokens', f'has {total} tokens, at least 2 are needed')
  num_bytes = _count_bytes(scorer, tokens)
  rows = (
    scoring.Row(tokens.read(start, stop), first - start)
    for start, first, stop in windows(total, block_size=block_size, stride=stride)
  )
  nats, done = 0.0, 0
  progress('scoring tokens', 0, total - 1)  # the first batch takes the longest
  for _, scores in scorer.score(rows):
    nats -= float(scores.log_probs.sum(dtype=np.float64))
    done += len(scores.log_probs)
    progress('scoring tokens', done, total - 1)
  return Perplexity(
    tokens=done,
    loss=nats / done,
    perplexity=math.exp(min(nats / done, 700.0)),
    bits_per_byte=nats / (math.log(2) * num_bytes) if num_bytes else None,
    bytes=num_bytes,
    block_size=block_size,
    stride=stride,
  )


def _count_bytes(scorer: scoring.Scorer, tokens: stream.Tokens) -> int | None:
  """Returns the bytes that all tokens but the first spell; ends of documents spell none.

  Tokens of `hf` are decoded in blocks: a few bytes off if a block cuts a character. Returns None if
  tokens don't spell the text.
  """
  tokenizer, vocab_size = scorer.tokenizer, scorer.config.vocab_size
  counts_V = np.zeros(vocab_size, np.int64)
  decoded = 0
  for start in range(0, len(tokens), _BLOCK):
    ids = tokens.read(start, start + _BLOCK)
    if ids.max() >= vocab_size:
      problem = f'{ids.max()} is outside the vocabulary of {vocab_size:,}'
      raise errors.UserError('tokens', problem, 'measure the text itself')
    ids = ids if start else ids[1:]
    counts_V += np.bincount(ids, minlength=vocab_size)
    if tokenizer.kind == 'hf':
      decoded += len(tokenizer.decode(ids).encode())
  if tokenizer.kind == 'word' or (tokenizer.unk_id is not None and counts_V[tokenizer.unk_id]):
    return None
  if tokenizer.kind == 'hf':
    return decoded
  silent = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
  used = [i for i in np.flatnonzero(counts_V).tolist() if i not in silent]
  return sum(int(counts_V[i]) * len(tokenizer.token_bytes(i)) for i in used)
