"""The text of a run: token ids from the store, and the batches that each step takes from them."""

import dataclasses
import functools
import sys

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax.data import batches, prepare, store, tokenizers
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib
from gpt_jax.training import stopping


def load(
  data: config_lib.DataConfig, stop: stopping.StopRequest
) -> tuple[tokenizers.Tokenizer, store.Store]:
  """The tokenizer and the tokens of the text, made on first use, with a line of progress."""
  shown = False

  def progress(documents: int, characters: int, tokens: int) -> None:
    nonlocal shown
    if sys.stderr.isatty():
      shown = True
      line = f'\rtext: {documents:,} documents, {characters:,} characters, {tokens:,} tokens'
      print(line, end='', file=sys.stderr, flush=True)

  try:
    return prepare.prepare(data, progress=progress, check=stop.check)
  finally:
    if shown:
      print(file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Text:
  """The token ids to train on and to validate on, memory-mapped."""

  train: np.ndarray
  val: np.ndarray

  def train_batch(self, program: program_lib.Program, step: int) -> step_lib.Batch:
    """The batch of step `step` (0-based): a function of it and `data.seed` alone."""
    config = program.config
    starts = batches.train_starts(
      len(self.train),
      block_size=config.model.block_size,
      batch_size=config.train.batch_size,
      seed=config.data.seed,
      step=step,
    )
    return _batch(program, self.train, starts)

  def val_batch(self, program: program_lib.Program, index: int) -> step_lib.Batch:
    """One of the `train.eval_batches` fixed batches."""
    config = program.config
    starts = batches.val_starts(
      len(self.val),
      block_size=config.model.block_size,
      batch_size=config.train.batch_size,
      num_batches=config.train.eval_batches,
      index=index,
    )
    return _batch(program, self.val, starts)


def _batch(program: program_lib.Program, tokens: np.ndarray, starts: np.ndarray) -> step_lib.Batch:
  abstract = program.batch.inputs_ABL
  length = abstract.shape[-1]

  def rows(offset: int, wanted: np.ndarray) -> np.ndarray:
    return batches.windows(tokens, starts[wanted] + offset, length)

  inputs, targets = (
    mesh_lib.global_batch(functools.partial(rows, offset), abstract.shape, abstract.sharding)
    for offset in (0, 1)
  )
  return step_lib.Batch(inputs, targets)
