"""Exact match: the last response of a conversation is to be given, character by character.

Reads JSON lines, as `turns.parse` does, of which a field `kind` may name the kind; or what
`builtin:instructions` and its like hold out. The model's response is the most likely one by greedy
decoding. In front of a conversation, others of its kind may be shown with their responses ("shots",
Brown et al. 2020): the next in the file, or some of those to train on. Where a conversation follows
a hidden rule, its last prompt is answered, and what is shown is the turns before that. A model that
translates reads the last prompt alone.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data.sources import rules, turns
from gpt_jax.evaluation import examples
from gpt_jax.generation import language_model

_Talk = tuple[list[str], str]  # turns and kind


@dataclasses.dataclass(frozen=True)
class ExactMatch:
  """Fractions of the responses that are exactly right, for each number of shots."""

  examples: int
  shots: Sequence[int]
  exact: list[float]
  exact_stderr: list[float]  # standard errors of exact
  by_kind: dict[str, list[float]]

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    rows = {'shots': [f'{k:>8}' for k in self.shots]} if any(self.shots) else {}
    by_kind = self.by_kind if len(self.by_kind) > 1 else {}
    for name, values in {**by_kind, 'exact match': self.exact}.items():
      rows[name] = [f'{value:>8.1%}' for value in values]
    rows['±'] = [f'{value:>8.1%}' for value in self.exact_stderr]
    return [('examples', f'{self.examples:>8,}')] + [(k, ''.join(v)) for k, v in rows.items()]


def measure(
  model: language_model.LanguageModel,
  path: str,
  *,
  shots: Sequence[int] = (0,),
  limit: int | None,
  batch_size: int,
  progress: progress.Report,
) -> ExactMatch:
  """Answers the last prompts of the first `limit` conversations of a file or `builtin:NAME`."""
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  is_pair = model.config.kind == 'encoder_decoder'
  if is_pair and any(shots):
    problem = f'{max(shots)} must be 0: the model reads one prompt, without others before it'
    raise errors.UserError('shots', problem)
  asked, shown = _read(path, limit)
  try:
    longest = max(len(model.tokenizer.encode(talk[-1])) for talk, _ in asked)
  except errors.UserError as e:
    raise e.at('data') from e
  options: Any = {'max_new_tokens': longest + 1, 'temperature': 0.0}
  options |= {} if model.template or is_pair else {'stop': ['\n']}
  right, total = list[bool](), len(shots) * len(asked)
  for k in shots:
    prompts = [
      _prompt(model, [*before, *talk[:-1]]) for before, talk in _with_shots(asked, shown, k)
    ]
    for first in range(0, len(asked), batch_size):
      progress('answering', len(right), total)
      try:
        samples = model.generate(prompts[first : first + batch_size], **options)
      except errors.UserError as e:
        raise errors.UserError('shots' if k else 'data', e.all[0].problem) from e
      texts = [talk[-1] for talk, _ in asked[first : first + batch_size]]
      right += [s.text == text for s, text in zip(samples, texts, strict=True)]
  progress('answering', total, total)
  right_KN, kinds_N = np.reshape(right, (len(shots), -1)), np.array([kind for _, kind in asked])
  exact = right_KN.mean(1).tolist()
  return ExactMatch(
    examples=len(asked),
    shots=shots,
    exact=exact,
    exact_stderr=[examples.standard_error(value, len(asked)) for value in exact],
    by_kind={kind: right_KN[:, kinds_N == kind].mean(1).tolist() for _, kind in asked},
  )


def _read(path: str, limit: int | None) -> tuple[list[_Talk], list[_Talk] | None]:
  """The conversations to answer, and those to show; None if each shows its own turns before."""
  name = path.removeprefix('builtin:')
  if name != path and name in rules.RULES:
    made = [(each.turns, each.kind) for each in rules.conversations(name, 'validation')]
    if name in rules.HIDDEN:
      return made[:limit], None
    return made[:limit], [(c.turns[-2:], c.kind) for c in rules.conversations(name, 'train')]
  found = examples.read(path, lambda line: (turns.parse(line), str(line.get('kind', ''))), None)
  return found[:limit], found


def _with_shots(
  asked: Sequence[_Talk], shown: Sequence[_Talk] | None, k: int
) -> Iterator[tuple[list[str], list[str]]]:
  """The turns of k others of its kind, and those of each conversation."""
  of_kind, number = collections.defaultdict[str, list[list[str]]](list), collections.Counter[str]()
  for talk, kind in shown or ():
    of_kind[kind].append(talk)
  for talk, kind in asked:
    own = [talk[i : i + 2] for i in range(0, len(talk), 2)]
    others, first = of_kind[kind], number[kind] + 1  # in a file it is the one before them
    if shown is None:  # the last k of its own, and the last is to be answered
      others, first, talk = own, -1 - k, own[-1]
    if k >= len(others):
      problem = f'{k} must be less than {len(others)}, the examples of kind {kind!r}'
      raise errors.UserError('shots', problem)
    number[kind] += 1
    yield [turn for j in range(k) for turn in others[(first + j) % len(others)]], talk


def _prompt(model: language_model.LanguageModel, talk: list[str]) -> str | list[int]:
  """The turns as the model was trained on them, or the last; if it was on none, all in lines."""
  if model.config.kind == 'encoder_decoder':
    return talk[-1]
  if model.template and model.tokenizer:
    return turns.encode(model.tokenizer, model.template, talk)
  return '\n'.join(talk) + '\n'
