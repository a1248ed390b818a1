"""A store gives back the tokens that went in, or says what is wrong with it."""

import dataclasses
import hashlib
import json
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import errors
from gpt_jax.data import store
from gpt_jax.data.store import encoding, writer
from gpt_jax.data.tokenizers import char

_TEXT = st.text(st.characters(exclude_categories=['Cs']))


@pytest.fixture(scope='module')
def kept(prepare_parts, tmp_path_factory):
  """A store of three shards, of which the first has more than one checksum."""
  parts = [['c', 'ab' * 600_000], ['second shard', 'of two'], ['third']]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encoding, '_BATCH_CHARACTERS', 1)
    return prepare_parts(parts, tmp_path_factory.mktemp('kept')).sources[0]


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  parts=st.lists(st.lists(_TEXT, max_size=5), min_size=1, max_size=4),
  kind=st.sampled_from(['char', 'byte', 'word']),
  specials=st.sampled_from(['', 'bos', 'eos pad', 'bos eos']),
)
def test_documents_come_back(prepare_parts, tmp_path_factory, parts, kind, specials):
  documents = [document for part in parts for document in part if document]
  hypothesis.assume(''.join(documents).strip())
  prepared = prepare_parts(
    parts, tmp_path_factory.mktemp('stores'), tokenizer=kind, special_tokens=specials
  )
  (kept,), tokenizer = prepared.sources, prepared.tokenizer
  prepared.verify(None)
  assert kept.tokenizer().hash == tokenizer.hash
  assert all(token is not None for token in map(tokenizer.token_id, specials.split()))
  wrap = lambda ids: [  # noqa: E731
    *([] if tokenizer.start_of_text is None else [tokenizer.start_of_text]),
    *ids,
    *([] if tokenizer.end_of_text is None else [tokenizer.end_of_text]),
  ]
  wanted = [tokenizer.encode(document).tolist() for document in documents]
  wanted = [wrap(ids) for ids in wanted if ids]  # words: white space has no tokens
  corpus = kept.tokenized()
  starts = np.concatenate([[0], corpus.documents().ends[:-1]])
  found = [
    kept.tokens.read(start, end).tolist()
    for start, end in zip(starts, corpus.documents().ends, strict=True)
  ]
  assert found == wanted
  manifest = kept.manifest
  assert manifest.documents == len(wanted)
  assert manifest.characters == sum(map(len, documents))
  assert manifest.tokens == len(kept.tokens) == sum(map(len, wanted))
  assert manifest.empty_documents == sum(map(len, parts)) - len(wanted)


def test_each_document_ends_with_the_end_of_text(prepare_parts, tmp_path):
  (kept,) = prepare_parts([['ab', 'c']], tmp_path).sources
  assert kept.tokens.read(0, 5).tolist() == [97, 98, 256, 99, 256]


def test_an_hf_tokenizer_sees_a_document_whole(prepare_parts, tmp_path, monkeypatch):
  """Such a tokenizer may do anything where two pieces meet."""
  seen = []

  class Uncut(char.ByteTokenizer):
    cuts = False

    def encode(self, text):
      seen.append(text)
      return super().encode(text)

  monkeypatch.setattr(writer, '_tokenizer', lambda description: Uncut())
  parts = [[['one', b' \xfftwo', b' three\xff'], ['x\ufffd', b'\xff\xff'], 'y']]
  (kept,) = prepare_parts(parts, tmp_path, invalid_utf8='replace').sources
  assert seen == ['one \ufffdtwo three\ufffd', 'x\ufffd\ufffd\ufffd', 'y']
  assert kept.manifest.invalid_utf8 == 4


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(65_536, np.uint16), (65_537, np.uint32)])
def test_the_type_is_the_smallest_that_holds_the_vocabulary(
  prepare_parts, tmp_path, vocab_size, dtype
):
  points = [i for i in range(32, vocab_size + 2048 + 32) if not 0xD800 <= i < 0xE000]
  prepared = prepare_parts([[''.join(map(chr, points))]], tmp_path, tokenizer='char')
  assert prepared.tokenizer.vocab_size == vocab_size
  (shard,) = prepared.sources[0].tokens.shards
  assert shard.dtype == np.dtype(dtype).newbyteorder('<')
  assert shard.tolist() == list(range(vocab_size))


