"""LAMBADA (Paperno et al. 2016): predict the last word of a passage.

Reads OpenAI's file (`lambada_test.jsonl`, 5,153 passages in natural spelling), and of each line
`text`, unchanged. Predicted is what follows the last space, with that space, as in `lambada_openai`
of EleutherAI's lm-evaluation-harness.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.evaluation import examples, scoring


@dataclasses.dataclass(frozen=True)
class Lambada:
  """How well the model predicts last words."""

  examples: int  # number of passages
  acc: float  # fraction of the words that greedy decoding gives: all of their tokens
  acc_stderr: float  # standard error of acc
  loss: float  # mean negative log-likelihood, nats per word
  perplexity: float  # e to the loss, so per word, not per token
  shortened: int  # passages that don't fit into block_size

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    return [
      ('passages', f'{self.examples:,} ({self.shortened:,} with a shortened context)'),
      ('acc', f'{self.acc:.2%} ± {self.acc_stderr:.2%} (last word by greedy decoding)'),
      ('loss', f'{self.loss:.4f} nats per last word'),
      ('perplexity', f'{self.perplexity:.3f} per last word'),
    ]


def parse(scorer: scoring.Scorer, record: Any) -> tuple[scoring.Row, bool]:
  """Returns the `examples.row` of a line; raises `UserError` if it is no passage."""
  context, space, word = examples.field(record, 'text', str).rpartition(' ')
  if not context or not word.strip():
    raise errors.UserError('line', 'field text must hold several words, and end with a word')
  return examples.row(scorer, context, space + word)


def measure(
  scorer: scoring.Scorer, path: str, *, limit: int | None, progress: progress.Report
) -> Lambada:
  """Scores the last words of the first `limit` passages."""
  passages = examples.read(path, functools.partial(parse, scorer), limit)
  rows, shortened = zip(*passages, strict=True)
  scores = examples.score(scorer, rows, phase='scoring last words', progress=progress)
  acc = sum(bool(each.greedy.all()) for each in scores) / len(rows)
  loss = -math.fsum(each.log_probs.sum(dtype=np.float64) for each in scores) / len(rows)
  return Lambada(
    examples=len(rows),
    acc=acc,
    acc_stderr=examples.standard_error(acc, len(rows)),
    loss=loss,
    perplexity=math.exp(min(loss, 700.0)),
    shortened=sum(shortened),
  )
