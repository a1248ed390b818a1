"""Measure a model: python -m gpt_jax.evaluate --model=runs/quickstart --data=text:mine.txt

Prints the perplexity of a text, the accuracy on hellaswag:FILE.jsonl or lambada:FILE.jsonl, how
often a response is exactly right (examples:FILE.jsonl, examples:builtin:instructions), or what a
run gets on what it held out (run:validation, run:test), whatever its task.
"""

import functools
import pathlib
from typing import Any

from absl import flags

from gpt_jax import atomic, cli, config, errors, progress, user_cache, validation

# Config keys and arguments that errors name -> flags of this command.
ALIASES = {'data.source': 'data', 'data.template': 'data', 'tokens': 'data'}
ALIASES |= {f'data.{name}': name for name in ('text_field', 'invalid_utf8')}
_OF_TEXTS = ('stride', 'split', 'text_field', 'invalid_utf8')
_OF_MODELS = ('batch_size', 'limit', 'dtype', 'mesh.data', 'mesh.fsdp', 'mesh.tensor')
_OF_EXAMPLES = ('shots', 'picture')
# Flags that say nothing of a kind of data; of texts they are those of examples.
_UNUSED = {
  'examples': _OF_TEXTS,
  'run': _OF_TEXTS + _OF_MODELS + _OF_EXAMPLES,
  **dict.fromkeys(('hellaswag', 'lambada'), _OF_TEXTS + _OF_EXAMPLES),
}


def define_flags() -> flags.FlagValues:
  values, data = flags.FlagValues(), config.DataConfig()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  integer = functools.partial(flags.DEFINE_integer, flag_values=values)
  string('model', None, cli.MODEL)
  doc = 'text:FILE etc., a token store, hellaswag:FILE.jsonl, lambada:FILE.jsonl, '
  doc += 'examples:FILE.jsonl, examples:builtin:instructions or run:test.'
  string('data', None, doc)
  string('split', '', 'Split of a text: train, validation or test; empty: all of it.')
  integer('stride', None, 'Tokens by which the window moves (default: half of block_size).')
  integer('batch_size', 8, 'Windows or answers computed together.')
  integer('limit', None, 'Measure only the first N tokens or questions (default: all).')
  flags.DEFINE_list('shots', ['0'], 'Numbers of solved examples to show first.', flag_values=values)
  string('picture', None, 'PNG file to draw the right responses against the shots to.')
  string('text_field', data.text_field, 'Field, column or feature that holds the text.')
  string('invalid_utf8', data.invalid_utf8, 'fail at bytes that are not UTF-8, or replace them.')
  string('dtype', 'auto', cli.DTYPE)
  cli.define_mesh(values)
  cli.define_json(values)
  return values


def main(values: flags.FlagValues) -> None:
  _check(values)
  with progress.doing('starting'):  # slow, so after the checks
    from gpt_jax import oom
    from gpt_jax.evaluation import exact_match, hellaswag, lambada, scoring
    from gpt_jax.generation import language_model

  user_cache.enable_compilation_cache()
  task, _, path = values.data.partition(':')
  model: Any
  result: Any
  with progress.Bar() as bar, oom.oom_as_user_error('lower `batch_size`'):
    if task == 'run':
      from gpt_jax.training import held_out
      from gpt_jax.weights import saved_model

      model = saved_model.open_model(values.model)
      result = held_out.measure(model, path, progress=bar.show)
    else:
      with progress.doing(f'loading {values.model}'):
        model = language_model.load(values.model, dtype=values.dtype, mesh=cli.mesh(values))
      if task != 'examples' or model.config.kind != 'encoder_decoder':
        scorer = scoring.Scorer(model, batch_size=values.batch_size)
    if task == 'examples':
      size, options = values.batch_size, {'limit': values.limit, 'progress': bar.show}
      options['shots'] = [*map(int, values.shots)]
      result = exact_match.measure(model, path, batch_size=size, **options)
    elif task in ('hellaswag', 'lambada'):
      measure: Any = hellaswag.measure if task == 'hellaswag' else lambada.measure
      result = measure(scorer, path, limit=values.limit, progress=bar.show)
    elif task != 'run':
      task, result = 'perplexity', _perplexity(scorer, values, bar.show)
  step = '' if model.step is None else f', step {model.step}'
  lines = [f'{values.model}{step}, on {values.data}']
  lines += [f'{name:<16}{value}' for name, value in result.table()]
  about = {'model': values.model, 'step': model.step, 'data': values.data, 'task': task}
  cli.show(values, [about | vars(result)], '\n'.join(lines), both=True)
  if values.picture:
    from gpt_jax.downstream import pictures

    atomic.write_bytes(pathlib.Path(values.picture), pictures.png(pictures.shots(result)))


def _check(values: flags.FlagValues) -> None:
  """Raises `UserError` for flags that are invalid whatever the model."""
  missing = [name for name in ('model', 'data') if not values[name].value]
  errors.raise_all([errors.UserError(name, 'must be given') for name in missing])
  data = config.DataConfig(text_field=values.text_field, invalid_utf8=values.invalid_utf8)
  found = validation.problems(config.Config(data=data))
  for name in ('batch_size', 'limit', 'stride'):
    value: int | None = values[name].value
    if value is not None and value < 1:
      found.append(errors.UserError(name, f'{value} must be at least 1'))
  kind = values.data.partition(':')[0]
  for name in _UNUSED.get(kind, _OF_EXAMPLES):
    if values[name].present:
      found.append(errors.UserError(name, f'has no effect on {values.data}', 'omit it'))
  if values.data.rstrip(':') in ('hellaswag', 'lambada'):
    found.append(errors.UserError('data', 'names no file', 'such as hellaswag:hellaswag_val.jsonl'))
  if not all(map(str.isdecimal, values.shots)):
    found.append(errors.UserError('shots', f'{values.shots} must be numbers, such as 0,1,2'))
  errors.raise_all(found)


def _perplexity(scorer: Any, values: flags.FlagValues, report: progress.Report) -> Any:
  from gpt_jax.evaluation import corpus, perplexity

  block_size = scorer.config.block_size
  stride = max(1, block_size // 2) if values.stride is None else values.stride
  if stride > block_size:
    raise errors.UserError('stride', f'{stride} must be at most {block_size}, the block_size')
  names = ('text_field', 'invalid_utf8', 'split', 'limit')
  options: Any = {name: values[name].value for name in names}
  with corpus.open_tokens(values.data, scorer.tokenizer, progress=report, **options) as tokens:
    return perplexity.measure(scorer, tokens, stride=stride, progress=report)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, aliases=ALIASES)
