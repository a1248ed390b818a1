"""Questions from a JSON lines file, and the scores of continuations of a context."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data.sources import files
from gpt_jax.evaluation import scoring

Example = TypeVar('Example')


def read(path: str, parse: Callable[[Any], Example], limit: int | None) -> list[Example]:
  """Reads the first `limit` examples (None: all) of a JSON lines file, which may be .gz or .zst.

  `parse` returns the example of a record. Blank lines are skipped. Raises `UserError` if the file
  can't be read, is empty, or has an invalid line.
  """
  found: list[Example] = []
  with files.open_binary(pathlib.Path(path).expanduser()) as file:
    lines = iter(lambda: file.readline(files.MOST_HELD), b'')  # /dev/zero is one without end
    for number, line in enumerate(lines, 1):
      if len(found) == limit:
        break
      try:
        if line.strip():
          found.append(parse(json.loads(line.decode('utf-8-sig'))))
      except errors.UserError as e:
        raise e.at(f'{path}, line {number:,}') from e
      except (ValueError, RecursionError) as e:
        place, fix = f'{path}, line {number:,}', 'give a file with a JSON object on each line'
        raise errors.UserError(place, f'is not JSON ({e})', fix) from e
  if not found:
    raise errors.UserError(path, 'has no examples', 'get it again')
  return found


def field(record: Any, name: str, kind: Any) -> Any:
  """Returns a value of `record`; raises `UserError` if it is missing or not of this type."""
  if not isinstance(record, dict) or not isinstance(record.get(name), kind):
    raise errors.UserError('line', f'has no valid field {name}')
  return record[name]


def row(scorer: scoring.Scorer, context: str, continuation: str) -> tuple[scoring.Row, bool]:
  """Encodes `context` and `continuation`, each by itself, for the scores of `continuation`.

  Returns whether the beginning of the context was cut off to fit into `block_size`, too.
  """
  tokenizer, block_size = scorer.tokenizer, scorer.config.block_size
  before, after = tokenizer.encode(context), tokenizer.encode(continuation)
  if tokenizer.bos_id is not None:
    before = np.concatenate([[tokenizer.bos_id], before])
  if not len(before) or not 1 <= len(after) <= block_size:
    problem = f'must have some context and 1 to {block_size} (block_size) tokens after it'
    raise errors.UserError('line', f'{problem}, not {len(before)} and {len(after)}')
  tokens = np.concatenate([before, after])[-block_size - 1 :]
  return scoring.Row(tokens, len(tokens) - len(after)), len(before) + len(after) > len(tokens)


def score(
  scorer: scoring.Scorer,
  rows: Sequence[scoring.Row],
  *,
  phase: str,
  progress: progress.Report,
) -> list[scoring.Scores]:
  """Returns the scores of `rows` in their order; `progress` is reported under the name `phase`."""
  found: dict[int, scoring.Scores] = {}
  progress(phase, 0, len(rows))  # the first batch takes the longest
  for number, scores in scorer.score(rows):
    found[number] = scores
    progress(phase, len(found), len(rows))
  return [found[number] for number in range(len(rows))]


def standard_error(share: float, num_examples: int) -> float:
  """Returns sqrt(p (1 - p) / n), the standard error of a share p of n yes-or-no answers."""
  return float(np.sqrt(share * (1 - share) / num_examples))
