"""Text from TFDS data sets, read without TensorFlow; the only module that imports TFDS."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds

from gpt_jax import config, errors
from gpt_jax.data.sources import corpus, files

_READ_BYTES = 1 << 20
_READ_EXAMPLES = 512  # more at once is no faster
_FIX = (
  "if it lacks TensorFlow, pip install 'gpt_jax[prepare]', or set TFDS_DATA_DIR to a folder in "
  'which it is prepared as array_record'
)


def open_source(spec: str, name: str, *, text_field: str, label_field: str = '') -> corpus.Source:
  """Opens the TFDS data set `name` in `TFDS_DATA_DIR`; downloads and prepares it if it is missing.

  `name` is spelled as TFDS does: `imdb_reviews`, `wiki40b/en`, `pg19:0.1.1`. If no feature is
  called by the default of `text_field`, the only text is read; `label_field` is a feature of
  integers, or of classes, which have names. Splits come in the order train, validation, test,
  others by name; `[train+test]` behind the name reads these alone. Raises `UserError`.
  """
  name, _, wanted = name.removesuffix(']').partition('[')
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
  splits, features = builder.info.splits, builder.info.features
  names = sorted(splits, key=corpus.split_rank)
  if wanted:
    if unknown := set(wanted.split('+')) - set(names):
      problem = f'{name} has no split {unknown.pop()}'
      raise errors.UserError('data.source', problem, f'it has {", ".join(names)}')
    names = [split for split in names if split in wanted.split('+')]
  if label_field and label_field not in features:
    problem = f'tfds:{name} has no feature {label_field!r}'
    raise errors.UserError('data.label_field', problem, f'it has {", ".join(features)}')
  fields = [feature, *filter(None, [label_field])]
  full = corpus.part_bytes(sum(splits[split].num_bytes for split in names))
  parts = []
  for split in names:
    length, size = splits[split].num_examples, splits[split].num_bytes
    step = max(1, length * full // max(1, size))
    for start in range(0, length, step):
      stop = min(start + step, length)
      read = functools.partial(_read, str(builder.data_dir), fields, split, start, stop)
      parts.append(corpus.Part(split, int(size * (stop - start) // length), read))
  sizes = {split: [splits[split].num_examples, int(splits[split].num_bytes)] for split in names}
  fingerprint = {'name': builder.info.full_name, 'fields': fields, 'splits': sizes}
  return corpus.Source(spec, tuple(parts), fingerprint)


# A prepared data set, in the process that reads it.
_reopen = functools.lru_cache(tfds.builder_from_directory)


def _read(
  directory: str, fields: Sequence[str], split: str, start: int, stop: int
) -> Iterator[corpus.Piece]:
  """Streams the texts of examples [start, stop), with their classes if there is a second field."""
  info = _reopen(directory).info
  name = info.full_name  # slow to make
  # Decoded here, so that the other features of an example cost nothing.
  wanted = tfds.features.FeaturesDict({field: info.features[field] for field in fields})
  names = getattr(info.features[fields[-1]], 'names', None)
  mean = info.splits[split].num_bytes // info.splits[split].num_examples
  at_once = max(1, min(_READ_EXAMPLES, _READ_BYTES // max(1, mean)))
  try:
    data = _reopen(directory).as_data_source(
      split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for first in range(start, stop, at_once):
      records = data.__getitems__(range(first, min(first + at_once, stop)))
      for number, record in enumerate(records, first):
        text, *labels = map(wanted.deserialize_example_np(record).get, fields)
        if text is None:  # what TFDS gives for a file that was cut short
          raise RuntimeError(f'example {number} has no text')
        label = ''
        if labels and labels[0] >= 0:  # -1 says that there is none
          label = names[labels[0]] if names else str(labels[0])
        yield corpus.Piece(f'{name} {split} example {number}', text, label=label)
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
