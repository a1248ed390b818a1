"""Look inside a model: python -m gpt_jax.inspect --model=runs/quickstart --prompt="The value of"

Prints its parameters, what it expects at each position, what it would say after each layer, and how
it goes on; draws its losses and its attention; writes a page of all that, which works offline. Two
pictures need no model: kernel, attention as regression, and mask, from averages to attention.
--fill='the [MASK] sat' prints what an encoder that has learned to guess masked tokens puts there.
"""

import base64
import contextlib
import functools
import math
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from gpt_jax import atomic, cli, config, errors, knobs, progress, user_cache
from gpt_jax.generation import settings as settings_lib

if TYPE_CHECKING:
  from gpt_jax.downstream import activations
  from gpt_jax.generation import options
  from gpt_jax.generation.language_model import LanguageModel

ALIASES = {'data.source': 'data', 'data.text_field': 'data', 'tokens': 'data'}
_ALONE = ('kernel', 'mask')
_OF_PROMPT = ('next', 'lens', 'generation', 'attention')
_OF_MODEL = ('parameters', *_OF_PROMPT, 'loss', 'page')
_MOST_TOKENS, _MOST_DATA = 128, 4096  # that a map can show, and that losses are measured on
_SETTINGS = {'max_new_tokens': 12, 'temperature': 0.8, 'top_k': 200, 'seed': 0}
_VISIBLE = str.maketrans({' ': '·', '\n': '↵', '\t': '→'})


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  string('model', None, cli.MODEL)
  string('prompt', '', 'The text to look at.')
  string('fill', '', 'A text with [MASK] in it: print the likeliest tokens there.')
  names = ', '.join(_OF_MODEL + _ALONE)
  string('picture', '', f'What to show, separated by commas: {names}; empty: all of a model.')
  string('data', None, 'Text to measure losses on, such as text:FILE (default: the prompt).')
  string('output', '', 'Folder to write to (default: pictures, and in it one named as the model).')
  define: dict[type, Any] = {int: flags.DEFINE_integer, float: flags.DEFINE_float}
  for knob in knobs.knobs(settings_lib.Settings()):
    if knob.key in _SETTINGS:
      kind: Any = knob.field.type
      define[kind](knob.key, _SETTINGS[knob.key], knob.field.metadata['doc'], flag_values=values)
  return values


def main(values: flags.FlagValues) -> None:
  names, request = _check(values)
  with progress.doing('starting'):
    from gpt_jax.downstream import pictures  # slow, so after the checks

  for name in [name for name in _ALONE if name in names]:
    _write(values, f'{name}.png', pictures.png(getattr(pictures, name)()))
  if values.fill:
    _fill(values)
  elif set(_OF_MODEL) & names:
    _look(values, names, request)


def _check(values: flags.FlagValues) -> 'tuple[set[str], options.Request]':
  """Returns what to show and how to generate; raises `UserError` if it is wrong for any model."""
  from gpt_jax.generation import options  # neither imports JAX

  every = () if values.fill else _OF_MODEL
  names, found = set(values.picture.split(',') if values.picture else every), []
  for name in sorted(names - {*_OF_MODEL, *_ALONE}):
    problem = f'{name!r} must be one of {", ".join(_OF_MODEL + _ALONE)}'
    near = knobs.suggestion(name, _OF_MODEL + _ALONE)
    found.append(errors.UserError('picture', problem, near))
  if names == {'page'}:
    names |= set(_OF_MODEL)
  if values.fill and names:
    found.append(errors.UserError('picture', 'cannot be combined with `fill`'))
  if (values.fill or names & set(_OF_MODEL)) and not values.model:
    found.append(errors.UserError('model', 'must be given', 'for example runs/quickstart'))
  if not values.prompt and names & {*_OF_PROMPT, '' if values.data else 'loss'}:
    found.append(errors.UserError('prompt', 'is empty', 'give a text to look at'))
  for name, text in (('prompt', values.prompt), ('fill', values.fill)):
    if not knobs.is_utf8(text):
      found.append(errors.UserError(name, 'is not UTF-8'))
  if values.output and pathlib.Path(values.output).is_file():
    found.append(errors.UserError('output', f'{values.output} is a file', 'name a folder'))
  settings: dict[str, Any] = {name: values[name].value for name in _SETTINGS}
  try:
    request = options.make(**settings)
  except errors.UserError as e:
    found.append(e)
  errors.raise_all(found)
  return names, request