def test_equal_documents_have_equal_hashes_wherever_they_are(prepare_parts, tmp_path):
  parts = [['a', 'one', 'b'], ['two', 'one'], ['one']]
  hashes = prepare_parts(parts, tmp_path).sources[0].tokenized().documents().hashes
  assert len(set(hashes.tolist())) == 4
  assert hashes[1] == hashes[4] == hashes[5]


def test_the_hash_of_a_document_is_the_documented_one(prepare_parts, tmp_path):
  (hashed,) = prepare_parts([['abc']], tmp_path).sources[0].tokenized().documents().hashes.tolist()
  ids = np.array([97, 98, 99], '<u4')
  digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
  assert hashed == int.from_bytes(digest, 'little')


@pytest.mark.parametrize(
  ('kind', 'specials'), [('byte', ''), ('byte', 'bos'), ('char', 'bos eos'), ('word', '')]
)
def test_a_document_in_pieces_is_one(prepare_parts, tmp_path, monkeypatch, kind, specials):
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 3)
  knobs = {'tokenizer': kind, 'special_tokens': specials, 'min_frequency': 1}
  whole = prepare_parts([['one two three', 'x']], tmp_path / 'a', **knobs).sources[0]
  parts = [[['', 'one', ' two', '', ' three'], 'x']]
  written: list = []
  pieces = prepare_parts(
    parts, tmp_path / 'b', progress=lambda *args: written.append(args[3]), **knobs
  ).sources[0]
  assert any(counts.tokens and not counts.documents for counts in written), 'held until its end'
  assert sum(counts.tokens for counts in written) == pieces.manifest.tokens
  assert pieces.manifest.empty_documents == 0
  assert pieces.tokens.read(0, len(pieces.tokens)).tolist() == (
    whole.tokens.read(0, len(whole.tokens)).tolist()
  )
  for got, wanted in zip(
    pieces.tokenized().documents(), whole.tokenized().documents(), strict=True
  ):
    assert got.tolist() == wanted.tolist()


def test_tokens_are_mapped_and_cannot_be_changed(kept):
  for shard in kept.tokens.shards:
    assert isinstance(shard, np.memmap)
    with pytest.raises(ValueError, match='read-only'):
      shard[0] = 1


def test_the_manifest_is_as_documented(kept):
  values = json.loads((kept.directory / store.MANIFEST).read_text())
  assert values['dtype'] == 'uint16' and values['tokenizer'] == {'kind': 'byte'}
  assert store.Manifest.from_dict(values) == kept.manifest
  assert sum(shard['tokens'] for shard in values['shards']) == values['tokens']
  assert sorted(path.name for path in kept.directory.iterdir()) == sorted(
    [store.MANIFEST, *(shard[file] for shard in values['shards'] for file in _FILES)]
  )


_FILES = ('file', 'documents_file')


def _copy(kept, folder):
  shutil.copytree(kept.directory, folder)
  return folder


def _open_and_verify(folder):
  store.Store.open(folder).verify(None)


@pytest.mark.parametrize(
  ('place', 'words'),
  [
    (3, 'between bytes 0 and 1,048,576'),
    ((1 << 20) + 17, 'between bytes 1,048,576 and 2,097,152'),
    (-1, 'between bytes 2,097,152 and 3,145,728'),
  ],
)
def test_a_flipped_bit_is_named_with_file_and_place(kept, tmp_path, place, words):
  folder = _copy(kept, tmp_path / 's')
  path = folder / 'tokens-00000.bin'
  data = bytearray(path.read_bytes())
  data[place] ^= 4
  path.write_bytes(data)
  with pytest.raises(errors.UserError) as e:
    _open_and_verify(folder)
  assert str(path) in str(e.value) and words in str(e.value)
  assert f'Delete {folder}' in str(e.value)


def test_shards_that_changed_places_are_named(kept, tmp_path):
  folder = _copy(kept, tmp_path / 's')
  shards = [json.loads((folder / store.MANIFEST).read_text())['shards'][i] for i in (1, 2)]
  pad = max(shard['tokens'] for shard in shards)
  assert pad  # sizes differ, so the exchange is seen when the store is opened
  (folder / shards[0]['file']).rename(folder / 'x')
  (folder / shards[1]['file']).rename(folder / shards[0]['file'])
  (folder / 'x').rename(folder / shards[1]['file'])
  with pytest.raises(errors.UserError, match='tokens-00001.bin has .* bytes, expected'):
    _open_and_verify(folder)


