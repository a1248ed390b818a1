"""The data of a run: text prepared, verified, split and chunked, ready for any batch."""

import dataclasses
import functools
from collections.abc import Callable

from gpt_jax import config as config_lib
from gpt_jax import errors, progress
from gpt_jax.data import batches, prepare, splits, tokenizers
from gpt_jax.data.batches import chunks


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run is trained and validated on.

  `sources` are in the order of the config; `content_hashes` are of the tokens of each, by its spec.
  """

  tokenizer: tokenizers.Tokenizer
  sources: tuple[splits.Source, ...]
  content_hashes: dict[str, str]
  train: batches.Dataset
  val: batches.Dataset


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
  if config.data.chunks == 'sentences':
    try:
      end_ids = [tokenizer.token_id(token) for token in config.data.sentence_end.split()]
    except errors.UserError as e:
      raise e.at('data.sentence_end') from e
  chunk = functools.partial(
    chunks.chunk,
    config.data,
    block_size=config.model.block_size,
    start_id=tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
    end_ids=end_ids,
    pad_id=(tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id) or 0,
  )
  pairs = [splits.train_and_val(source, config.data) for source in prepared.sources]
  train, val = (
    batches.Dataset(tuple(map(chunk, split_of_each)), prepared.weights, config.data.seed)
    for split_of_each in zip(*pairs, strict=True)
  )
  content_hashes = {source.spec: source.content_hash for source in prepared.sources}
  return Data(tokenizer, prepared.sources, content_hashes, train, val)
