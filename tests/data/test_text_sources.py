"""Text files and JSON lines: plain or compressed, whole or in parts, with every fault named."""

import concurrent.futures
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import tempfile
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import zstandard

from gpt_jax import errors
from gpt_jax.data import sources
from gpt_jax.data.sources import corpus, text_files
from tests.data import documents


def read(spec, field='text', policy='fail'):
  """The documents of a source, from parts that were pickled."""
  documents, open_pieces = [], []
  source = sources.open_source(spec, text_field=field)
  for part in pickle.loads(pickle.dumps(source.parts)):
    for piece in part.read():
      open_pieces.append(piece)
      if piece.last:
        documents.append(''.join(sources.decode(p, invalid_utf8=policy)[0] for p in open_pieces))
        open_pieces = []
    assert not open_pieces  # a document ends in the part where it began
  return documents


def compress(data, ending, frames=1):
  """`data` as a file with this ending holds it, in several frames one behind the other."""
  packs: dict[str, Callable[[bytes], bytes]] = {
    '': bytes,
    '.gz': gzip.compress,
    '.zst': zstandard.ZstdCompressor().compress,
  }
  pack = packs[ending]
  step = max(1, -(-len(data) // frames))
  return b''.join(pack(data[i : i + step]) for i in range(0, max(1, len(data)), step))


@pytest.fixture(scope='module')
def folder():
  with tempfile.TemporaryDirectory() as path:
    yield pathlib.Path(path)


# Places to cut, near misses of one, and what could be torn.
_WORDS = st.sampled_from(
  ['a b', ' the', ' cat', "'s", "n't", ' ', '  ', '\n', '\n\n', ' \n', '.', ' 7', 'é', ' é', '中']
)
_PROSE = st.lists(_WORDS, max_size=40).map(''.join)


class TestFiles:
  def test_files_come_in_the_order_of_their_paths(self, tmp_path):
    (tmp_path / 'b' / 'c').mkdir(parents=True)
    for name in ('z.txt', 'a.txt', 'b/y.txt', 'b/c/x.txt', 'b/no.md'):
      (tmp_path / name).write_text(name)
    assert read(f'text:{tmp_path}/*.txt') == ['a.txt', 'z.txt']
    assert read(f'text:{tmp_path}/**/*.txt') == ['a.txt', 'b/c/x.txt', 'b/y.txt', 'z.txt']
    assert read(f'text:{tmp_path}/b/**') == ['b/c/x.txt', 'b/no.md', 'b/y.txt']

  def test_text_is_kept_as_it_is_but_for_the_mark(self, tmp_path):
    (tmp_path / 'a').write_bytes('one\r\ntwo\rthree\né\x0c\u2028'.encode())
    (tmp_path / 'b').write_bytes('\ufefftext\ufeff'.encode())
    assert read(f'text:{tmp_path}/?') == ['one\r\ntwo\rthree\né\x0c\u2028', 'text\ufeff']

  def test_home_and_the_working_directory_are_understood(self, tmp_path, monkeypatch):
    (tmp_path / 'a.txt').write_text('at home')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read('text:~/*.txt') == read('text:a.txt') == ['at home']

  def test_a_part_is_read_from_anywhere(self, tmp_path, monkeypatch):
    (tmp_path / 'a.txt').write_text('at home')
    monkeypatch.chdir(tmp_path)
    (part,) = sources.open_source('text:a.txt', text_field='text').parts
    monkeypatch.chdir('/')
    assert [piece.text for piece in part.read()] == [b'at home']

  def test_a_name_with_brackets_is_a_name(self, tmp_path):
    (tmp_path / '[x].txt').write_text('brackets')
    assert read(f'text:{tmp_path}/[x].txt') == ['brackets']

  def test_empty_files_are_empty_documents(self, tmp_path):
    for name, text in {'a': '', 'b': 'text', 'c': '\ufeff'}.items():
      (tmp_path / name).write_text(text)
    assert read(f'text:{tmp_path}/*') == ['', 'text', '']

  @pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
  def test_what_is_not_utf8_is_named_with_its_place(self, tmp_path, mark):
    (tmp_path / 'latin').write_bytes(mark + 'é'.encode() + b'caf\xe9')
    where = f'latin from byte {len(mark)}' if mark else 'latin is'
    documents.fails(f'text:{tmp_path}/latin', where, '0xe9 at offset 5')
    assert read(f'text:{tmp_path}/latin', policy='replace') == ['écaf\ufffd']

  @pytest.mark.parametrize(('kind', 'ending'), [('text', '.txt'), ('jsonl', '.jsonl')])
  def test_missing_things_are_named(self, tmp_path, kind, ending):
    documents.fails(f'{kind}:{tmp_path}/none.txt', f'{kind}:{tmp_path}/none.txt', 'no such file')
    documents.fails(f'{kind}:{tmp_path}/*.txt', f'{kind}:{tmp_path}/*.txt', 'matches no file')
    documents.fails(f'{kind}:{tmp_path}', 'is a directory', f'{kind}:{tmp_path}/**/*{ending}')
    documents.fails(f'{kind}:{os.devnull}', os.devnull, 'no regular file')
    documents.fails(f'{kind}:a + b', 'no such file', 'begins behind " + "')

  def test_a_file_that_cannot_be_read_is_named(self, tmp_path, monkeypatch):
    (tmp_path / 'secret').write_text('text')

    def denied(*args, **kwargs):
      raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(pathlib.Path, 'open', denied)
    documents.fails(f'text:{tmp_path}/secret', 'secret', 'Permission denied')

  def test_a_file_that_vanishes_is_named(self, tmp_path):
    (tmp_path / 'a').write_text('text')
    (part,) = sources.open_source(f'text:{tmp_path}/a', text_field='text').parts
    (tmp_path / 'a').unlink()
    with pytest.raises(errors.UserError, match='No such file'):
      list(part.read())

  @pytest.mark.parametrize('kind', ['text', 'jsonl'])
  def test_the_fingerprint_changes_with_the_files(self, tmp_path, kind):
    def fingerprint():
      found = sources.open_source(f'{kind}:{tmp_path}/*', text_field='text').fingerprint
      assert json.loads(json.dumps(found)) == found
      return json.dumps(found)

    (tmp_path / 'a').write_text('text')
    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    os.utime(tmp_path / 'a', ns=(1, 1))
    seen.append(fingerprint())
    (tmp_path / 'a').write_text('texts')
    os.utime(tmp_path / 'a', ns=(1, 1))
    seen.append(fingerprint())
    (tmp_path / 'a').rename(tmp_path / 'b')
    seen.append(fingerprint())
    (tmp_path / 'c').write_text('text')
    seen.append(fingerprint())
    assert len(set(seen)) == 5

  def test_the_field_is_in_the_fingerprint(self, tmp_path):
    (tmp_path / 'a').write_text('')
    one, other = (
      sources.open_source(f'jsonl:{tmp_path}/a', text_field=field).fingerprint for field in 'xy'
    )
    assert one != other


class TestCompression:
  @hypothesis.given(st.binary(max_size=300), st.integers(1, 4))
  def test_gz_and_zst_are_the_plain_file(self, folder, data, frames):
    for ending in ('', '.gz', '.zst'):
      (folder / f'a{ending}').write_bytes(compress(data, ending, frames))
    plain = read(f'text:{folder}/a', policy='replace')
    assert read(f'text:{folder}/a.gz', policy='replace') == plain
    assert read(f'text:{folder}/a.zst', policy='replace') == plain

  @pytest.mark.parametrize('ending', ['.gz', '.zst'])
  def test_long_text_comes_through(self, tmp_path, ending):
    text = 'some words, all the same\n' * 200_000
    (tmp_path / f'a{ending}').write_bytes(compress(text.encode(), ending, frames=3))
    assert read(f'text:{tmp_path}/a{ending}') == [text]

  @pytest.mark.parametrize('kind', ['text', 'jsonl'])
  @pytest.mark.parametrize('ending', ['.gz', '.zst'])
  @pytest.mark.parametrize(
    'damage', ['cut', 'cut in the second frame', 'other', 'tail', 'rot', 'block']
  )
  def test_damage_is_named(self, tmp_path, kind, ending, damage):
    data = b''.join(b'{"text": "%d"}\n' % i for i in range(500))
    good = compress(data, ending)
    (tmp_path / f'a{ending}').write_bytes(
      {
        'cut': good[:-20],
        'cut in the second frame': good + good[:-1],
        'other': data,
        'tail': good + b'tail',
        'block': good[:10] + b'\xff' * 20 + good[30:],
        'rot': good[: len(good) // 2] + bytes(40) + good[len(good) // 2 + 40 :],
      }[damage]
    )
    documents.fails(f'{kind}:{tmp_path}/a{ending}', f'a{ending}', 'damaged', '--config.data.source')


class TestParts:
  def test_their_size_follows_the_corpus(self):
    mib = 1 << 20
    for total, size in ((0, 4), (256, 4), (640, 10), (1 << 14, 256), (1 << 20, 256)):
      assert corpus.part_bytes(total * mib) == size * mib

  @hypothesis.given(st.lists(st.integers(0, 50)), st.integers(1, 100))
  def test_items_are_grouped_in_order_into_full_parts(self, sizes, full):
    runs = [sizes[run] for run in corpus.group(sizes, full)]
    assert [size for run in runs for size in run] == sizes
    for run in runs:
      assert run and sum(run[:-1]) < full
    assert all(sum(run) >= full for run in runs[:-1])

  @hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
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
      assert all(part.split == '' for part in parts)

  def test_they_are_read_in_other_processes(self, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: 1)
    (tmp_path / 'a.txt').write_text('one')
    (tmp_path / 'b.jsonl').write_text('{"text": "two"}\n{"text": "three"}\n')
    parts = [
      part
      for spec in (
        f'text:{tmp_path}/a.txt',
        f'jsonl:{tmp_path}/b.jsonl',
        'builtin:python-reference',
      )
      for part in sources.open_source(spec, text_field='text').parts
    ]
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
      there = list(pool.map(_pieces, parts))
    assert there == [_pieces(part) for part in parts]
    assert [p.text for pieces in there[:-1] for p in pieces] == [b'one', 'two', 'three']


def _pieces(part):
  return list(part.read())


class TestPieces:
  @hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
  @hypothesis.given(_PROSE, st.integers(1, 40))
  def test_they_join_to_the_text_and_so_do_their_tokens(self, monkeypatch, gpt2, text, size):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', size)
    pieces = list(text_files._pieces(io.BytesIO(text.encode()), 'a'))
    texts = [
      sources.decode(piece, invalid_utf8='fail')[0] for piece in pieces
    ]  # no character is torn
    assert ''.join(texts) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    tokens = [id for part in texts for id in gpt2.encode(part)]
    assert tokens == list(gpt2.encode(text))
    data, end = text.encode(), 0
    for piece in pieces[:-1]:
      end += len(piece.text)
      assert data[end - 1 : end].isalpha() and data[end : end + 1] == b' '
      assert data[end + 1 : end + 2].isalpha()

  @hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
  @hypothesis.given(_PROSE, st.integers(1, 40), st.booleans())
  def test_their_places_are_offsets_in_the_file(self, monkeypatch, text, size, mark):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', size + 3)
    data = b'\xef\xbb\xbf' * mark + text.encode()
    for piece in text_files._pieces(io.BytesIO(data), 'a'):
      offset = int(piece.place.removeprefix('a from byte ')) if piece.place != 'a' else 0
      assert data[offset : offset + len(piece.text)] == piece.text

  def test_a_long_text_is_held_a_few_bytes_at_a_time(self, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', 1000)
    text = 'a few words, then more. ' * 10_000
    (tmp_path / 'a').write_text(text)
    (part,) = sources.open_source(f'text:{tmp_path}/a', text_field='text').parts
    lengths = [len(piece.text) for piece in part.read()]
    assert sum(lengths) == len(text) and max(lengths) < 1100 and len(lengths) > 200

  @pytest.mark.parametrize('before', range(1, 9))
  def test_every_place_to_cut_is_found(self, monkeypatch, before):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', 4)
    text = b'.' * before + b'x y' + b'.' * 20
    pieces = [piece.text for piece in text_files._pieces(io.BytesIO(text), 'a')]
    assert pieces == [text[: before + 1], text[before + 1 :]]

  def test_a_short_text_is_one_piece(self, tmp_path):
    (tmp_path / 'a').write_text('two words')
    (part,) = sources.open_source(f'text:{tmp_path}/a', text_field='text').parts
    assert list(part.read()) == [sources.Piece(str(tmp_path / 'a'), b'two words')]

  def test_a_bad_byte_far_inside_is_named(self, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, '_PIECE_BYTES', 10)
    (tmp_path / 'a').write_bytes(b'some words \xff some more words')
    documents.fails(f'text:{tmp_path}/a', 'a from byte 4 ', 'offset 7')


class TestJsonLines:
  @hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
  @hypothesis.given(
    st.lists(st.lists(st.text(max_size=40), max_size=8), min_size=1, max_size=4),
    st.integers(1, 300),
    st.sampled_from(['\n', '\r\n', '\n\n', '\n \n']),
    st.booleans(),
    st.booleans(),
  )
  def test_documents_come_back_for_every_part_size(
    self, monkeypatch, files, full, newline, ascii_only, at_end
  ):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    with tempfile.TemporaryDirectory() as name:
      for i, texts in enumerate(files):
        lines = [json.dumps({'id': 1, 'x': text}, ensure_ascii=ascii_only) for text in texts]
        data = (newline.join(lines) + newline * at_end).encode()
        pathlib.Path(name, f'{i}.jsonl').write_bytes(data)
        pathlib.Path(name, f'{i}.gz').write_bytes(compress(data, '.gz'))
        pathlib.Path(name, f'{i}.zst').write_bytes(compress(data, '.zst'))
      whole = [text for texts in files for text in texts]
      for ending in ('jsonl', 'gz', 'zst'):
        assert read(f'jsonl:{name}/*.{ending}', field='x') == whole
      parts = sources.open_source(f'jsonl:{name}/*.jsonl', text_field='x').parts
      sizes = [path.stat().st_size for path in pathlib.Path(name).glob('*.jsonl')]
      assert sum(part.size for part in parts) == sum(sizes)
      assert all(part.size < 2 * full for part in parts)

  def test_a_place_is_the_offset_of_a_line(self, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: 20)
    data = b'{"text": "one"}\n\n{"text": "two"}\n  {"text": "three"}'
    (tmp_path / 'a').write_bytes(data)
    parts = sources.open_source(f'jsonl:{tmp_path}/a', text_field='text').parts
    pieces = [piece for part in parts for piece in part.read()]
    assert len(parts) == 3 and len(pieces) == 3
    for piece in pieces:
      offset = int(piece.place.removeprefix(f'{tmp_path}/a at byte '))
      assert data[offset:].lstrip().startswith(b'{"text": ' + json.dumps(piece.text).encode())

  def test_a_mark_at_the_start_is_dropped(self, tmp_path):
    (tmp_path / 'a').write_bytes('\ufeff{"text": "one"}\n'.encode())
    assert read(f'jsonl:{tmp_path}/a') == ['one']

  def test_what_is_not_unicode_is_left_to_decode(self, tmp_path):
    bad = {
      'bytes': b'{"text": "\xc3\xa9 \xe2\x82 x"}',
      'escape': b'{"text": "\\u00e9 \\ud800 x"}',
      'both': b'{"text": "\xff \\ud800"}',
    }
    for name, line in bad.items():
      (tmp_path / name).write_bytes(b'{"text": "good"}\n' + line)
    documents.fails(f'jsonl:{tmp_path}/bytes', 'at byte 17', 'byte 0xe2 at offset 3')
    documents.fails(f'jsonl:{tmp_path}/escape', 'at byte 17', 'U+D800', 'character 2')
    documents.fails(f'jsonl:{tmp_path}/both', 'at byte 17', '1 more')
    assert read(f'jsonl:{tmp_path}/bytes', policy='replace')[1] == 'é \ufffd x'
    assert read(f'jsonl:{tmp_path}/escape', policy='replace')[1] == 'é \ufffd x'
    assert read(f'jsonl:{tmp_path}/both', policy='replace')[1] == '\ufffd \ufffd'

  def test_bad_bytes_in_another_field_harm_nothing(self, tmp_path):
    (tmp_path / 'a').write_bytes(b'{"name": "\xff", "text": "\xc3\xa9"}')
    assert read(f'jsonl:{tmp_path}/a') == ['é']

  @pytest.mark.parametrize('ending', ['', '.gz', '.zst'])
  @pytest.mark.parametrize('full', [20, 1000])
  @pytest.mark.parametrize(
    ('line', 'words'),
    [
      ('{"text": "half', ['not JSON', 'column 10']),
      ('{"text": "a"} {"text": "b"}', ['not JSON', 'column 15']),
      ('[' * 100_000, ['not JSON']),
      ('["text"]', ['is a list', 'one JSON object a line']),
      ('"text"', ['is a string']),
      ('17', ['is a number']),
      ('{"body": "b", "id": 1}', ['no field text', 'fields with text: body;', 'body, id']),
      ('{}', ['no field text', 'all fields: none']),
      ('{"text": null, "t": "x"}', ['field text is null', 'fields with text: t;']),
      ('{"text": ["a"]}', ['field text is a list']),
      ('{"text": {"a": 1}}', ['field text is an object']),
      ('{"text": true}', ['field text is true or false']),
      ('{"text": 1.5}', ['field text is a number']),
    ],
  )
  def test_a_bad_line_is_named(self, tmp_path, monkeypatch, ending, full, line, words):
    monkeypatch.setattr(corpus, 'part_bytes', lambda total: full)
    data = '{"text": "one"}\n\n{"text": "three"}\n' + line + '\n{"text": "five"}\n'
    (tmp_path / f'a{ending}').write_bytes(compress(data.encode(), ending))
    fix = '--config.data.text_field' if 'field' in words[0] else 'jsonl:'
    documents.fails(f'jsonl:{tmp_path}/a{ending}', f'a{ending}, line 4: ', fix, *words)
