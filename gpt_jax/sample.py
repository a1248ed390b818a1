"""Generate text: python -m gpt_jax.sample --model=runs/quickstart --prompt="The "

Prints each prompt with its text to standard output: a single text while it is generated, several
when all are done. The same prompts, seed and options give the same texts. --prompts=- reads prompts
from standard input, --interactive reads them as they are typed, --chat as those of a conversation.
"""

import dataclasses
import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import cli, errors, knobs, progress, user_cache
from gpt_jax.generation import settings as settings_lib

if TYPE_CHECKING:
  from gpt_jax.generation import language_model, options, rows

_SEPARATOR = '-' * 40
# Flags for several texts or their data, which --interactive and --chat can't have.
_BATCH = ('prompt', 'prompts', 'num_samples', 'json', 'log_probs', 'stats')


def define_flags() -> flags.FlagValues:
  """Returns the command's flags: its own, and one for each knob of `settings.Settings`."""
  values = flags.FlagValues()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  boolean = functools.partial(flags.DEFINE_boolean, flag_values=values)
  string('model', None, cli.MODEL)
  string('prompt', '', 'The prompt; empty: the start of a text.')
  string('prompts', None, 'A file with a prompt on each line, or - for standard input.')
  boolean('interactive', False, 'Read prompts as they are typed.')
  boolean('chat', False, 'Talk with a model that was trained with task=instruct.')
  flags.DEFINE_integer('num_samples', 1, 'Number of texts per prompt.', flag_values=values)
  for name, doc in (
    ('stop', r'End a text before this string (\n is a line break); may be repeated.'),
    ('ban', 'Token that is never generated, as text or as id:N; may be repeated.'),
    ('logit_bias', 'TOKEN:VALUE adds to the logit of a token; may be repeated.'),
  ):
    flags.DEFINE_multi_string(name, None, doc, flag_values=values)
    values[name].help = doc  # absl has added words of its own
  string('draft', None, 'Workdir or directory of a smaller model that proposes tokens: faster.')
  string('dtype', 'auto', cli.DTYPE)
  cli.define_mesh(values)
  cli.define_json(values)
  boolean('log_probs', False, 'Add log-probabilities to the JSON.')
  boolean('stats', False, 'Print timings to standard error.')
  define: dict[type, Any] = {int: flags.DEFINE_integer, float: flags.DEFINE_float}
  for knob in knobs.knobs(settings_lib.Settings()):
    limits = ', '.join(f'{words} {limit}' for limit, words, _ in knob.field.metadata['limits'])
    doc = knob.field.metadata['doc'] + (f' {limits.capitalize()}.' if limits else '')
    kind: Any = knob.field.type
    define[kind](knob.key, knob.value, doc, flag_values=values)
  return values


def main(values: flags.FlagValues) -> None:
  request = _parse(values)
  from gpt_jax.generation import parsing  # imports no JAX

  prompts = [('prompt', values.prompt)]
  if values.prompts is not None:
    prompts = parsing.read_lines(values.prompts, key='prompts', kind='prompt')
  began = time.monotonic()
  with progress.doing(f'loading {values.model}'):
    from gpt_jax.generation import interactive, language_model  # slow, so after the checks

    user_cache.enable_compilation_cache()
    load = functools.partial(language_model.load, dtype=values.dtype, mesh=cli.mesh(values))
    model = load(values.model)
    if values.draft:
      request = dataclasses.replace(request, draft=load(values.draft))
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  step = '' if model.step is None else f', step {model.step}'
  print(f'{values.model}{step}', file=sys.stderr)
  if values.interactive or values.chat:
    interactive.run(
      model,
      request,
      chat=values.chat,
      report=lambda e: print(cli.render(e, values), file=sys.stderr),
    )
    return
  times = [time.monotonic()]
  samples = _generate(model, prompts, request, values, times)
  interactive.report_shifts(max(s.context_shifts for s in samples), model.config.block_size)
  if values.stats:
    print(_stats(began, times, samples, draft=bool(values.draft)), file=sys.stderr)


