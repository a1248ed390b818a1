"""Questions from a file of JSON lines, and a continuation to be scored behind its context."""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gpt_jax import errors
from gpt_jax.data.sources import files
from gpt_jax.evaluation import scoring
from gpt_jax.generation import text

Example = TypeVar('Example')


class Total(NamedTuple):
  """What the model says of a continuation, in all: nats, tokens, and whether it is greedy's."""

  log_prob: float
  tokens: int
  greedy: bool


def read(path: str, parse: Callable[[dict[str, Any]], Example], limit: int | None) -> list[Example]:
  """The first `limit` examples of a JSON lines file, which may be .gz or .zst.

  Args:
    path: The file; `~` works. Blank lines are skipped.
    parse: Makes an example of a record; raises `UserError` without saying where it is.
    limit: None for all.

  Raises:
    UserError: Names the file and the line.
  """
  found: list[Example] = []
  file_path = pathlib.Path(path).expanduser()
  with files.open_binary(file_path) as file:
    for number, line in enumerate(file, 1):
      if len(found) == limit:
        break
      if line.strip():
        try:
          found.append(parse(_record(line)))
        except errors.UserError as e:
          raise errors.UserError(f'{path}, line {number:,}: {e}') from e
  if not found:
    raise errors.UserError(f'{path} has no examples: it is empty')
  return found


def field(record: dict[str, Any], name: str) -> Any:
  """A value of `record`; raises `UserError` if there is none."""
  if name not in record:
    raise errors.UserError(f'there is no field {name} (fields: {", ".join(record) or "none"})')
  return record[name]


def text_field(record: dict[str, Any], name: str) -> str:
  """As `field`; raises `UserError` too if the value isn't text."""
  value = field(record, name)
  if not isinstance(value, str):
    raise errors.UserError(f'field {name} must be text, not {json.dumps(value)[:80]}')
  return value


def row(model: text.TextModel, context: str, continuation: str) -> tuple[scoring.Row, bool]:
  """The row that scores `continuation` behind `context`, each encoded by itself.

  Returns:
    The row, and whether the oldest tokens of the context were left out: where both are longer than
    the model can read.

  Raises:
    UserError: A part is empty or has no token, or the continuation alone is too long.
  """
  assert model.tokenizer is not None
  before, after = model.tokenizer.encode(context), model.tokenizer.encode(continuation)
  if model.tokenizer.start_of_text is not None:
    before = np.concatenate([[model.tokenizer.start_of_text], before])
  block_size = model.config.block_size
  if not len(before) or not len(after):
    raise errors.UserError(f'{"the context" if not len(before) else "what follows"} is empty')
  if len(after) > block_size:
    raise errors.UserError(
      f'{continuation[:40]!r}… has {len(after)} tokens, and the model reads {block_size} '
      '(its block_size) at most'
    )
  whole = np.concatenate([before, after])
  tokens = whole[-block_size - 1 :]
  return scoring.Row(tokens, len(tokens) - len(after)), len(tokens) < len(whole)


def totals(
  scorer: scoring.Scorer, rows: Iterable[scoring.Row], progress: Callable[[int], None]
) -> list[Total]:
  """Scores rows, in their order; `progress` is called with how many are done."""
  done: dict[int, Total] = {}
  progress(0)
  for number, scores in scorer.score(rows):
    log_prob = float(scores.log_probs.sum(dtype=np.float64))
    done[number] = Total(log_prob, len(scores.log_probs), bool(scores.greedy.all()))
    progress(len(done))
  return [done[number] for number in range(len(done))]


def standard_error(share: float, num_examples: int) -> float:
  """Of a share of `num_examples` independent yes-or-no answers: sqrt(p (1 - p) / n)."""
  return float(np.sqrt(share * (1 - share) / num_examples))


def _record(line: bytes) -> dict[str, Any]:
  try:
    record = json.loads(line.decode('utf-8-sig'))
  except (ValueError, RecursionError) as e:
    raise errors.UserError(f'this is not JSON ({e}); every line must hold one JSON object') from e
  if not isinstance(record, dict):
    raise errors.UserError('this is not a JSON object; every line must hold one')
  return record
