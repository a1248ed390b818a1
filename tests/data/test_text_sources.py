"""Text files and JSON lines: plain or compressed, whole or in parts, with every fault named."""

import gzip
import io
import json
import os
import pathlib
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import pytest

from gpt_jax.data import sources
from gpt_jax.data.sources import corpus, text_files
from gpt_jax.data.sources import files as files_lib
from tests import raised
from tests.data import documents

zstd = pytest.importorskip('backports.zstd' if sys.version_info < (3, 14) else 'compression.zstd')


def read(spec, field='text', policy='fail'):
  """The documents of a source that has no splits."""
  return documents.read(spec, field, policy).get('', [])


def compress(data, ending, frames=1):
  """`data` as a file with this ending holds it, in several frames one behind the other."""
  pack: Callable[[bytes], bytes] = {'': bytes, '.gz': gzip.compress, '.zst': zstd.compress}[ending]
  step = max(1, -(-len(data) // frames))
  return b''.join(pack(data[i : i + step]) for i in range(0, max(1, len(data)), step))


# Places to cut, near misses of one, and what could be torn.
_WORDS = st.sampled_from(
  ['a b', ' the', ' cat', "'s", "n't", ' ', '  ', '\n', '\n\n', ' \n', '.', ' 7', 'é', ' é', '中']
)
_PROSE = st.lists(_WORDS, max_size=40).map(''.join)


class TestFiles:
  def test_files_come_in_the_order_of_their_paths_as_they_are_but_for_the_mark(self, tmp_path):
    (tmp_path / 'b' / 'c').mkdir(parents=True)
    for name in ('z.txt', 'a.txt', 'b/y.txt', 'b/c/x.txt', 'b/no.md'):
      (tmp_path / name).write_text(name)
    assert read(f'text:{tmp_path}/*.txt') == ['a.txt', 'z.txt']
    assert read(f'text:{tmp_path}/**/*.txt') == ['a.txt', 'b/c/x.txt', 'b/y.txt', 'z.txt']
    assert read(f'text:{tmp_path}/b/**') == ['b/c/x.txt', 'b/no.md', 'b/y.txt']
    texts = ['one\r\ntwo\rthree\né\x0c\u2028', '\ufefftext\ufeff', '', '\ufeff']
    for number, text in enumerate(texts):
      (tmp_path / f'{number}').write_bytes(text.encode())
    assert read(f'text:{tmp_path}/[0-3]') == [texts[0], 'text\ufeff', '', '']

  def test_home_brackets_and_the_working_directory_are_understood(self, tmp_path, monkeypatch):
    (tmp_path / '[a].txt').write_text('at home')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read('text:~/*.txt') == ['at home']
    (part,) = sources.open_source('text:[a].txt', text_field='text').parts
    monkeypatch.chdir('/')
    assert [piece.text for piece in part.read()] == [b'at home']

  @pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
  def test_invalid_utf8_is_named_with_its_place(self, tmp_path, mark):
    path = tmp_path / 'latin'
    path.write_bytes(mark + 'é'.encode() + b'caf\xe9')
    error = documents.error(f'text:{path}')
    assert error.key == (f'{path} from byte 3' if mark else str(path))
    assert '0xe9 at offset 5' in error.problem
    assert read(f'text:{path}', policy='replace') == ['écaf\ufffd']

  @pytest.mark.parametrize('kind', ['text', 'jsonl', 'parquet'])
  @pytest.mark.parametrize('name', ['none.txt', '*.txt', os.devnull, 'a + b'])
  def test_a_missing_file_is_refused(self, tmp_path, kind, name):
    error = documents.error(f'{kind}:{tmp_path / name}')
    assert error.key == 'data.source' and name in error.problem

  def test_a_file_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
    path = tmp_path / 'secret'
    path.write_text('text')
    (part,) = sources.open_source(f'text:{path}', text_field='text').parts
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, 'open', mock.Mock(side_effect=PermissionError(13, 'denied')))
      assert documents.error(f'text:{path}').key == str(path)
    path.unlink()
    assert raised.user_error(lambda: list(part.read())).key == str(path)
    assert raised.user_error(files_lib.describe, [path]).key == str(path)

  @pytest.mark.parametrize('kind', ['text', 'jsonl'])
  def test_the_fingerprint_changes_with_the_files(self, tmp_path, kind):
    spec = f'{kind}:{tmp_path}/*'
    seen = []
    for name, text, time in [('a', 'text', 1), ('a', 'text', 2), ('a', 'texts', 2), ('b', '', 2)]:
      (tmp_path / name).write_text(text)
      os.utime(tmp_path / name, ns=(time, time))
      seen.append(documents.fingerprint(spec))
      assert documents.fingerprint(spec) == seen[-1]
    (tmp_path / 'b').rename(tmp_path / 'c')
    seen.append(documents.fingerprint(spec))
    assert len(set(seen)) == 5
    assert (documents.fingerprint(spec, 'x') == seen[4]) == (kind == 'text')


class TestCompression:
  @hypothesis.given(st.binary(max_size=300), st.integers(1, 4))
  def test_gz_and_zst_are_the_plain_file(self, data, frames):
    with tempfile.TemporaryDirectory() as folder:
      for ending in ('', '.gz', '.zst'):
        pathlib.Path(folder, f'a{ending}').write_bytes(compress(data, ending, frames))
      plain, gz, zst = (read(f'text:{folder}/a{e}', policy='replace') for e in ('', '.gz', '.zst'))
      assert plain == gz == zst

  @pytest.mark.parametrize('ending', ['.gz', '.zst'])
  def test_long_text_comes_through(self, tmp_path, ending):
    text = 'some words, all the same\n' * 200_000
    (tmp_path / f'a{ending}').write_bytes(compress(text.encode(), ending, frames=3))
    assert read(f'text:{tmp_path}/a{ending}') == [text]

  @pytest.mark.parametrize('kind', ['text', 'jsonl'])
  @pytest.mark.parametrize('ending', ['.gz', '.zst'])
  def test_a_small_file_that_holds_very_much_is_not_read_into_memory(
    self, tmp_path, monkeypatch, kind, ending
  ):
    monkeypatch.setattr(files_lib, 'MOST_HELD', 1 << 22)
    data = b'{"text": "' + b'a' * (1 << 24)
    (tmp_path / f'a{ending}').write_bytes(compress(data, ending))
    tracemalloc.start()
    error = raised.user_error(read, f'{kind}:{tmp_path}/a{ending}')
    assert error.key == str(tmp_path / f'a{ending}')
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    (tmp_path / 'plain').write_bytes(data + b'"}')
    assert len(read(f'{kind}:{tmp_path}/plain')) == 1

  @pytest.mark.parametrize('kind', ['text', 'jsonl'])
  @pytest.mark.parametrize('ending', ['.gz', '.zst'])
  @pytest.mark.parametrize(
    'damage',
    [
      lambda good: good[:-20],
      lambda good: good + good[:-1],  # the second frame is cut
      lambda good: good + b'tail',
      lambda good: good[:10] + b'\xff' * 20 + good[30:],
      lambda good: good[: len(good) // 2] + bytes(40) + good[len(good) // 2 + 40 :],
      lambda good: b'{"text": "not compressed"}\n',
    ],
  )
  def test_damage_is_named(self, tmp_path, kind, ending, damage):
    data = b''.join(b'{"text": "%d"}\n' % i for i in range(500))
    path = tmp_path / f'a{ending}'
    path.write_bytes(damage(compress(data, ending)))
    assert documents.error(f'{kind}:{path}').key == str(path)

  def test_without_the_package_its_extra_is_named(self, tmp_path, monkeypatch):
    (tmp_path / 'a.zst').write_bytes(compress(b'text', '.zst'))
    for name in ('compression.zstd', 'backports.zstd'):
      monkeypatch.setitem(sys.modules, name, None)
    error = documents.error(f'text:{tmp_path}/a.zst')
    assert error.key == str(tmp_path / 'a.zst') and 'gpt_jax[zstd]' in error.fix


class TestParts:
  def test_their_size_follows_the_corpus(self):
    mib = 1 << 20
    for total, size in ((0, 4), (256, 4), (640, 10), (1 << 14, 256), (1 << 20, 256)):
      assert corpus.part_bytes(total * mib) == size * mib

  @hypothesis.given(st.lists(st.integers(0, 50)), st.integers(1, 100))
  def test_items_are_grouped_in_order_into_full_parts(self, sizes, full):
    parts = list(corpus.parts(sizes, sizes, iter, full=full, split='test'))
    runs: list[list[Any]] = [list(part.read()) for part in parts]
    assert [size for run in runs for size in run] == sizes
    assert [part.size for part in parts] == [sum(run) for run in runs]
    assert all(run and sum(run[:-1]) < full for run in runs)
    assert all(sum(run) >= full for run in runs[:-1])
    assert {part.split for part in parts} <= {'test'}

  @hypothesis.given(st.lists(_PROSE, min_size=1, max_size=8), st.integers(1, 200))
  def test_text_is_the_same_for_every_part_size(self, monkeypatch, texts, full):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    with tempfile.TemporaryDirectory() as name:
      for i, text in enumerate(texts):
        pathlib.Path(name, f'{i}').write_bytes(text.encode())
      parts = sources.open_source(f'text:{name}/*', text_field='text').parts
      assert read(f'text:{name}/*') == texts
      assert sum(part.size for part in parts) == sum(len(text.encode()) for text in texts)
      assert len(parts) <= sum(part.size for part in parts) // full + 1


class TestPieces:
  @hypothesis.given(_PROSE, st.integers(3, 40), st.booleans())
  def test_they_join_to_the_text_and_so_do_their_tokens(self, monkeypatch, gpt2, text, size, mark):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', size)
    data = b'\xef\xbb\xbf' * mark + text.encode()
    pieces = list(text_files._pieces(io.BytesIO(data), pathlib.Path('a')))
    # No character is torn.
    texts = [sources.decode(piece, invalid_utf8='fail')[0] for piece in pieces]
    assert ''.join(texts) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert [i for part in texts for i in gpt2.encode(part)] == gpt2.encode(text).tolist()
    for piece in pieces:
      offset = int(piece.place.removeprefix('a from byte ')) if piece.place != 'a' else 0
      assert data[offset : offset + len(piece.text)] == piece.text

  def test_a_long_text_is_held_a_few_bytes_at_a_time(self, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', 1000)
    text = 'a few words, then more. ' * 10_000
    (tmp_path / 'a').write_text(text)
    (part,) = sources.open_source(f'text:{tmp_path}/a', text_field='text').parts
    lengths = [len(piece.text) for piece in part.read()]
    assert sum(lengths) == len(text) and max(lengths) < 1100 and len(lengths) > 200

  def test_every_place_to_cut_is_found_and_no_other(self, monkeypatch):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', 4)

    def cut(text):
      return [piece.text for piece in text_files._pieces(io.BytesIO(text), pathlib.Path('a'))]

    for before in range(1, 9):
      text = b'\n' * before + b'x y' + b'.' * 20
      assert cut(text) == [text[: before + 1], text[before + 1 :]]
    for near in ('x  y', '. y', '7 y', 'x 7', 'x\ny', 'é y'):
      assert len(cut(f'..{near}{"." * 20}'.encode())) == 1


class TestJsonLines:
  @hypothesis.given(
    st.lists(st.lists(st.text(max_size=40), max_size=8), min_size=1, max_size=4),
    st.integers(1, 300),
    st.sampled_from(['\n', '\r\n', '\n\n', '\n \n']),
    st.booleans(),
    st.booleans(),
  )
  def test_documents_come_back(self, monkeypatch, files, full, newline, ascii_only, at_end):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    with tempfile.TemporaryDirectory() as name:
      for i, texts in enumerate(files):
        lines = [json.dumps({'id': 1, 'x': text}, ensure_ascii=ascii_only) for text in texts]
        data = (newline.join(lines) + newline * at_end).encode()
        for ending in ('', '.gz', '.zst'):
          pathlib.Path(name, f'{i}.jsonl{ending}').write_bytes(compress(data, ending))
      whole = [text for texts in files for text in texts]
      for ending in ('', '.gz', '.zst'):
        assert read(f'jsonl:{name}/*.jsonl{ending}', field='x') == whole
      # Compressed files are read from their start.
      assert len(sources.open_source(f'jsonl:{name}/*.gz', text_field='x').parts) <= len(files)
      parts = sources.open_source(f'jsonl:{name}/*.jsonl', text_field='x').parts
      sizes = [path.stat().st_size for path in pathlib.Path(name).glob('*.jsonl')]
      assert sum(part.size for part in parts) == sum(sizes)
      assert all(part.size < 2 * full for part in parts)

  def test_documents_have_their_classes(self, tmp_path):
    lines = [{'text': 'a', 'is': 'good'}, {'is': 3, 'text': 'b'}, {'text': 'c', 'is': False}]
    (tmp_path / 'a').write_text('\n'.join(map(json.dumps, lines)))
    spec = f'jsonl:{tmp_path}/a'
    assert documents.labels(spec, 'is') == [('a', 'good'), ('b', '3'), ('c', 'False')]
    assert documents.labels(spec, '') == [('a', ''), ('b', ''), ('c', '')]

  @pytest.mark.parametrize('value', ['', ', "is": null', ', "is": []', ', "is": 1.5', ', "is": ""'])
  def test_a_line_without_a_class_is_named(self, tmp_path, value):
    (tmp_path / 'a').write_text(f'{{"text": "x", "is": 1}}\n{{"text": "x"{value}}}')
    error = raised.user_error(documents.labels, f'jsonl:{tmp_path}/a', 'is')
    assert error.key == 'data.label_field' and 'line 2' in error.problem

  def test_a_place_is_the_offset_of_a_line(self, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: 20)
    data = '\ufeff{"text": "one"}\n\n{"text": "two"}\n  {"text": "three"}'.encode()
    (tmp_path / 'a').write_bytes(data)
    parts = sources.open_source(f'jsonl:{tmp_path}/a', text_field='text').parts
    pieces = [piece for part in parts for piece in part.read()]
    assert len(parts) == 3 and [piece.text for piece in pieces] == ['one', 'two', 'three']
    offsets = [int(piece.place.removeprefix(f'{tmp_path}/a at byte ')) for piece in pieces]
    lines = [json.loads(data[offset:].decode('utf-8-sig').split('\n')[0]) for offset in offsets]
    assert [line['text'] for line in lines] == ['one', 'two', 'three']

  @pytest.mark.parametrize(
    ('line', 'first', 'replaced'),
    [
      (b'{"text": "\xc3\xa9 \xe2\x82 x"}', '0xe2 at offset 3', 'é \ufffd x'),
      (b'{"text": "\\u00e9 \\ud800 x"}', 'U+D800 at character 2', 'é \ufffd x'),
      (b'{"text": "\xff \\ud800"}', '1 more', '\ufffd \ufffd'),
      (b'{"name": "\xff", "text": "\xc3\xa9"}', None, 'é'),
    ],
  )
  def test_invalid_utf8_is_left_to_decode(self, tmp_path, line, first, replaced):
    (tmp_path / 'a').write_bytes(b'{"text": "good"}\n' + line)
    assert read(f'jsonl:{tmp_path}/a', policy='replace') == ['good', replaced]
    if first:
      error = documents.error(f'jsonl:{tmp_path}/a')
      assert error.key == f'{tmp_path}/a at byte 17' and first in error.problem

  @pytest.mark.parametrize(('ending', 'full'), [('', 20), ('', 1000), ('.gz', 20), ('.zst', 20)])
  @pytest.mark.parametrize(
    ('line', 'key'),
    [
      *((line, '') for line in ('{"text": "half', '{"text": "a"} {}', '[' * 100_000, '[""]', '17')),
      ('\ufeff{"text": "a mark inside"}', ''),
      ('{"body": "b", "id": 1}', 'data.text_field'),
      ('{}', 'data.text_field'),
      ('{"text": null, "t": "x"}', 'data.text_field'),
      ('{"text": ["a"]}', 'data.text_field'),
    ],
  )
  def test_a_bad_line_is_named(self, tmp_path, monkeypatch, ending, full, line, key):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    data = '{"text": "one"}\n\n{"text": "three"}\n' + line + '\n{"text": "five"}\n'
    (tmp_path / f'a{ending}').write_bytes(compress(data.encode(), ending))
    error = documents.error(f'jsonl:{tmp_path}/a{ending}')
    place = f'{tmp_path}/a{ending}, line 4'
    assert error.key == (key or place) and place in str(error)
