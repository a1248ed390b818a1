"""Classify texts: python -m gpt_jax.classify --model=runs/sentiment --text="A wonderful film"

Prints the most likely class of each text, and how likely each class is. The model is one that was
trained with task=classify. --texts=- reads texts from standard input, one a line.
"""

import functools
import sys
import textwrap

from absl import flags

from gpt_jax import cli, errors, knobs, progress, user_cache


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  string('model', None, "A classifier: a run's workdir, or one checkpoint in it.")
  string('text', None, 'The text.')
  string('texts', None, 'A file with a text on each line, or - for standard input.')
  cli.define_json(values)
  return values


def main(values: flags.FlagValues) -> None:
  texts = _texts(values)
  with progress.doing(f'loading {values.model}'):
    from gpt_jax.downstream import classify  # slow, so after the checks
    from gpt_jax.generation import language_model

    user_cache.enable_compilation_cache()
    model = language_model.load(values.model)
  with progress.Bar() as bar, errors.placed('texts', [place for place, _ in texts]):
    bar.show('compiling', 0, 1)
    found = classify.classify(model, [text for _, text in texts], progress=bar.show)
  size = model.config.block_size
  windows = [-(-each.tokens // size) for each in found if each.tokens > size]
  if windows:
    longer = f'longer than the context of {size} tokens: {len(windows)} of {len(found)} texts'
    print(f'{longer}, read in up to {max(windows)} windows', file=sys.stderr)
  for (_, text), each in zip(texts, found, strict=True):
    record = {'text': text, 'label': each.label, 'probabilities': each.probabilities}
    chances = '  '.join(f'{name} {p:6.1%}' for name, p in each.probabilities.items())
    line = f'{each.label:<10}{chances}  {textwrap.shorten(text, 50, placeholder="…")}'
    cli.show(values, [record], line)


def _texts(values: flags.FlagValues) -> list[tuple[str, str]]:
  """Returns the place and the text of each; raises `UserError` for what no model can read."""
  from gpt_jax.generation import parsing  # imports no JAX

  found = []
  if not values.model:
    found.append(errors.UserError('model', 'must be given', 'for example runs/sentiment'))
  if (values.text is None) == (values.texts is None):
    problem = (
      'must be given, or `texts`' if values.text is None else 'cannot be combined with `texts`'
    )
    found.append(errors.UserError('text', problem, 'give one of them'))
  elif values.text is not None and not knobs.is_utf8(values.text):
    found.append(errors.UserError('text', 'is not UTF-8', 'put it into a file for `texts`'))
  errors.raise_all(found)
  if values.texts is None:
    texts = [('text', values.text)]
  else:
    texts = parsing.read_lines(values.texts, key='texts', kind='text')
  errors.raise_all([errors.UserError(place, 'is empty') for place, t in texts if not t.strip()])
  return texts


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__)
