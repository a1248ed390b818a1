"""HellaSwag (Zellers et al. 2019): which of four endings goes on with a situation?

The file is one of https://github.com/rowanz/hellaswag, `hellaswag_val.jsonl` (10,042 questions) by
custom; the test file has no labels. Of a line `ctx`, `endings` and `label` are read.

There are two customs of turning a question into text. Here, as in llm.c and build-nanogpt: `ctx`
as it stands, then a space and the ending as it stands, and `acc_norm` takes the mean over tokens.
EleutherAI's lm-evaluation-harness puts the activity label and a colon in front, capitalises
`ctx_b`, removes brackets, and its `acc_norm` takes the mean over characters: its figures aren't to
be compared with these (acc_norm of GPT-2 124M, by build-nanogpt's account: 29.55 % by the custom
used here, 31.14 % by the harness).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt_jax import errors
from gpt_jax.evaluation import examples, scoring
from gpt_jax.generation import text


class Question(NamedTuple):
  """A row to score for each ending, the right one's number, and whether context was left out."""

  rows: list[scoring.Row]
  label: int
  shortened: bool


@dataclasses.dataclass(frozen=True)
class HellaSwag:
  """How often the model chooses right.

  Attributes:
    examples: Questions.
    acc: Share where the right ending has the highest log-probability.
    acc_stderr: Standard error of `acc`.
    acc_norm: Share where it has the highest log-probability a token.
    acc_norm_stderr: Standard error of `acc_norm`.
    shortened: Questions whose context doesn't fit in `block_size` as a whole.
  """

  examples: int
  acc: float
  acc_stderr: float
  acc_norm: float
  acc_norm_stderr: float
  shortened: int

  def table(self) -> list[tuple[str, str]]:
    """Names and values to print."""
    return [
      ('questions', f'{self.examples:,} ({self.shortened:,} with a shortened context)'),
      ('acc', f'{self.acc:.2%} ± {self.acc_stderr:.2%} (highest log-probability)'),
      ('acc_norm', f'{self.acc_norm:.2%} ± {self.acc_norm_stderr:.2%} (highest a token)'),
    ]


def read(path: str, model: text.TextModel, *, limit: int | None) -> list[Question]:
  """The questions of a file for `model`, which has a tokenizer.

  Raises:
    UserError: Names the line that isn't a question, or that the model can't read.
  """

  def parse(record: dict[str, Any]) -> Question:
    context, endings = examples.text_field(record, 'ctx'), examples.field(record, 'endings')
    sound = isinstance(endings, list) and len(endings) > 1
    if not sound or not all(isinstance(ending, str) for ending in endings):
      raise errors.UserError('field endings must be a list of texts, at least 2')
    label = examples.field(record, 'label')
    choices = range(len(endings))
    if str(label) not in map(str, choices):
      raise errors.UserError(
        f'field label is {label!r}, must be one of {list(choices)}; the test file of HellaSwag has '
        'no labels, hellaswag_val.jsonl has'
      )
    made = [examples.row(model, context, f' {ending}') for ending in endings]
    return Question([row for row, _ in made], int(label), any(short for _, short in made))

  return examples.read(path, parse, limit)


def measure(
  scorer: scoring.Scorer, questions: Sequence[Question], *, progress: scoring.Progress | None
) -> HellaSwag:
  """Scores every ending of `questions`; of equals the first is chosen."""
  rows = [row for question in questions for row in question.rows]

  def tell(done: int) -> None:
    if progress:
      progress('scoring endings', done, len(rows))

  found = iter(examples.totals(scorer, rows, tell))
  right = right_norm = 0
  for question in questions:
    totals = [next(found) for _ in question.rows]
    right += question.label == np.argmax([t.log_prob for t in totals])
    right_norm += question.label == np.argmax([t.log_prob / t.tokens for t in totals])
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