def test_shards_of_one_size_that_changed_places_are_named(prepare_parts, tmp_path):
  (kept,) = prepare_parts([['abc'], ['xyz']], tmp_path).sources
  first, second = (kept.directory / f'tokens-0000{i}.bin' for i in range(2))
  one, other = first.read_bytes(), second.read_bytes()
  first.write_bytes(other)
  second.write_bytes(one)
  with pytest.raises(errors.UserError, match='tokens-00000.bin.*belongs in tokens-00001.bin'):
    _open_and_verify(kept.directory)
  second.write_bytes(other)  # a duplicate
  with pytest.raises(errors.UserError, match='tokens-00000.bin'):
    _open_and_verify(kept.directory)


def _resealed(folder, **changes):
  """Changes the manifest as its writer would have: with a right hash."""
  path = folder / store.MANIFEST
  manifest = store.Manifest.from_dict(json.loads(path.read_text()))
  manifest = dataclasses.replace(manifest, **changes).sealed()
  path.write_text(json.dumps(dataclasses.asdict(manifest)))


def test_an_id_outside_the_vocabulary_is_named_with_its_position(
  prepare_parts, tmp_path, monkeypatch
):
  monkeypatch.setattr(store, 'CHECKSUM_BYTES', 4)
  (kept,) = prepare_parts([['abcdef']], tmp_path).sources
  (shard,) = kept.manifest.shards
  path = kept.directory / shard.file
  tokens = np.fromfile(path, '<u2')
  tokens[[3, 5]] = 257, 300
  tokens.tofile(path)
  digest = hashlib.sha256(tokens.tobytes()).hexdigest()
  _resealed(kept.directory, shards=[dataclasses.replace(shard, sha256=digest)])
  with pytest.raises(errors.UserError, match='id 257 at position 3, and ids end at 256'):
    _open_and_verify(kept.directory)


def test_a_hash_that_was_changed_is_told_from_tokens_that_were(kept, tmp_path):
  folder = _copy(kept, tmp_path / 's')
  first, *others = kept.manifest.shards
  _resealed(folder, shards=[dataclasses.replace(first, sha256='0' * 64), *others])
  with pytest.raises(errors.UserError, match='tokens-00000.bin.*the hash itself was changed'):
    _open_and_verify(folder)


@pytest.mark.parametrize('ends', [[4, 2], [2, 3], [0, 4], [2, 5]])
def test_documents_that_cannot_be_are_named(prepare_parts, tmp_path, ends):
  (kept,) = prepare_parts([['a', 'b']], tmp_path).sources
  (shard,) = kept.manifest.shards
  path = kept.directory / shard.documents_file
  table = np.fromfile(path, store.DOCUMENT)
  table['end'] = ends
  table.tofile(path)
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  _resealed(kept.directory, shards=[dataclasses.replace(shard, documents_sha256=digest)])
  with pytest.raises(errors.UserError, match=shard.documents_file):
    _open_and_verify(kept.directory)


def test_the_content_hash_is_of_the_tokens_and_their_order(prepare_parts, tmp_path):
  def content_hash(name, parts, **knobs):
    return prepare_parts(parts, tmp_path / name, **knobs).sources[0].content_hash

  first = content_hash('a', [['ab'], ['c']])
  assert first == content_hash('b', [['ab'], ['c']], splits=['train', 'test'])
  others = [
    content_hash('c', [['c'], ['ab']]),
    content_hash('d', [['ab'], ['d']]),
    content_hash('e', [['ab']]),
    content_hash('f', [['xy'], ['z']]),
    content_hash('g', [['ab'], ['c']], tokenizer='char'),
  ]
  assert len({first, *others}) == 6
  assert others[-1] == content_hash('h', [['a', 'b'], ['c']], tokenizer='char')


