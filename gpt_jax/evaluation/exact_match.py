"""Exact match: the last response of a conversation is to be given, character by character.

Reads JSON lines, as `turns.parse` does, of which a field `kind` may name the kind; or what
`builtin:instructions` and `builtin:dates` hold out. The model's response is the most likely one by
greedy decoding.
"""

import dataclasses
from typing import Any

from gpt_jax import errors, progress
from gpt_jax.data.sources import rules, turns
from gpt_jax.evaluation import examples
from gpt_jax.generation import language_model


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """How many responses are exactly right."""

  examples: int
  exact: float  # fraction of them that are right
  exact_stderr: float  # standard error of exact
  by_kind: dict[str, tuple[int, int]]  # of each kind: right ones, and all

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    rows = [('examples', f'{self.examples:,}')]
    for kind, (right, number) in self.by_kind.items() if len(self.by_kind) > 1 else ():
      rows.append((kind, f'{right / number:.1%} of {number:,}'))
    return [*rows, ('exact match', f'{self.exact:.2%} ± {self.exact_stderr:.2%}')]


def measure(
  model: language_model.LanguageModel,
  path: str,
  *,
  limit: int | None,
  batch_size: int,
  progress: progress.Report,
) -> ExactMatch:
  """Answers the last prompts of the first `limit` conversations of a file or `builtin:NAME`."""
  asked, found = _read(path, limit), dict[str, tuple[int, int]]()
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  try:
    longest = max(len(model.tokenizer.encode(talk[-1])) for talk, _ in asked)
  except errors.UserError as e:
    raise e.at('data') from e
  options: Any = {'max_new_tokens': longest + 1, 'temperature': 0.0}
  options |= {} if model.template else {'stop': ['\n']}
  for first in range(0, len(asked), batch_size):
    progress('answering', first, len(asked))
    some = asked[first : first + batch_size]
    samples = model.generate([_prompt(model, talk[:-1]) for talk, _ in some], **options)
    for (talk, kind), sample in zip(some, samples, strict=True):
      right, number = found.get(str(kind), (0, 0))
      found[str(kind)] = right + (sample.text == talk[-1]), number + 1
  progress('answering', len(asked), len(asked))
  exact = sum(right for right, _ in found.values()) / len(asked)
  return ExactMatch(len(asked), exact, examples.standard_error(exact, len(asked)), found)


def _read(path: str, limit: int | None) -> list[tuple[list[str], Any]]:
  """The turns and the kind of each conversation."""
  name = path.removeprefix('builtin:')
  if name != path and name in rules.RULES:
    made = rules.conversations(name, 'validation')
    return [(each.turns, each.kind) for each in made][:limit]
  return examples.read(path, lambda line: (turns.parse(line), line.get('kind')), limit)


def _prompt(model: language_model.LanguageModel, talk: list[str]) -> str | list[int]:
  """The turns as the model was trained on them; if it was on none, each on a line."""
  if model.template and model.tokenizer:
    return turns.encode(model.tokenizer, model.template, talk)
  return '\n'.join(talk) + '\n'