def _fill(values: flags.FlagValues) -> None:
  """Prints the likeliest tokens in the place of each mask."""
  from gpt_jax.downstream import activations
  from gpt_jax.generation import language_model, prompts

  model = language_model.load(values.model)
  guesses = activations.fillings(model, values.fill, functools.partial(_spell, model.tokenizer))
  _print(values.fill, [prompts.MASK] * len(guesses), guesses)


def _look(values: flags.FlagValues, names: set[str], request: 'options.Request') -> None:
  """Prints, draws and writes `names` of a model."""
  with progress.doing(f'loading {values.model}'):
    from gpt_jax import models
    from gpt_jax.downstream import activations, pictures

    model, ids, names = _open(values, names)
  spell, follows = functools.partial(_spell, model.tokenizer), [*ids[1:], None]
  prompt, size = [spell(i) for i in ids], model.config.vocab_size
  title = values.model + ('' if model.step is None else f', step {model.step}')
  summary = f'{models.parameter_count(model.config):,} parameters, {size:,} tokens'
  summary += f', context {model.config.block_size:,}'
  data: dict[str, Any] = {'title': title, 'summary': summary, 'prompt': prompt}
  print(f'{title}\n{summary}')
  if 'parameters' in names:
    data['parameters'] = [
      (f'{path:<24}', f'{shape:>13}', f'{copies:>5}', f'{count:>14,}', f'{size:>15,}')
      for path, shape, copies, count, size in activations.parameters(model.params)
    ]
    print('\nwhat it is made of: arrays, shapes, copies, values, bytes')
    print(*('  ' + ''.join(row) for row in data['parameters']), sep='\n')
  if 'next' in names:
    data['next'] = activations.guesses(model.logits([ids])[0], follows, spell)
    _print('what it expects: each token, the next one, and the likeliest', prompt, data['next'])
  if 'lens' in names:
    layers = activations.lens(model, ids)
    data['lens'] = [activations.guesses(logits_LV, follows, spell) for logits_LV in layers]
    labels = ['embedding', *(f'layer {i}' for i in range(model.config.n_layer))]
    _print('what each layer would say next', labels, [layer[-1] for layer in data['lens']])
  if 'generation' in names:
    with progress.doing('generating'):
      data['generation'] = activations.generation(model, ids, request, spell)
    labels = [str(i + 1) for i in range(len(data['generation']))]
    _print('how it goes on: each new token, and the likeliest', labels, data['generation'])
  print()
  if 'loss' in names:
    image = pictures.png(_losses(values, model, ids))
    data['loss'] = base64.b64encode(image).decode()
    _write(values, 'loss.png', image)
  if 'attention' in names:
    weights_NHLM = activations.attention(model, ids)
    data |= {'heads': weights_NHLM.shape[:2], 'attention': pictures.packed(weights_NHLM)}
    _write(values, 'attention.png', pictures.png(pictures.attention(weights_NHLM)))
  if 'page' in names:
    _write(values, 'index.html', pictures.page(data))


