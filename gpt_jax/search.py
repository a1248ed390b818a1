"""Search by meaning: python -m gpt_jax.search --model=RUN --corpus=text:*.txt --query="a sad story"

Prints the documents that are nearest to each query. What the model says of the corpus is kept in an
index, so that only the first search takes long.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import sys
import textwrap
import time
from typing import Any

from absl import flags

from gpt_jax import cli, config, errors, knobs, progress, user_cache, validation

ALIASES = {'data.source': 'corpus'} | {f'data.{x}': x for x in ('text_field', 'invalid_utf8')}
_NEEDED = ('model', 'corpus')
_POOLINGS = ('centered', 'mean', 'half_whitened', 'whitened', 'last')  # best first


def define_flags() -> flags.FlagValues:
  values, data = flags.FlagValues(), config.DataConfig()
  string = functools.partial(flags.DEFINE_string, flag_values=values)
  string('model', None, cli.MODEL)
  string('corpus', None, 'Where to search: text:GLOB, jsonl:GLOB, parquet:GLOB or tfds:NAME.')
  flags.DEFINE_multi_string('query', None, '', flag_values=values)
  values['query'].help = 'What to search for; may be repeated.'  # absl would add words of its own
  string('queries', None, 'A file with a query on each line, or - for standard input.')
  flags.DEFINE_integer('top', 5, 'Number of documents per query.', flag_values=values)
  doc = f'What stands for a text, of its hidden states: {", ".join(_POOLINGS)}.'
  string('pooling', _POOLINGS[0], doc)
  string('index', '', 'Folder of the index (default: one in the cache).')
  string('split', '', 'Split of the corpus, such as train; empty: all of it.')
  string('text_field', data.text_field, 'Field, column or feature that holds the text.')
  string('invalid_utf8', data.invalid_utf8, 'fail at bytes that are not UTF-8, or replace them.')
  cli.define_json(values)
  return values


def main(values: flags.FlagValues) -> None:
  queries = _check(values)
  with progress.doing(f'loading {values.model}'):
    from gpt_jax.downstream import search  # slow, so after the checks
    from gpt_jax.generation import language_model

    user_cache.enable_compilation_cache()
    model = language_model.load(values.model)
  corpus = _corpus(values)  # after the model: TFDS tries for minutes to find what is missing
  made_of = search.identity(model, corpus, pooling=values.pooling)
  path = pathlib.Path(values.index or user_cache.folder() / 'search' / _name(values, made_of))
  if not path.exists():
    began = time.monotonic()
    with progress.Bar() as bar:
      options: Any = {'invalid_utf8': values.invalid_utf8, 'progress': bar.show}
      search.build(path, model, corpus, made_of, **options)
    print(f'made the index in {time.monotonic() - began:.1f} s: {path}', file=sys.stderr)
  index = search.open_index(path, made_of)
  began = time.monotonic()
  places, texts = zip(*queries, strict=True)
  with progress.doing('searching'), errors.placed('texts', places):
    found = index.search(model, texts, top=values.top)
  seconds = time.monotonic() - began
  print(f'searched {len(index.documents):,} documents in {seconds:.3f} s', file=sys.stderr)
  for (_, query), hits in zip(queries, found, strict=True):
    lines = [query]
    for rank, hit in enumerate(hits, 1):
      lines.append(f'{rank:>3}  {hit.score:.3f}  {hit.place}')
      lines.append(textwrap.indent(textwrap.fill(hit.snippet, 90), ' ' * 5))
    record = {'query': query, 'hits': [hit._asdict() for hit in hits]}
    cli.show(values, [record], '\n'.join(lines))


def _check(values: flags.FlagValues) -> list[tuple[str, str]]:
  """Returns the place and the text of each query; raises `UserError` for what is always invalid."""
  from gpt_jax.generation import parsing  # imports no JAX

  data = config.DataConfig(text_field=values.text_field, invalid_utf8=values.invalid_utf8)
  found = validation.problems(config.Config(data=data))
  found += [errors.UserError(name, 'must be given') for name in _NEEDED if not values[name].value]
  if (values.corpus or '').startswith('tokens:'):
    found.append(errors.UserError('corpus', f'{values.corpus} has tokens', 'name a source of text'))
  if values.top < 1:
    found.append(errors.UserError('top', f'{values.top} must be at least 1'))
  if values.pooling not in _POOLINGS:
    problem = f'{values.pooling!r} must be one of {", ".join(_POOLINGS)}'
    found.append(errors.UserError('pooling', problem, knobs.suggestion(values.pooling, _POOLINGS)))
  if not values.query and values.queries is None:
    found.append(errors.UserError('query', 'must be given, or `queries`'))
  errors.raise_all(found)
  queries = [('query', text) for text in values.query or []]
  if values.queries is not None:
    queries += parsing.read_lines(values.queries, key='queries', kind='query')
  for place, text in queries:
    if not text.strip() or not knobs.is_utf8(text):
      found.append(errors.UserError(place, 'is not UTF-8' if text.strip() else 'is empty'))
  errors.raise_all(found)
  return queries


def _corpus(values: flags.FlagValues) -> Any:
  """Returns the source to search in, or the split of it; raises `UserError`."""
  from gpt_jax.data import sources

  corpus = sources.open_single(values.corpus, text_field=values.text_field)
  parts = tuple(part for part in corpus.parts if values.split in ('', part.split))
  if not parts:
    have = ', '.join(sorted({part.split for part in corpus.parts} - {''})) or 'none'
    problem = f'{values.split!r} is not a split of {values.corpus}'
    raise errors.UserError('split', problem, f'it has: {have}')
  return dataclasses.replace(corpus, parts=parts)


def _name(values: flags.FlagValues, made_of: dict[str, str]) -> str:
  """Returns the name of an index in the cache: readable, with a hash of what it is made of."""
  names = f'{pathlib.Path(values.model).name}-{values.corpus}-{values.split}-{values.pooling}'
  digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
  return f'{re.sub("[^A-Za-z0-9]+", "-", names)[:80]}-{digest[:12]}'


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, aliases=ALIASES)
