"""Parquet files, such as a Hugging Face data set on disk; the only module that imports pyarrow."""

import contextlib
import functools
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gpt_jax import errors
from gpt_jax.data.sources import corpus, files

_BATCH_BYTES = 1 << 20
_TEXT = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())
# train-00000-of-00002, with the hash that older versions of `datasets` put behind.
_NUMBERED = re.compile(r'(\w+)-\d+-of-\d+(-[0-9a-f]+)?')


class _Group(NamedTuple):
  path: pathlib.Path
  split: str
  number: int
  first_row: int
  num_rows: int
  size: int  # bytes of its text, as it is encoded but not compressed


def open_source(
  spec: str, pattern: str, *, text_field: str, label_field: str = ''
) -> corpus.Source:
  """Opens Parquet files, for the strings (or binary that holds UTF-8) in column `text_field`.

  Classes are the strings or integers in column `label_field`, unless that is empty.
  `pattern` is a path, a glob, or a folder: all the `.parquet` files anywhere below it. Splits are
  named by files and folders, as Hugging Face does, and come in the order train, validation, test,
  others by name; files in the order of their paths. Raises `UserError`.
  """
  pattern = os.path.expanduser(pattern)
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), '**', '*.parquet')
  paths = files.find('parquet', pattern)
  fields = [text_field, *filter(None, [label_field])]
  groups = [g for path in paths for g in _groups(path, _split(path, pattern), *fields)]
  groups.sort(key=lambda g: (corpus.split_rank(g.split), g.path, g.number))
  full = corpus.part_bytes(sum(g.size for g in groups))
  read = functools.partial(_read, fields=fields)
  parts: list[corpus.Part] = []
  for split, found in itertools.groupby(groups, lambda g: g.split):
    of_split = list(found)
    parts += corpus.parts(of_split, [g.size for g in of_split], read, full=full, split=split)
  fingerprint = {'files': files.describe(paths), 'fields': fields}
  return corpus.Source(spec, tuple(parts), fingerprint)


def _split(path: pathlib.Path, pattern: str) -> str:
  """The split that a file belongs to by its name, else by a folder that the glob left open."""
  if numbered := _NUMBERED.fullmatch(path.stem):
    return corpus.known_split(numbered[1]) or numbered[1]
  given = pathlib.Path(os.path.abspath(pattern)).parts
  matched = [i for i, part in enumerate(given) if glob.has_magic(part)]
  folders = path.parts[matched[0] : -1] if matched else ()
  return next(filter(None, map(corpus.known_split, (path.stem, *reversed(folders)))), '')


def _groups(path: pathlib.Path, split: str, field: str, label_field: str = '') -> Iterator[_Group]:
  """The row groups of a file; raises `UserError` unless it has text in column `field`."""
  with _opened(path) as file:
    schema = file.schema_arrow
    if label_field and label_field not in schema.names:
      fix = f'its columns: {", ".join(schema.names)}'
      raise errors.UserError('data.label_field', f'{path} has no column {label_field!r}', fix)
    kind = schema.field(field).type if field in schema.names else None
    if isinstance(kind, pa.DictionaryType):
      kind = kind.value_type
    if kind not in _TEXT:
      columns = ', '.join(f'{column.name} ({column.type})' for column in schema)
      problem = f'{path} has no text in column {field!r}'
      raise errors.UserError('data.text_field', problem, f'its columns: {columns}')
    row = 0
    for number in range(file.num_row_groups):
      group = file.metadata.row_group(number)
      chunks = (group.column(i) for i in range(group.num_columns))
      size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == field)
      yield _Group(path, split, number, row, group.num_rows, size)
      row += group.num_rows


def _read(groups: Sequence[_Group], *, fields: Sequence[str]) -> Iterator[corpus.Piece]:
  field, *label_field = fields
  for path, _, number, row, num_rows, size in groups:
    with _opened(path) as file:
      batch_size = max(1, min(num_rows, num_rows * _BATCH_BYTES // max(1, size)))
      for batch in file.iter_batches(
        batch_size, row_groups=[number], columns=fields, use_threads=False
      ):
        # As bytes: invalid UTF-8 is for sources.decode to see.
        texts = batch.column(field).cast(pa.large_binary()).to_pylist()
        labels = batch.column(label_field[0]).to_pylist() if label_field else [''] * len(texts)
        for text, label in zip(texts, labels, strict=True):
          if text is None:
            raise errors.UserError('data.text_field', f'{path} row {row}: {field!r} is null')
          yield corpus.Piece(f'{path} row {row}', text, label='' if label is None else str(label))
          row += 1


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[pq.ParquetFile]:
  """The file; turns what pyarrow says of a damaged one into `UserError`, in the `with` as well."""
  try:
    with path.open('rb') as raw, pq.ParquetFile(raw) as file:
      yield file
  except (pa.ArrowException, ValueError, KeyError) as e:  # or it changed while it was read
    raise files.damaged(path, e) from e
  except OSError as e:  # pyarrow raises it without a number for a damaged file
    raise (files.unreadable(path, e) if e.errno else files.damaged(path, e)) from e