def _open(values: flags.FlagValues, names: set[str]) -> 'tuple[LanguageModel, list[int], set[str]]':
  """Returns the model, the prompt's tokens, and those of `names` that there are of them."""
  from gpt_jax.generation import language_model

  user_cache.enable_compilation_cache()
  model = language_model.load(values.model)
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  model.check_plain()
  ids = model.encode(values.prompt)
  if len(ids) > _MOST_TOKENS:
    problem = f'has {len(ids)} tokens, more than a map can show, {_MOST_TOKENS}'
    raise errors.UserError('prompt', problem)
  lacks = dict[str, str]()
  if model.config.kind == 'lstm':
    lacks |= dict.fromkeys(('lens', 'attention'), 'the model has no attention')
  if model.config.kind == 'encoder':
    lacks |= dict.fromkeys(('next', 'lens', 'generation', 'loss'), 'the model sees both sides')
  if model.config.classes:
    lacks |= dict.fromkeys(('next', 'lens', 'generation', 'loss'), 'the model classifies texts')
  if len(ids) == 1 and not values.data:
    lacks['loss'] = 'the prompt is a single token'
  asked = [name for name in values.picture.split(',') if name in lacks]
  errors.raise_all([errors.UserError('picture', f'{name}: {lacks[name]}') for name in asked])
  return model, ids, names - set(lacks)


def _print(title: str, labels: list[str], guesses: 'list[activations.Guess]') -> None:
  rows = []
  for label, (candidates, follows, p, rank) in zip(labels, guesses, strict=True):
    fact = '' if follows is None else f'{follows} {p:.1%}, rank {rank}'
    rows.append((label, fact, *(f'{text} {p:.1%}' for text, p in candidates)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  print(f'\n{title}')
  for row in rows:
    cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
    print('  ' + '   '.join(cells).rstrip())


def _losses(values: flags.FlagValues, model: 'LanguageModel', ids: list[int]) -> Any:
  """Draws the losses of a run, and of its model and an untrained one on the same tokens."""
  import numpy as np

  from gpt_jax.data.batches import stream
  from gpt_jax.downstream import activations, pictures
  from gpt_jax.evaluation import corpus, perplexity, scoring
  from gpt_jax.training import metrics

  path, lines = pathlib.Path(values.model).absolute(), []
  if model.step is not None:  # a workdir, or a checkpoint in one
    run = path.parents[1] if path.parent.name == 'checkpoints' else path
    lines = metrics.read(run / 'metrics.jsonl')
  levels = {'all tokens equally likely, ln V': math.log(model.config.vocab_size)}
  with progress.Bar() as bar, contextlib.ExitStack() as stack:
    tokens = stream.Tokens((np.array(ids),))
    if values.data:
      given: Any = {'tokenizer': model.tokenizer, 'split': '', 'limit': _MOST_DATA}
      given |= {'text_field': config.DataConfig().text_field, 'invalid_utf8': 'replace'}
      tokens = stack.enter_context(corpus.open_tokens(values.data, progress=bar.show, **given))
    for name, each in (('untrained', activations.untrained(model)), ('trained', model)):
      scorer, stride = scoring.Scorer(each, batch_size=4), model.config.block_size
      found = perplexity.measure(scorer, tokens, stride=stride, progress=bar.show)
      levels[f'{name}, on {values.data or "the prompt"}'] = found.loss
  return pictures.loss(lines, levels)


def _spell(tokenizer: Any, token: int) -> str:
  """Returns a token as visible text on one line."""
  text = tokenizer.token_bytes(token).decode('utf-8', 'backslashreplace').translate(_VISIBLE)
  text = ''.join(c if c.isprintable() else f'\\u{ord(c):04x}' for c in text)
  return text or f'⟨{token}⟩'  # special tokens have no text


def _write(values: flags.FlagValues, name: str, content: bytes) -> None:
  """Writes a file and says so."""
  model = pathlib.Path(values.model or '')
  run = model.parents[1].name if model.parent.name == 'checkpoints' else ''
  folder = pathlib.Path(values.output or pathlib.Path('pictures', run, model.name))
  folder.mkdir(parents=True, exist_ok=True)
  atomic.write_bytes(folder / name, content)
  print(f'wrote {folder / name}')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, aliases=ALIASES)
