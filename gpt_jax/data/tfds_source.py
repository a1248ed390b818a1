"""Text from TFDS data sets, read without TensorFlow; the only module that imports TFDS."""

import contextlib
import dataclasses
import io
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from gpt_jax import errors

_READ_AT_ONCE = 64  # examples; fewer is slower, and a book set's examples are large
_FIRST_SPLITS = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The text feature `feature` of all splits of a prepared data set."""

  builder: tfds.core.DatasetBuilder
  feature: str

  def documents(self) -> Iterator[str]:
    """Streams the texts: splits train, validation, test, then the others by name.

    Raises:
      UserError: The data set's files are damaged, or its text isn't UTF-8.
    """
    for split in self._splits():
      try:
        yield from self._read(split)
      except (RuntimeError, UnicodeDecodeError) as e:
        raise errors.UserError(
          f'split {split} of {self.builder.info.full_name} is damaged ({e}): delete '
          f'{self.builder.data_dir} and prepare it again.'
        ) from e

  def fingerprint(self) -> dict[str, Any]:
    """Name, configuration, version and the size of each split."""
    info = self.builder.info
    sizes = {
      name: [info.splits[name].num_examples, int(info.splits[name].num_bytes)]
      for name in self._splits()
    }
    return {'name': info.full_name, 'feature': self.feature, 'splits': sizes}

  def _splits(self) -> list[str]:
    names = set(self.builder.info.splits)
    return [s for s in _FIRST_SPLITS if s in names] + sorted(names.difference(_FIRST_SPLITS))

  def _read(self, split: str) -> Iterator[str]:
    data = self.builder.as_data_source(split=split)
    for start in range(0, len(data), _READ_AT_ONCE):
      for example in data.__getitems__(range(start, min(start + _READ_AT_ONCE, len(data)))):
        if example[self.feature] is None:  # what TFDS gives for a file that was cut short
          raise RuntimeError(f'an example among {start} to {start + _READ_AT_ONCE} has no text')
        yield example[self.feature].decode('utf-8')


def open_corpus(name: str) -> Corpus:
  """The TFDS data set `name`, prepared in `TFDS_DATA_DIR` or, if it isn't, prepared now.

  Args:
    name: As TFDS writes it: `imdb_reviews`, `wiki40b/en`, `pg19:0.1.1`.

  Raises:
    UserError: No such data set, no text in it, or it can't be prepared here.
  """
  with _quiet():
    builder = _builder(name)
    feature = _text_feature(name, builder.info.features)
    if not builder.is_prepared():
      builder = _prepare(name)
    available = builder.info.available_file_formats()
  if not available & tfds.core.FileFormat.with_random_access():
    raise errors.UserError(
      f'tfds:{name} is prepared in {builder.data_dir} as {builder.info.file_format.value}, which '
      'needs TensorFlow to be read. Set TFDS_DATA_DIR to another folder and prepare it as '
      f'array_record: {_command(name)}'
    )
  return Corpus(builder, feature)


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


def _text_feature(name: str, features: tfds.features.FeaturesDict) -> str:
  """The name of the feature to read: the only text, or the one called `text`."""
  texts: list[str] = [k for k, v in features.items() if isinstance(v, tfds.features.Text)]
  if len(texts) == 1:
    return texts[0]
  if 'text' in texts:
    return 'text'
  found = f'{len(texts)} text features and none is called text' if texts else 'no text feature'
  raise errors.UserError(
    f'tfds:{name} has {found} (its features: {", ".join(features)}); name another data set.'
  )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS's chatter from the terminal (not its progress bars), and its patience short.

  What goes wrong reaches the user as one message; ten tries of a download would take minutes.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'urllib3.connectionpool')]
  tries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 3
  for logger in loggers:
    logger.addFilter(_drop)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    for logger in loggers:
      logger.removeFilter(_drop)
    downloader.MAX_RETRIES = tries


def _drop(record: logging.LogRecord) -> bool:
  return False
