"""Let a model write: python -m gpt_jax.sample --model=runs/quickstart --prompt="The "

Prints each text, its prompt included, to standard output: a single one while it is written, several
when all are done. The same prompt, seed and options give the same text. --prompts=- reads prompts
from standard input, --interactive as they are typed. Exit code 2: something to mend.
"""

import contextlib
import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import cli, config, errors, user_cache, validation

if TYPE_CHECKING:
  from gpt_jax.generation import results, text

_SEPARATOR = '-' * 40
_DEFINE: dict[type, Any] = {int: flags.DEFINE_integer, float: flags.DEFINE_float}
# Options that ask for several texts, or for their data: none of them goes with --interactive.
_BATCH = ('prompt', 'prompts', 'num_samples', 'json', 'log_probs', 'stats')


def define_flags() -> flags.FlagValues:
  """The command's flags: its own, and one for each knob of `config.GenerationConfig`."""
  values = flags.FlagValues()
  own: dict[str, Any] = {'flag_values': values}
  flags.DEFINE_string(
    'model',
    None,
    "A run's workdir, one checkpoint in it, or a directory of published weights.",
    **own,
  )
  flags.DEFINE_string('prompt', '', 'What the text begins with; empty: the start of a text.', **own)
  flags.DEFINE_string(
    'prompts', None, 'A UTF-8 file with a prompt on each line, or - for standard input.', **own
  )
  flags.DEFINE_boolean('interactive', False, 'Read prompts as they are typed.', **own)
  flags.DEFINE_integer('num_samples', 1, 'Texts for each prompt. At least 1.', **own)
  for name, doc in (
    ('stop', r'End a text before this string; may be repeated. \n is a line break.'),
    ('ban', 'A token that never comes, as text or as id:N; may be repeated.'),
    ('logit_bias', 'TOKEN:VALUE adds to the logit of a token; may be repeated.'),
  ):
    flags.DEFINE_multi_string(name, None, doc, **own)
    values[name].help = doc  # absl has added words of its own
  flags.DEFINE_string(
    'draft', None, 'A small model that guesses ahead for --model: texts as likely, sooner.', **own
  )
  flags.DEFINE_boolean('json', False, 'Print each text with its tokens as a line of JSON.', **own)
  flags.DEFINE_boolean('log_probs', False, 'With --json: the log-probabilities too.', **own)
  flags.DEFINE_boolean('stats', False, 'Tell on standard error how long it took.', **own)
  for knob in config.knobs(config.GenerationConfig()):
    kind: Any = knob.field.type
    _DEFINE[kind](knob.key, knob.value, f'{knob.field.metadata["doc"]}{_range(knob)}', **own)
  return values


def _range(knob: config.Knob) -> str:
  """The permitted values of a knob, as a sentence."""
  words = ', '.join(f'{words} {limit}' for limit, words, _ in knob.field.metadata['limits'])
  return f' {words.capitalize()}.' if words else ''


@dataclasses.dataclass(frozen=True)
class _Request:
  """What the flags ask for, as far as it can be checked without the model."""

  settings: config.GenerationConfig
  prompts: list[tuple[str, str]]  # where each comes from, and the text
  arguments: dict[str, Any]  # of `TextModel.stream`


def main(values: flags.FlagValues) -> None:
  """Loads the model and prints what it writes."""
  request = _check(values)
  with cli.output():
    began = time.monotonic()
    with _note(f'loading {values.model} …'):
      from gpt_jax import device_memory, loading  # slow to import: after the flags are sound
      from gpt_jax.generation import interactive

      user_cache.keep_compiled_programs()
      loaded = loading.load(values.model)
      if values.draft:
        request.arguments['draft'] = loading.load(values.draft).model
    if loaded.model.tokenizer is None:
      raise errors.UserError(
        f'{values.model} has no tokenizer, and there is no text without: put its tokenizer.json '
        'there'
      )
    step = '' if loaded.step is None else f', step {loaded.step}'
    print(f'{values.model}{step}', file=sys.stderr)
    watch = _Watch(began)
    try:
      if values.interactive:
        interactive.run(loaded.model, request.settings, request.arguments)
        return
      ids = _encode(loaded.model, request.prompts)
      with device_memory.shortage_is_the_users(interactive.REMEDIES):
        samples = _write(loaded.model, ids, request, values, watch)
    except errors.UserError as e:
      raise errors.UserError(_own_options(str(e))) from e
    interactive.tell_slides(max(s.slides for s in samples), loaded.model.config.block_size)
    if values.stats:
      print(watch.table(samples, draft=bool(values.draft)), file=sys.stderr)


