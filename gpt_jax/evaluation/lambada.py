"""LAMBADA (Paperno et al. 2016): what is the last word of a passage?

The file is OpenAI's (`lambada_test.jsonl`, 5,153 passages in natural spelling) by custom. Of a
line `text` is read as it stands: what is behind its last space, with the space, is to be predicted,
which is what EleutherAI's lm-evaluation-harness does in `lambada_openai`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt_jax import errors
from gpt_jax.evaluation import examples, scoring
from gpt_jax.generation import text


class Passage(NamedTuple):
  """The last word as a row to score, and whether some of the context was left out."""

  row: scoring.Row
  shortened: bool


@dataclasses.dataclass(frozen=True)
class Lambada:
  """How well the model predicts last words.

  Attributes:
    examples: Passages.
    acc: Share where greedy decoding writes the word: each of its tokens is the most probable one.
    acc_stderr: Standard error of `acc`.
    loss: Mean negative log-likelihood, nats a word.
    perplexity: e to the loss: of words, not of tokens.
    shortened: Passages that don't fit in `block_size` as a whole.
  """

  examples: int
  acc: float
  acc_stderr: float
  loss: float
  perplexity: float
  shortened: int

  def table(self) -> list[tuple[str, str]]:
    """Names and values to print."""
    return [
      ('passages', f'{self.examples:,} ({self.shortened:,} with a shortened context)'),
      ('acc', f'{self.acc:.2%} ± {self.acc_stderr:.2%} (last word by greedy decoding)'),
      ('loss', f'{self.loss:.4f} nats a last word'),
      ('perplexity', f'{self.perplexity:.3f} of last words'),
    ]


def read(path: str, model: text.TextModel, *, limit: int | None) -> list[Passage]:
  """The passages of a file for `model`, which has a tokenizer.

  Raises:
    UserError: Names the line that isn't a passage, or that the model can't read.
  """

  def parse(record: dict[str, Any]) -> Passage:
    context, space, word = examples.text_field(record, 'text').rpartition(' ')
    if not context or not word.strip():
      raise errors.UserError('field text must be several words, and end with the last of them')
    return Passage(*examples.row(model, context, space + word))

  return examples.read(path, parse, limit)


def measure(
  scorer: scoring.Scorer, passages: Sequence[Passage], *, progress: scoring.Progress | None
) -> Lambada:
  """Scores the last words of `passages`."""

  def tell(done: int) -> None:
    if progress:
      progress('scoring last words', done, len(passages))

  rows = [passage.row for passage in passages]
  totals = examples.totals(scorer, rows, tell)
  count = len(passages)
  acc = sum(total.greedy for total in totals) / count
  loss = -math.fsum(total.log_prob for total in totals) / count
  return Lambada(
    examples=count,
    acc=acc,
    acc_stderr=examples.standard_error(acc, count),
    loss=loss,
    perplexity=scoring.perplexity(loss),
    shortened=sum(passage.shortened for passage in passages),
  )
