"""Text from TFDS data sets, read without TensorFlow; the only module that imports TFDS."""

import contextlib
import functools
import io
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gpt_jax import config, errors
from gpt_jax.data.sources import corpus

_READ_BYTES = 1 << 20
_READ_EXAMPLES = 512  # more at once is no faster
_TRIES = 3
_CONNECT_SECONDS = 10
_SILENT_SECONDS = 60  # between two bytes of a download


def open_source(spec: str, name: str, *, text_field: str) -> corpus.Source:
  """The TFDS data set `name`, prepared in `TFDS_DATA_DIR` or, if it isn't, prepared now.

  Splits come in the order train, validation, test, others by name.

  Args:
    spec: What the user wrote.
    name: As TFDS writes it: `imdb_reviews`, `wiki40b/en`, `pg19:0.1.1`.
    text_field: The feature to read; where none is called by the default `text`, the only text.

  Raises:
    UserError: No such data set, no such text in it, or it can't be prepared here.
  """
  with _quiet():
    builder = _builder(name)
    feature = _text_feature(name, builder.info.features, text_field)
    if not builder.is_prepared():
      builder = _prepare(name)
    available = builder.info.available_file_formats()
  if not available & tfds.core.FileFormat.with_random_access():
    raise errors.UserError(
      f'tfds:{name} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which '
      'needs TensorFlow to be read. Set TFDS_DATA_DIR to another folder and prepare it as '
      f'array_record: {_command(name)}'
    )
  return corpus.Source(spec, tuple(_parts(builder, feature)), _fingerprint(builder, feature))


def _parts(builder: tfds.core.DatasetBuilder, feature: str) -> Iterator[corpus.Part]:
  """Ranges of the examples of each split."""
  splits = builder.info.splits
  full = corpus.part_bytes(sum(split.num_bytes for split in splits.values()))
  for name in sorted(splits, key=corpus.split_rank):
    length, size = splits[name].num_examples, splits[name].num_bytes
    step = max(1, length * full // max(1, size))
    for start in range(0, length, step):
      stop = min(start + step, length)
      yield corpus.Part(
        f'{builder.info.full_name} {name}[{start}:{stop}]',
        name,
        int(size * (stop - start) // length),
        functools.partial(_read, str(builder.data_dir), feature, name, start, stop),
      )


def _fingerprint(builder: tfds.core.DatasetBuilder, feature: str) -> dict[str, Any]:
  """Name, configuration, version and the size of each split."""
  splits = builder.info.splits
  sizes = {
    name: [splits[name].num_examples, int(splits[name].num_bytes)]
    for name in sorted(splits, key=corpus.split_rank)
  }
  return {'name': builder.info.full_name, 'feature': feature, 'splits': sizes}


@functools.lru_cache
def _reopen(directory: str) -> tfds.core.DatasetBuilder:
  """A prepared data set, in the process that reads it."""
  with _quiet():
    return tfds.builder_from_directory(directory)


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
    raise errors.UserError(
      f'split {split} of {name} is damaged ({_line(e)}): delete {directory} and prepare it again.'
    ) from e


def _builder(name: str, **options: str) -> tfds.core.DatasetBuilder:
  try:
    # TFDS itself looks at TFDS_DATA_DIR only once, when it is imported.
    return tfds.builder(name, data_dir=os.environ.get('TFDS_DATA_DIR') or None, **options)
  except tfds.core.registered.DatasetNotFoundError as e:
    hint = (
      'check the name at https://www.tensorflow.org/datasets. Some data sets can be prepared (as '
      'array_record) only where TensorFlow is installed; then set TFDS_DATA_DIR to their folder.'
    )
    if near := re.search(r'Did you mean: .* -> (\S+)', str(e)):
      hint = f'did you mean tfds:{near[1]}?'
    raise errors.UserError(
      f'tfds:{name}: no data set of this name is prepared, nor can TFDS prepare one here; {hint}'
    ) from e
  except (ValueError, AssertionError, ImportError, OSError) as e:
    raise errors.UserError(f'tfds:{name}: TFDS cannot open this data set: {_line(e)}') from e


def _prepare(name: str) -> tfds.core.DatasetBuilder:
  """Downloads and prepares a data set, in the file format that is read without TensorFlow."""
  builder = _builder(name, file_format='array_record')
  where = f'tfds:{name} is not prepared in {builder.data_dir}'
  elsewhere = (
    'or set TFDS_DATA_DIR to a folder in which it is prepared as array_record; the command that '
    f'prepares it: {_command(name)}'
  )
  try:
    builder.download_and_prepare()
  except ImportError as e:
    missing = str(e.name).partition('.')[0]
    need = '-e .[prepare]' if missing == 'tensorflow' else missing
    raise errors.UserError(
      f'{where}, and preparing it needs {missing}: pip install {need}, {elsewhere}'
    ) from e
  except (requests.exceptions.RequestException, tfds.download.DownloadError) as e:
    raise errors.UserError(
      f'{where}, and downloading it failed ({_line(e)}): connect to the network, {elsewhere}'
    ) from e
  except (OSError, ValueError, AssertionError, RuntimeError) as e:
    raise errors.UserError(
      f'{where}, and preparing it failed ({_line(e)}): mend that, {elsewhere}'
    ) from e
  return builder


def _line(e: Exception) -> str:
  """The message of `e`, which may be many lines long, in one."""
  return ' '.join(str(e).split())


def _command(name: str) -> str:
  return (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
  )


def _text_feature(name: str, features: tfds.features.FeaturesDict, text_field: str) -> str:
  """The name of the feature to read."""
  texts: list[str] = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
  if text_field in texts:
    return text_field
  if len(texts) == 1 and text_field == config.DataConfig().text_field:
    return texts[0]
  found = (
    f'no text feature called {text_field}, only {", ".join(texts)}' if texts else 'no text feature'
  )
  fix = 'name one with --config.data.text_field' if texts else 'name another data set'
  raise errors.UserError(f'tfds:{name} has {found} (its features: {", ".join(features)}); {fix}.')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS's chatter from the terminal (not its progress bars), and its patience short.

  What goes wrong reaches the user as one message; ten tries of a download would take minutes, and
  TFDS itself would wait for a silent server for ever.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'urllib3.connectionpool')]
  tries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _TRIES
  adapter = requests.adapters.HTTPAdapter
  vars(requests.adapters)['HTTPAdapter'] = _ImpatientAdapter
  for logger in loggers:
    logger.addFilter(_drop)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    for logger in loggers:
      logger.removeFilter(_drop)
    downloader.MAX_RETRIES = tries
    vars(requests.adapters)['HTTPAdapter'] = adapter


class _ImpatientAdapter(requests.adapters.HTTPAdapter):
  """Gives every request a time-out."""

  def send(self, *args: Any, **kwargs: Any) -> requests.Response:
    return super().send(*args, **{**kwargs, 'timeout': (_CONNECT_SECONDS, _SILENT_SECONDS)})


def _drop(record: logging.LogRecord) -> bool:
  return False