def _check(values: flags.FlagValues) -> _Request:
  """What is asked for; raises `UserError` that lists what can't be, whatever the model."""
  from gpt_jax.generation import options, parsing  # neither imports JAX

  settings = config.GenerationConfig()
  for knob in config.knobs(settings):
    setattr(settings, knob.key, values[knob.key].value)
  found = [f'--{line}' for line in options.problems(settings)]
  if not values.model:
    found.append('--model=PATH is missing: the workdir of a run, as runs/quickstart')
  if values.num_samples < 1:
    found.append(f'--num_samples: {values.num_samples} must be at least 1')
  if values.log_probs and not values.json:
    found.append('--log_probs: only --json shows them: add it')
  if not parsing.is_utf8(values.prompt):
    found.append('--prompt is not UTF-8: put it into a file, and give that as --prompts=FILE')
  if values['prompt'].present and values['prompts'].present:
    found.append('--prompt and --prompts are both given: leave one out')
  if values.interactive:
    found += [
      f'--{name} does not go with --interactive: leave one of them out'
      for name in _BATCH
      if values[name].present
    ]
  arguments: dict[str, Any] = {}
  prompts = [('--prompt', values.prompt)]
  try:
    arguments = {
      'stop': [parsing.unescaped('stop', text) for text in values.stop or []],
      'ban': [parsing.token('ban', text) for text in values.ban or []],
      'logit_bias': dict(parsing.bias(text) for text in values.logit_bias or []),
    }
  except errors.UserError as e:
    found.append(str(e))
  validation.fail(found)
  if values.prompts is not None:
    prompts = parsing.read_prompts(values.prompts)
  return _Request(settings, prompts, arguments)


@contextlib.contextmanager
def _note(what: str) -> Iterator[None]:
  """Shows `what` while it is done, on a terminal."""
  if sys.stderr is None or not sys.stderr.isatty():
    yield
    return
  print(what, end='', file=sys.stderr, flush=True)
  try:
    yield
  finally:
    print('\r\033[K', end='', file=sys.stderr, flush=True)


def _encode(model: 'text.TextModel', prompts: list[tuple[str, str]]) -> list[list[int]]:
  """The tokens of all prompts; raises `UserError` that names the place of each that is amiss."""
  ids, found = [], []
  for place, prompt in prompts:
    try:
      ids.append(model.encode(prompt))
    except errors.UserError as e:
      found.append(f'{place}: {e}')
  validation.fail(found)
  return ids


class _Watch:
  """How long a command takes."""

  def __init__(self, began: float):
    """The model has just been loaded; that `began` at this time."""
    self._loaded = time.monotonic()
    self._load = self._loaded - began
    self._first: float | None = None
    self._ended = self._loaded

  def look(self) -> None:
    """Something new was written."""
    self._ended = time.monotonic()
    if self._first is None:
      self._first = self._ended

  def table(self, samples: 'list[results.Sample]', *, draft: bool) -> str:
    """What it measured, a row for each figure."""
    first = self._loaded if self._first is None else self._first
    tokens = sum(len(sample.tokens) for sample in samples)
    rows = [
      ('load', f'{self._load:.2f} s'),
      ('first token', f'{first - self._loaded:.2f} s, to compile included'),
      ('the others', f'{self._ended - first:.2f} s'),
      ('tokens', f'{tokens:,} in {len(samples):,} text{"" if len(samples) == 1 else "s"}'),
    ]
    if draft and tokens:
      guessed = sum(sample.guessed for sample in samples)
      rows.append(('draft', f'guessed {guessed / tokens:.0%} of them'))
    if tokens > len(samples) and self._ended > first:
      rate = (tokens - len(samples)) / (self._ended - first)
      rows.append(('rate', f'{rate:,.0f} tokens/s after the first'))
    return '\n'.join(f'{name:<16}{value}' for name, value in rows)


def _write(
  model: 'text.TextModel',
  ids: list[list[int]],
  request: _Request,
  values: flags.FlagValues,
  watch: _Watch,
) -> 'list[results.Sample]':
  """Generates all texts and prints them."""
  from gpt_jax import progress
  from gpt_jax.generation import interactive

  texts = [prompt for _, prompt in request.prompts for _ in range(values.num_samples)]
  if len(texts) == 1 and not values.json:
    print(texts[0], end='', flush=True)
    return [interactive.write(model, ids[0], request.settings, request.arguments, watch=watch.look)]
  with progress.Bar() as bar:

    def show(what: str, done: int, total: int) -> None:
      watch.look()
      bar.show(what, done, total)

    samples = model.generate(
      [prompt for prompt in ids for _ in range(values.num_samples)],
      log_probs=values.log_probs,
      progress=show,
      **request.arguments,
      **dataclasses.asdict(request.settings),
    )
  for i, (prompt, sample) in enumerate(zip(texts, samples, strict=True)):
    if values.json:
      print(_json(prompt, i % values.num_samples, sample))
    else:
      print(f'{_SEPARATOR}\n' * bool(i) + prompt + (sample.text or ''))
  return samples


def _json(prompt: str, index: int, sample: 'results.Sample') -> str:
  record = {'prompt': prompt, 'index': index, 'text': sample.text, 'tokens': sample.tokens}
  if sample.log_probs is not None:
    record['log_probs'] = sample.log_probs
  return json.dumps({**record, 'ended': sample.ended}, ensure_ascii=False)


def _own_options(message: str) -> str:
  """A message about options of `TextModel.generate` in the words of this command."""
  names = [*config.GenerationConfig.__dataclass_fields__, 'stop', 'ban', 'logit_bias', 'draft']
  return re.sub(rf'^( *)({"|".join(names)}):', r'\1--\2:', message, flags=re.MULTILINE)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=False)
