"""The text of a run: prepared, cut into chunks, and made into the batch of each step."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, stopping
from gpt_jax.data import batches, prepare, progress, tokenizers
from gpt_jax.data.batches import chunks
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib

_Made = TypeVar('_Made')
_AHEAD = 2  # batches made while the device works on another


def load(data: config_lib.DataConfig, stop: stopping.StopRequest) -> prepare.Prepared:
  """The tokens of the text, encoded on first use and verified, with a progress bar."""
  with progress.Bar() as bar:
    prepared = prepare.prepare(data, progress=bar.show, check=stop.check)
    if data.verify:
      prepared.verify(bar.show, stop.check)
  return prepared


@dataclasses.dataclass(frozen=True)
class Text:
  """What to train on and what to validate on."""

  train: batches.Dataset
  val: batches.Dataset

  def train_batch(self, program: program_lib.Program, step: int) -> step_lib.Batch:
    """The batch of step `step` (0-based): a function of it and `data.seed` alone."""
    first = step * program.config.train.batch_size
    return _batch(program, lambda rows: self.train.train_rows(first + rows))

  def val_batch(self, program: program_lib.Program, index: int) -> step_lib.Batch:
    """One of the `train.eval_batches` fixed batches."""
    train = program.config.train
    first, total = index * train.batch_size, train.eval_batches * train.batch_size
    return _batch(program, lambda rows: self.val.val_rows(first + rows, total=total))


def cut(config: config_lib.Config, prepared: prepare.Prepared) -> Text:
  """The chunks of a run's text; raises `UserError` if there aren't enough of it."""
  tokenizer = prepared.tokenizer
  start = tokenizer.start_of_text
  padding = [token for token in (tokenizer.padding, tokenizer.end_of_text) if token is not None]
  sides = zip(*(corpus.sides(config.data) for corpus in prepared.tokenized()), strict=True)
  train, val = (
    batches.Dataset(
      chunks=tuple(
        chunks.make(
          config.data,
          side,
          block_size=config.model.block_size,
          start=tokenizer.end_of_text if start is None else start,
          end_ids=_sentence_ends(config.data, tokenizer),
          padding=padding[0] if padding else 0,
        )
        for side in side_of_each
      ),
      weights=prepared.weights,
      seed=config.data.seed,
    )
    for side_of_each in sides
  )
  return Text(train, val)


def _sentence_ends(data: config_lib.DataConfig, tokenizer: tokenizers.Tokenizer) -> Sequence[int]:
  if data.chunks != 'sentences':
    return ()
  try:
    return [tokenizer.token_id(token) for token in data.sentence_end.split()]
  except errors.UserError as e:
    raise errors.UserError(f'data.sentence_end: {e}') from e


def _batch(
  program: program_lib.Program, make_rows: Callable[[np.ndarray], chunks.Rows]
) -> step_lib.Batch:
  abstract = program.batch.inputs_ABL
  return step_lib.Batch(*mesh_lib.global_batch(make_rows, abstract.shape, abstract.sharding))


def ahead(make: Callable[[int], _Made], numbers: Iterable[int]) -> Generator[_Made, None, None]:
  """`make` of each number in turn, made in another thread and put on the devices ahead of use."""
  pool = concurrent.futures.ThreadPoolExecutor(1)
  pending: collections.deque[concurrent.futures.Future[_Made]] = collections.deque()
  try:
    for number in numbers:
      pending.append(pool.submit(make, number))
      if len(pending) > _AHEAD:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
