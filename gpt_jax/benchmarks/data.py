"""Measures how fast the rows of batches are made, from a token store of random documents."""

import dataclasses
import json
import pathlib
import tempfile
import time

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import knobs
from gpt_jax.benchmarks import figures
from gpt_jax.benchmarks import options as options_lib
from gpt_jax.data import loader

_CHARACTERS, _LONGEST = 5_000_000, 2000  # in all; of a document
_LETTERS = np.frombuffer(b'abcdefghijklmnopqrst    .', np.uint8)  # sentences of about 25 tokens


def measure(config: config_lib.Config, options: options_lib.Options) -> list[figures.Figure]:
  """Measures training rows of the config's chunks, in NumPy; tokens are bytes."""
  B, values = config.train.batch_size, []
  with tempfile.TemporaryDirectory() as folder:
    data = loader.open_data(_with_documents(config, pathlib.Path(folder)), check=None)
    for _ in range(1 + options.repeats):  # the first is the warm-up
      began = time.perf_counter()
      for step in range(options.steps):
        data.train.train_rows(np.arange(step * B, (step + 1) * B))
      values.append(options.steps / (time.perf_counter() - began))
  size = B * config.row_length
  rows = f'{B} × {config.row_length}'
  return [
    figures.Figure('batches', 'a second', values[1:], f'{rows} from {data.train.summary}'),
    figures.Figure('rate', 'tokens/s', [size * value for value in values[1:]], config.data.chunks),
  ]


def _with_documents(config: config_lib.Config, folder: pathlib.Path) -> config_lib.Config:
  """Writes documents with classes to `folder`, and returns a config that reads them as bytes."""
  rng, left = np.random.default_rng(config.data.seed), _CHARACTERS
  with (folder / 'documents.jsonl').open('w') as file:
    while left > 0:
      text = rng.choice(_LETTERS, min(left, int(rng.integers(1, _LONGEST)))).tobytes().decode()
      file.write(json.dumps({'text': text, 'class': str(left % 2)}) + '\n')
      left -= len(text)
  if config.data.template:  # there are no conversations here, but documents are packed alike
    config = knobs.replace(config, {'task': 'next_token', 'data.chunks': 'packed'})
  data = dataclasses.replace(
    config.data,
    template='',
    source=f'jsonl:{folder}/documents.jsonl',
    text_field='text',
    label_field='class' if config.task == 'classify' else '',
    tokenizer='byte',
    sentence_end='.',
    split='document',
    cache_dir=str(folder),
  )
  return dataclasses.replace(config, data=data)