def test_a_summary_counts_what_was_left_out_and_replaced(prepare_parts, tmp_path):
  parts = [['a', '', b'\xff\xffx', '', '']]
  (kept,) = prepare_parts(parts, tmp_path / 'a', invalid_utf8='replace').sources
  assert kept.summary() == (
    'text:made.txt: 2 documents, 4 characters, 10 tokens, 3 empty documents left out, '
    '2 places that are not UTF-8 replaced'
  )
  (plain,) = prepare_parts([['a']], tmp_path / 'b').sources
  assert plain.summary() == 'text:made.txt: 1 documents, 1 characters, 2 tokens'


def test_a_wrong_type_is_noticed(kept, tmp_path):
  folder = _copy(kept, tmp_path / 's')
  _resealed(folder, dtype='uint32')
  with pytest.raises(errors.UserError, match='tokens-00000.bin has .* bytes, expected'):
    store.Store.open(folder)
  _resealed(folder, dtype='float32')
  with pytest.raises(errors.UserError, match='float32'):
    store.Store.open(folder)


@pytest.mark.parametrize('text', ['', '{}', '[]', 'null', '{"format_version": 2}', '\x00\xff'])
def test_a_manifest_that_is_none_is_named(kept, tmp_path, text):
  folder = _copy(kept, tmp_path / 's')
  (folder / store.MANIFEST).write_text(text, encoding='latin-1')
  with pytest.raises(errors.UserError, match=store.MANIFEST):
    store.Store.open(folder)


def test_another_format_is_named(kept, tmp_path):
  folder = _copy(kept, tmp_path / 's')
  _resealed(folder, format_version=1)
  with pytest.raises(errors.UserError, match='format 1, this version of gpt_jax reads format 2'):
    store.Store.open(folder)


def test_a_folder_without_a_manifest_is_no_store(tmp_path):
  with pytest.raises(errors.UserError, match='is not a token store'):
    store.Store.open(tmp_path)


def test_a_tokenizer_that_is_another_is_noticed(kept, tmp_path):
  folder = _copy(kept, tmp_path / 's')
  _resealed(folder, tokenizer_hash='0' * 64)
  with pytest.raises(errors.UserError, match='the tokenizer in manifest.json'):
    store.Store.open(folder).tokenizer()


def _corrupt(folder, generator):
  """One random damage; returns what it was."""
  path = generator.choice(sorted(folder.iterdir()))
  data = bytearray(path.read_bytes())
  match kind := generator.choice(['flip', 'cut', 'grow', 'zeros', 'missing', 'exchange', 'copy']):
    case 'flip':
      data[generator.integers(len(data))] ^= 1 << generator.integers(8)
    case 'cut':
      del data[generator.integers(len(data)) :]
    case 'grow':
      data += bytes(generator.integers(1, 9))
    case 'zeros':
      start = generator.integers(len(data))
      data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    case 'missing':
      path.unlink()
      return f'{path.name} {kind}'
    case 'exchange' | 'copy':
      other = generator.choice(sorted(p for p in folder.iterdir() if p != path))
      if kind == 'exchange':
        path.write_bytes(other.read_bytes())
      other.write_bytes(data)
      return f'{path.name} {kind} {other.name}'
  path.write_bytes(data)
  return f'{path.name} {kind}'


def test_every_corruption_is_caught_or_changes_nothing(prepare_parts, tmp_path):
  """Two hundred seeded ones, in each file of the store."""
  parts = [['first document', 'second'], ['third', 'fourth one'], ['fifth!']]
  (kept,) = prepare_parts(parts, tmp_path / 'cache').sources
  before = {path.name: path.read_bytes() for path in kept.directory.iterdir()}
  caught, harmless = 0, []
  for seed in range(200):
    folder = _copy(kept, tmp_path / str(seed))
    what = _corrupt(folder, np.random.default_rng(seed))
    same = {path.name: path.read_bytes() for path in folder.iterdir()} == before
    try:
      _open_and_verify(folder)
    except errors.UserError as e:
      assert str(folder) in str(e) and not same, what
      caught += 1
    else:
      # Zeros over zeros, or a file over one of the same content.
      assert same, f'{what} was not caught'
      harmless.append(what)
    shutil.rmtree(folder)
  assert caught + len(harmless) == 200 and caught > 180, harmless


def test_verifying_tells_its_progress(kept):
  seen: list[int] = []
  kept.verify(seen.append)
  assert sum(seen) == kept.num_bytes == 2 * kept.manifest.tokens
