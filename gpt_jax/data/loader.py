"""The data of a run: text prepared, verified, split and chunked, ready for any batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors, progress
from gpt_jax.data import batches, prepare, splits, tokenizers
from gpt_jax.data.batches import chunks, conversations, spans, stream


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run is trained and validated on.

  `sources` are in the order of the config; `content_hashes` are of the tokens of each, by its spec;
  `classes` are the names of documents' labels, by their numbers (of turns: `conversations.TURNS`).
  """

  tokenizer: tokenizers.Tokenizer
  sources: tuple[splits.Source, ...]
  content_hashes: dict[str, str]
  classes: tuple[str, ...]
  train: batches.Dataset
  val: batches.Dataset
  test: batches.Dataset | None  # None if nothing is held out for tests


def open_data(config: config_lib.Config, *, check: Callable[[], None] | None) -> Data:
  """Opens the data of a run, with a progress bar; prepares what isn't in the cache.

  `check` is called several times a second; what it raises (`errors.Stopped`) ends the work. Raises
  `UserError` as `prepare.prepare` does, and if the tokens aren't what was written, a source has no
  splits of its own, or a split has too little text.
  """
  with progress.Bar(check=check) as bar:
    prepared = prepare.prepare(config.data, progress=bar.show)
    if config.data.verify:
      prepared.verify(progress=bar.show)
  tokenizer = prepared.tokenizer
  end_ids = []
  if (config.data.template or config.task == 'spans') and tokenizer.eos_id is None:
    what = 'the spans' if config.task == 'spans' else 'a response'
    problem = f'the {tokenizer.kind} tokenizer has no eos, which ends {what}'
    raise errors.UserError('data.special_tokens', problem, 'set `data.special_tokens=eos`')
  if config.data.chunks == 'sentences' and config.task != 'classify':
    try:
      end_ids = [tokenizer.token_id(token) for token in config.data.sentence_end.split()]
    except errors.UserError as e:
      raise e.at('data.sentence_end') from e
  start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
  pad_id = (tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id) or 0
  chunk = functools.partial(
    chunks.chunk,
    config.data,
    task=config.task,
    block_size=config.model.block_size,
    start_id=start_id,
    end_ids=end_ids,
    pad_id=pad_id,
  )
  classes = tuple(dict.fromkeys(name for source in prepared.sources for name in source.classes))
  if config.data.template:
    classes = conversations.TURNS
  if config.task == 'classify' and len(classes) < 2:
    held = f'only {classes[0]}' if classes else 'no class'
    problem = f'{config.data.label_field!r} holds {held}'
    fix = 'at least 2 classes are needed; does it name the field that holds them?'
    raise errors.UserError('data.label_field', problem, fix)

  def dataset(split_of_each: Sequence[stream.Split]) -> batches.Dataset:
    rows: Any = tuple(map(chunk, split_of_each))
    if config.task == 'spans':
      ids: Any = (tokenizer.mask_id, tokenizer.eos_id, start_id, pad_id)
      rows = tuple(spans.Spans(each, *ids) for each in rows)
    return batches.Dataset(rows, prepared.weights, config.data.seed)

  of_each = [splits.make(source, config.data, classes) for source in prepared.sources]
  train, val, test = zip(*of_each, strict=True)
  return Data(
    tokenizer=tokenizer,
    sources=prepared.sources,
    content_hashes={source.spec: source.content_hash for source in prepared.sources},
    classes=classes,
    train=dataset(train),
    val=dataset(val),
    test=dataset(test) if all(map(len, test)) else None,
  )
