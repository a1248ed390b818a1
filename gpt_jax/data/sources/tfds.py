"""Text from TFDS data sets, read without TensorFlow; the only module that imports TFDS."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from gpt_jax import config, errors
from gpt_jax.data.sources import corpus, files

_READ_BYTES = 1 << 20
_READ_EXAMPLES = 512  # more at once is no faster
_FIX = (
  "if it lacks TensorFlow, pip install 'gpt_jax[prepare]', or set TFDS_DATA_DIR to a folder in "
  'which it is prepared as array_record'
)


def open_source(spec: str, name: str, *, text_field: str) -> corpus.Source:
  """Opens the TFDS data set `name` in `TFDS_DATA_DIR`; downloads and prepares it if it is missing.

  `name` is spelled as TFDS does: `imdb_reviews`, `wiki40b/en`, `pg19:0.1.1`. If no feature is
  called by the default of `text_field`, the only text is read. Splits come in the order train,
  validation, test, others by name. Raises `UserError`.
  """
  # TFDS itself looks at TFDS_DATA_DIR only once, when it is imported.
  open_builder = functools.partial(
    tfds.builder, name, data_dir=os.environ.get('TFDS_DATA_DIR') or None
  )
  try:
    builder = open_builder()
    feature = _text_feature(name, builder.info.features, text_field)
    if not builder.is_prepared():
      builder = open_builder(file_format='array_record')  # is read without TensorFlow
      with contextlib.redirect_stdout(sys.stderr):  # where TFDS shows its progress bars too
        builder.download_and_prepare()
    if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
      raise ValueError(f'the files in {builder.data_dir} need TensorFlow to be read')
  except tfds.core.registered.DatasetNotFoundError as e:
    fix = 'see https://www.tensorflow.org/datasets'
    raise errors.UserError('data.source', f'no TFDS data set is called {name!r}', fix) from e
  except (
    *(ImportError, OSError, ValueError, AssertionError, RuntimeError),
    tfds.download.DownloadError,
  ) as e:
    problem = f'tfds:{name} cannot be opened or prepared ({files.one_line(e)})'
    raise errors.UserError('data.source', problem, _FIX) from e
  splits = builder.info.splits
  names = sorted(splits, key=corpus.split_rank)
  full = corpus.part_bytes(sum(split.num_bytes for split in splits.values()))
  parts = []
  for split in names:
    length, size = splits[split].num_examples, splits[split].num_bytes
    step = max(1, length * full // max(1, size))
    for start in range(0, length, step):
      stop = min(start + step, length)
      read = functools.partial(_read, str(builder.data_dir), feature, split, start, stop)
      parts.append(corpus.Part(split, int(size * (stop - start) // length), read))
  sizes = {split: [splits[split].num_examples, int(splits[split].num_bytes)] for split in names}
  fingerprint = {'name': builder.info.full_name, 'feature': feature, 'splits': sizes}
  return corpus.Source(spec, tuple(parts), fingerprint)


# A prepared data set, in the process that reads it.
_reopen = functools.lru_cache(tfds.builder_from_directory)


def _read(
  directory: str, feature: str, split: str, start: int, stop: int
) -> Iterator[corpus.Piece]:
  """Streams the texts of examples [start, stop)."""
  info = _reopen(directory).info
  name = info.full_name  # slow to make
  # Decoded here, so that the other features of an example cost nothing.
  wanted = tfds.features.FeaturesDict({feature: info.features[feature]})
  mean = info.splits[split].num_bytes // info.splits[split].num_examples
  at_once = max(1, min(_READ_EXAMPLES, _READ_BYTES // max(1, mean)))
  try:
    data = _reopen(directory).as_data_source(
      split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for first in range(start, stop, at_once):
      records = data.__getitems__(range(first, min(first + at_once, stop)))
      for number, record in enumerate(records, first):
        text = wanted.deserialize_example_np(record)[feature]
        if text is None:  # what TFDS gives for a file that was cut short
          raise RuntimeError(f'example {number} has no text')
        yield corpus.Piece(f'{name} {split} example {number}', text)
  except RuntimeError as e:
    problem = f'split {split} is damaged ({files.one_line(e)})'
    raise errors.UserError(directory, problem, 'delete the folder and run again') from e


def _text_feature(name: str, features: tfds.features.FeaturesDict, text_field: str) -> str:
  texts: list[str] = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
  if text_field in texts:
    return text_field
  if len(texts) == 1 and text_field == config.DataConfig().text_field:
    return texts[0]
  problem = f'tfds:{name} has no text feature {text_field!r}'
  raise errors.UserError('data.text_field', problem, f'it has {", ".join(texts) or "none"}')
