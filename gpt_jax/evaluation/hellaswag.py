"""HellaSwag (Zellers et al. 2019): choose the ending that continues a situation.

Reads a file of https://github.com/rowanz/hellaswag, usually `hellaswag_val.jsonl` (10,042
questions; the test file has no labels), and of each line `ctx`, `endings` and `label`.

A question becomes text as in llm.c and build-nanogpt: `ctx`, a space and the ending, unchanged;
`acc_norm` takes the mean over tokens. EleutherAI's lm-evaluation-harness differs: it puts the
activity label and a colon in front, capitalises `ctx_b`, removes brackets, and its `acc_norm` takes
the mean over characters. Don't compare its figures with these (acc_norm of GPT-2 124M according to
build-nanogpt: 29.55 % here, 31.14 % by the harness).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.evaluation import examples, scoring


class Question(NamedTuple):
  """A question as rows to score."""

  rows: list[scoring.Row]  # one per ending
  label: int  # the right one
  shortened: bool  # whether the context doesn't fit into block_size


@dataclasses.dataclass(frozen=True)
class HellaSwag:
  """How often the model chooses the right ending."""

  examples: int  # number of questions
  acc: float  # fraction in which the right ending has the highest log-probability
  acc_stderr: float  # standard error of acc
  acc_norm: float  # fraction in which it has the highest log-probability per token
  acc_norm_stderr: float  # standard error of acc_norm
  shortened: int  # questions whose context doesn't fit into block_size

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    return [
      ('questions', f'{self.examples:,} ({self.shortened:,} with a shortened context)'),
      ('acc', f'{self.acc:.2%} ± {self.acc_stderr:.2%} (highest log-probability)'),
      ('acc_norm', f'{self.acc_norm:.2%} ± {self.acc_norm_stderr:.2%} (highest per token)'),
    ]


def parse(scorer: scoring.Scorer, record: Any) -> Question:
  """Returns the question of a line; raises `UserError` if it is none."""
  context, endings = examples.field(record, 'ctx', str), examples.field(record, 'endings', list)
  label = str(examples.field(record, 'label', int | str))
  is_text = all(isinstance(ending, str) for ending in endings)
  if len(endings) < 2 or not is_text or label not in map(str, range(len(endings))):
    problem = 'field endings must hold 2 or more texts, field label the number of the right one'
    raise errors.UserError('line', problem, 'use hellaswag_val.jsonl: the test file has no labels')
  rows, shortened = zip(*(examples.row(scorer, context, f' {e}') for e in endings), strict=True)
  return Question(list(rows), int(label), any(shortened))


def measure(
  scorer: scoring.Scorer, path: str, *, limit: int | None, progress: progress.Report
) -> HellaSwag:
  """Scores every ending in the first `limit` questions; of equals the first is chosen."""
  questions = examples.read(path, functools.partial(parse, scorer), limit)
  rows = [row for question in questions for row in question.rows]
  scores = iter(examples.score(scorer, rows, phase='scoring endings', progress=progress))
  right = right_norm = 0
  for question in questions:
    log_probs = [next(scores).log_probs.astype(np.float64) for _ in question.rows]
    right += question.label == np.argmax([each.sum() for each in log_probs])
    right_norm += question.label == np.argmax([each.mean() for each in log_probs])
  count = len(questions)
  acc, acc_norm = right / count, right_norm / count
  return HellaSwag(
    examples=count,
    acc=acc,
    acc_stderr=examples.standard_error(acc, count),
    acc_norm=acc_norm,
    acc_norm_stderr=examples.standard_error(acc_norm, count),
    shortened=sum(question.shortened for question in questions),
  )