def _parse(values: flags.FlagValues) -> 'options.Request':
  """Returns how to generate; raises `UserError` for all that is invalid whatever the model."""
  from gpt_jax.generation import options, parsing  # neither imports JAX

  found: list[errors.UserError] = []
  if not values.model:
    found.append(errors.UserError('model', 'must be given', 'for example runs/quickstart'))
  if values.num_samples < 1:
    found.append(errors.UserError('num_samples', f'{values.num_samples} must be at least 1'))
  if values.log_probs and not values.json:
    found.append(errors.UserError('log_probs', 'needs `json`'))
  if not knobs.is_utf8(values.prompt):
    found.append(errors.UserError('prompt', 'is not UTF-8', 'put it into a file for `prompts`'))
  if values['prompt'].present and values['prompts'].present:
    found.append(errors.UserError('prompt', 'cannot be combined with `prompts`'))
  mode = 'chat' if values.chat else 'interactive'
  for name in _BATCH if values[mode].value else ():
    if values[name].present:
      found.append(errors.UserError(name, f'cannot be combined with `{mode}`'))
  defaults = knobs.knobs(settings_lib.Settings())
  arguments: dict[str, Any] = {knob.key: values[knob.key].value for knob in defaults}
  try:
    arguments |= {
      'stop': [parsing.unescape('stop', text) for text in values.stop or []],
      'ban': [parsing.token('ban', text) for text in values.ban or []],
      'logit_bias': dict(parsing.bias('logit_bias', text) for text in values.logit_bias or []),
    }
  except errors.UserError as e:
    found.append(e)
  try:
    request = options.make(**arguments)
  except errors.UserError as e:
    found.append(e)
  errors.raise_all(found)
  return request


def _generate(
  model: 'language_model.LanguageModel',
  prompts: list[tuple[str, str]],
  request: 'options.Request',
  values: flags.FlagValues,
  times: list[float],
) -> 'list[rows.Sample]':
  """Generates and prints all texts; raises `UserError` with the place of each invalid prompt."""
  from gpt_jax import oom
  from gpt_jax.generation import interactive

  count = len(prompts) * values.num_samples
  # Their keys and values, of 16 bits at least; and what Python remembers of each.
  size = 4 * model.config.n_layer * model.config.hidden_width + 1000
  oom.check('num_samples', f'{count} texts', count * size)
  places = [place for place, _ in prompts for _ in range(values.num_samples)]
  texts = [text for _, text in prompts for _ in range(values.num_samples)]

  def show(*done: Any) -> None:
    times.append(time.monotonic())
    if done:
      bar.show(*done)

  try:
    with progress.Bar() as bar, oom.oom_as_user_error(interactive.OOM_FIX):
      if len(texts) == 1 and not values.json:
        parts = model.stream(texts[0], request=request)
        return [interactive.write(model.shown(texts[0]), parts, watch=show)]
      bar.show('tokens', 0, values.max_new_tokens)
      samples = model.generate(texts, log_probs=values.log_probs, progress=show, request=request)
  except errors.UserError as e:
    at = {'prompt': places[0], **{f'prompts[{i}]': place for i, place in enumerate(places)}}
    found = [error.at(at.get(error.key, error.key)) for error in e.all]
    errors.raise_all(list({str(error): error for error in found}.values()))
  for i, (text, sample) in enumerate(zip(texts, samples, strict=True)):
    record = {'prompt': text, 'index': i % values.num_samples, 'text': sample.text}
    record |= {'tokens': sample.tokens, 'ended': sample.ended}
    if sample.log_probs is not None:
      record['log_probs'] = sample.log_probs
    shown = f'{_SEPARATOR}\n' * bool(i) + model.shown(text) + (sample.text or '')
    cli.show(values, [record], shown)
  return samples


def _stats(began: float, times: list[float], samples: 'list[rows.Sample]', *, draft: bool) -> str:
  """A row for each figure; `times` are when the model was loaded and when tokens came."""
  loaded, first, last = times[0], times[:2][-1], times[-1]
  tokens = sum(len(sample.tokens) for sample in samples)
  table = [
    ('load', f'{loaded - began:.2f} s'),
    ('first token', f'{first - loaded:.2f} s, with compiling'),
    ('other tokens', f'{last - first:.2f} s'),
    ('tokens', f'{tokens:,} in {len(samples):,} text{"" if len(samples) == 1 else "s"}'),
  ]
  if draft and tokens:
    accepted = sum(sample.accepted for sample in samples) / tokens
    table.append(('accepted', f'{accepted:.0%} of them were proposed by the draft'))
  if tokens > len(samples) and last > first:
    rate = (tokens - len(samples)) / (last - first)
    table.append(('rate', f'{rate:,.0f} tokens/s after the first'))
  return '\n'.join(f'{name:<16}{value}' for name, value in table)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__)
