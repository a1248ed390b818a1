"""Measure a model: python -m gpt_jax.evaluate --model=runs/quickstart --data=text:mine.txt

Prints the perplexity of a text, or the accuracy on hellaswag:FILE.jsonl or lambada:FILE.jsonl.
Exit code 2: something to mend.
"""

import functools
import json
import pathlib
import re
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import cli, config, errors

if TYPE_CHECKING:
  from gpt_jax.evaluation import hellaswag, lambada, perplexity, scoring
  from gpt_jax.generation import text

  Result = perplexity.Perplexity | hellaswag.HellaSwag | lambada.Lambada

_QUESTIONS = ('hellaswag', 'lambada')
_INVALID_UTF8 = ('fail', 'replace')
# The options of this command that stand for knobs of a config; messages name those.
_KNOBS = {'source': 'data', 'text_field': 'text_field', 'invalid_utf8': 'invalid_utf8'}


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  values = flags.FlagValues()
  data = config.DataConfig()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  string(
    'model', None, "A run's workdir, one checkpoint in it, or a directory of published weights."
  )
  string(
    'data',
    None,
    'What to measure on: hellaswag:FILE.jsonl, lambada:FILE.jsonl, a text as --config.data.source '
    'of training names it (text:, jsonl:, parquet:, tfds:, builtin:, tokens:), or the folder of a '
    'token store.',
  )
  string('split', '', 'Of a text: its train, validation or test split; empty: all of it.')
  integer(
    'stride',
    None,
    'Of a text: tokens that the window is moved by, 1 to block_size; smaller gives each token more '
    'context and takes longer (default: half of block_size).',
  )
  integer('batch_size', 8, 'Windows or answers computed together, at least 1.')
  integer('limit', None, 'Measure the first N tokens or questions only (default: all).')
  string('text_field', data.text_field, 'Field, column or feature that holds the text.')
  string(
    'invalid_utf8', data.invalid_utf8, f'What to do with bad UTF-8: {" or ".join(_INVALID_UTF8)}.'
  )
  string('json', None, 'A file to write the results to, as JSON.')
  return values


def main(values: flags.FlagValues) -> None:
  """Loads the model, measures it and prints the results."""
  _check(values)

  from gpt_jax import loading, progress  # slow to import: after the flags are known to be sound

  loaded = loading.load(values.model)
  if loaded.model.tokenizer is None:
    raise errors.UserError(
      f'{values.model} has no tokenizer, and there is no text without: put its tokenizer.json there'
    )
  with progress.Bar() as bar:
    try:
      task, result = _measure(loaded.model, values, bar.show)
    except errors.UserError as e:
      raise errors.UserError(_own_options(str(e))) from e
  step = '' if loaded.step is None else f', step {loaded.step}'
  print(f'{values.model}{step}, on {values.data}')
  for name, value in result.table():
    print(f'{name:<16}{value}')
  if values.json:
    about = {'model': values.model, 'step': loaded.step, 'data': values.data, 'task': task}
    _write(values.json, {**about, **vars(result)})


def _check(values: flags.FlagValues) -> None:
  """Raises `UserError` for flags that can't be, whatever the model."""
  if not values.model:
    raise errors.UserError('--model=PATH is missing: the workdir of a run, as runs/quickstart')
  if not values.data:
    raise errors.UserError(
      '--data=SPEC is missing: a text as text:FILE, hellaswag:FILE.jsonl or lambada:FILE.jsonl'
    )
  for name in ('batch_size', 'limit', 'stride'):
    value: int | None = values[name].value
    if value is not None and value < 1:
      raise errors.UserError(f'--{name}: {value} must be at least 1')
  if values.invalid_utf8 not in _INVALID_UTF8:
    raise errors.UserError(
      f'--invalid_utf8: {values.invalid_utf8!r} must be {" or ".join(_INVALID_UTF8)}'
    )
  if _is_questions(values.data) and (values.stride is not None or values.split):
    raise errors.UserError(f'--stride and --split are for texts: leave them out of {values.data}')
  if values.json and not pathlib.Path(values.json).absolute().parent.is_dir():
    raise errors.UserError(f'--json={values.json}: there is no such folder; make it first')


def _is_questions(spec: str) -> bool:
  return spec.partition(':')[0] in _QUESTIONS


def _measure(
  model: 'text.TextModel', values: flags.FlagValues, progress: 'scoring.Progress'
) -> tuple[str, 'Result']:
  """The name of the task, and its result."""
  from gpt_jax.evaluation import corpus, hellaswag, lambada, perplexity, scoring

  scorer = scoring.Scorer(model, batch_size=values.batch_size)
  task, _, path = values.data.partition(':')
  if task == 'hellaswag':
    questions = hellaswag.read(path, model, limit=values.limit)
    return task, hellaswag.measure(scorer, questions, progress=progress)
  if task == 'lambada':
    passages = lambada.read(path, model, limit=values.limit)
    return task, lambada.measure(scorer, passages, progress=progress)
  stride = max(1, model.config.block_size // 2) if values.stride is None else values.stride
  perplexity.check_stride(stride, model.config.block_size)  # before the text is encoded
  assert model.tokenizer is not None
  with corpus.open_tokens(
    values.data,
    model.tokenizer,
    text_field=values.text_field,
    invalid_utf8=values.invalid_utf8,
    split=values.split,
    limit=values.limit,
    progress=progress,
  ) as tokens:
    return 'perplexity', perplexity.measure(scorer, tokens, stride=stride, progress=progress)


def _own_options(message: str) -> str:
  """A message about knobs of a config in the words of this command."""
  pattern = rf'--config\.data\.({"|".join(_KNOBS)})\b'
  return re.sub(pattern, lambda match: f'--{_KNOBS[match[1]]}', message)


def _write(path: str, results: dict[str, Any]) -> None:
  try:
    pathlib.Path(path).write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
  except OSError as e:
    raise errors.UserError(f'--json={path} cannot be written: {e.strerror or e}') from e


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=False)
