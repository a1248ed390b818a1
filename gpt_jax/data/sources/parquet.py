"""Parquet files, such as a Hugging Face data set on disk; the only module that imports pyarrow."""

import contextlib
import functools
import glob
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_jax import errors
from gpt_jax.data.sources import corpus, files

_BATCH_BYTES = 1 << 20
# train-00000-of-00002, with the hash that older versions of `datasets` put behind.
_NUMBERED = re.compile(r'(\w+)-\d+-of-\d+(-[0-9a-f]+)?')


class _Group(NamedTuple):
  """A row group of a file."""

  path: pathlib.Path
  split: str
  number: int
  size: int  # bytes of its text, as it is encoded but not compressed


def open_source(spec: str, pattern: str, *, text_field: str) -> corpus.Source:
  """The texts in column `text_field` of Parquet files.

  Splits are told by the names of files and folders, as Hugging Face gives them, and come in the
  order train, validation, test, others by name; files in the order of their paths.

  Args:
    spec: What the user wrote.
    pattern: A path, a glob, or a folder: all the `.parquet` files anywhere below it.
    text_field: The column; strings, or binary that holds UTF-8.

  Raises:
    UserError: No such file or column, or a file is damaged.
  """
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), '**', '*.parquet')
  paths = files.find('parquet', pattern, ending='.parquet')
  groups: list[_Group] = []
  for path in paths:
    groups += _groups(path, _split(path, pattern), text_field)
  groups.sort(key=lambda g: (corpus.split_rank(g.split), g.path, g.number))
  full = corpus.part_bytes(sum(g.size for g in groups))
  parts: list[corpus.Part] = []
  for split in dict.fromkeys(g.split for g in groups):
    of_split = [g for g in groups if g.split == split]
    for run in corpus.group([g.size for g in of_split], full):
      parts.append(_part(of_split[run], split, text_field))
  fingerprint = {'files': files.describe(paths), 'text_field': text_field}
  return corpus.Source(spec, tuple(parts), fingerprint)


def _part(groups: list[_Group], split: str, field: str) -> corpus.Part:
  rows = [(g.path, g.number) for g in groups]
  name = f'{groups[0].path} from row group {groups[0].number}'
  read = functools.partial(_read, rows, field)
  return corpus.Part(name, split, sum(g.size for g in groups), read)


def _split(path: pathlib.Path, pattern: str) -> str:
  """The split that a file belongs to by its name, else by a folder that the glob left open."""
  if numbered := _NUMBERED.fullmatch(path.stem):
    return corpus.known_split(numbered[1]) or numbered[1]
  if split := corpus.known_split(path.stem):
    return split
  given = pathlib.Path(os.path.abspath(pattern)).parts
  matched = [i for i, part in enumerate(given) if glob.has_magic(part)]
  folders = path.parts[matched[0] : -1] if matched else ()
  for folder in reversed(folders):
    if split := corpus.known_split(folder):
      return split
  return ''


def _groups(path: pathlib.Path, split: str, field: str) -> Iterator[_Group]:
  """The row groups of a file that has a good column `field`."""
  with _opened(path) as file:
    schema = file.schema_arrow
    columns = ', '.join(f'{column.name} ({column.type})' for column in schema)
    if field not in schema.names:
      raise errors.UserError(
        f'{path} has no column {field}, only {columns}; name the one that holds the text with '
        '--config.data.text_field.'
      )
    if not _is_text(schema.field(field).type):
      raise errors.UserError(
        f'{path}: column {field} has {schema.field(field).type}, not text (its columns: '
        f'{columns}); name the one that holds the text with --config.data.text_field.'
      )
    for index in range(file.num_row_groups):
      yield _Group(path, split, index, _column_bytes(file, index, field))


def _is_text(kind: pa.DataType) -> bool:
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  texts = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
  return kind in texts


def _column_bytes(file: pq.ParquetFile, index: int, field: str) -> int:
  group = file.metadata.row_group(index)
  columns = (group.column(i) for i in range(group.num_columns))
  return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == field)


def _read(groups: list[tuple[pathlib.Path, int]], field: str) -> Iterator[corpus.Piece]:
  for path, index in groups:
    with _opened(path) as file:
      if index >= file.num_row_groups or field not in file.schema_arrow.names:
        raise ValueError('it changed while it was read')
      row = sum(file.metadata.row_group(i).num_rows for i in range(index))
      num_rows = file.metadata.row_group(index).num_rows
      mean = _column_bytes(file, index, field) // max(1, num_rows)
      batch_size = max(1, min(num_rows, _BATCH_BYTES // max(1, mean)))
      for batch in file.iter_batches(
        batch_size, row_groups=[index], columns=[field], use_threads=False
      ):
        # As bytes: invalid UTF-8 is for sources.decode to see.
        for text in batch.column(field).cast(pa.large_binary()).to_pylist():
          if text is None:
            raise errors.UserError(
              f'{path} row {row}: column {field} is null, not text; mend the file or name another '
              'column with --config.data.text_field.'
            )
          yield corpus.Piece(f'{path} row {row}', text)
          row += 1


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[pq.ParquetFile]:
  """The file, with what pyarrow says of a bad one as `UserError`, in the `with` as well."""
  try:
    with path.open('rb') as raw, pq.ParquetFile(raw) as file:
      yield file
  except (pa.ArrowException, ValueError) as e:
    raise files.damaged(path, e) from e
  except OSError as e:  # pyarrow raises it without a number for a damaged file
    raise (files.unreadable(path, e) if e.errno else files.damaged(path, e)) from e
