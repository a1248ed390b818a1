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
from gpt_jax.data import encoding, sources, store
from gpt_jax.data.tokenizers import char
from tests import damage, raised

_TEXT = st.text(st.characters(exclude_categories=['Cs']))


@pytest.fixture(scope='module')
def kept(prepare_parts, tmp_path_factory):
  """A store of three shards."""
  parts = [['first document', 'second'], ['third', 'fourth one'], ['fifth!']]
  return prepare_parts(parts, tmp_path_factory.mktemp('kept')).sources[0]


def _tokens(source):
  return source.tokens.read(0, len(source.tokens)).tolist()


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
  prepared.verify()
  assert kept.tokenizer().hash == tokenizer.hash
  assert all(token is not None for token in map(tokenizer.token_id, specials.split()))
  bos, eos = ([] if i is None else [i] for i in (tokenizer.bos_id, tokenizer.eos_id))
  wanted = [tokenizer.encode(document).tolist() for document in documents]
  wanted = [[*bos, *ids, *eos] for ids in wanted if ids]  # words: white space has no tokens
  ends = kept.documents['end'].astype(int).tolist()
  pairs = zip([0, *ends[:-1]], ends, strict=True)
  assert [kept.tokens.read(start, end).tolist() for start, end in pairs] == wanted
  manifest = kept.manifest
  assert manifest.documents == len(wanted)
  assert manifest.characters == sum(map(len, documents))
  assert manifest.tokens == len(kept.tokens) == sum(map(len, wanted))
  assert manifest.empty_documents == sum(map(len, parts)) - len(wanted)


def test_a_tokenizer_that_needs_it_gets_a_document_whole(tmp_path):
  """Tokens of Hugging Face's tokenizers may be others where two pieces meet."""
  seen = []

  class Whole(char.ByteTokenizer):
    cuts = False

    def encode(self, text):
      seen.append(text)
      return super().encode(text)

  piece = sources.Piece
  pieces = [
    *(piece('', 'one', False), piece('', b' \xfftwo', False), piece('', b' three\xff')),
    *(piece('', 'x\ufffd', False), piece('', b'\xff\xff'), piece('', 'y')),
  ]
  shard = encoding.write_shard(
    0,
    sources.Part(split='', size=0, read=lambda: iter(pieces)),
    folder=tmp_path,
    tokenizer=Whole(),
    invalid_utf8='replace',
    threads=1,
  )
  assert seen == ['one \ufffdtwo three\ufffd', 'x\ufffd\ufffd\ufffd', 'y']
  assert shard.invalid_utf8 == 4 and shard.documents == 3


@pytest.mark.parametrize(
  ('kind', 'specials'), [('byte', ''), ('byte', 'bos'), ('char', 'bos eos'), ('word', '')]
)
def test_a_document_in_pieces_is_one(prepare_parts, tmp_path, monkeypatch, kind, specials):
  monkeypatch.setattr(encoding, '_BATCH_CHARACTERS', 3)
  knobs = {'tokenizer': kind, 'special_tokens': specials, 'min_frequency': 1}
  (whole,) = prepare_parts([['one two three', 'x']], tmp_path / 'a', **knobs).sources
  parts = [[['', 'one', ' two', '', ' three', ''], 'x']]
  (pieces,) = prepare_parts(parts, tmp_path / 'b', **knobs).sources
  assert pieces.manifest.empty_documents == 0
  assert _tokens(pieces) == _tokens(whole)
  assert pieces.documents.tolist() == whole.documents.tolist()


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(65_536, np.uint16), (65_537, np.uint32)])
def test_the_type_is_the_smallest_for_the_vocabulary(prepare_parts, tmp_path, vocab_size, dtype):
  points = [i for i in range(32, vocab_size + 2048 + 32) if not 0xD800 <= i < 0xE000]
  prepared = prepare_parts([[''.join(map(chr, points))]], tmp_path, tokenizer='char')
  assert prepared.tokenizer.vocab_size == vocab_size
  (shard,) = prepared.sources[0].tokens.shards
  assert shard.dtype == np.dtype(dtype).newbyteorder('<')
  assert shard.tolist() == list(range(vocab_size))


def test_the_hash_of_a_document_is_of_its_tokens_alone(prepare_parts, tmp_path):
  parts = [['a', 'one', 'b'], ['two', 'one'], ['one']]
  hashes = prepare_parts(parts, tmp_path).sources[0].documents['hash'].tolist()
  assert len(set(hashes)) == 4
  ids = np.array([*b'one'], '<u4')
  digest = hashlib.blake2b(ids.tobytes(), digest_size=8).digest()
  assert hashes[1] == hashes[4] == hashes[5] == int.from_bytes(digest, 'little')


def test_documents_have_their_classes_from_whatever_shard(prepare_parts, tmp_path):
  parts = [['x', ('a', 'good'), 'y'], [('b', 'bad'), ('c', 'good')], [('d', '10'), ('e', '9')]]
  (labelled,) = prepare_parts(parts, tmp_path, label_field='label').sources
  assert labelled.classes == ('9', '10', 'bad', 'good')
  assert labelled.documents['label'].tolist() == [-1, 3, -1, 2, 3, 1, 0]
  (bare,) = prepare_parts([['x', 'y']], tmp_path).sources
  assert bare.classes == () and bare.documents['label'].tolist() == [-1, -1]


def test_tokens_are_mapped_and_read_only(kept):
  for shard in kept.tokens.shards:
    assert isinstance(shard, np.memmap)
    with pytest.raises(ValueError, match='read-only'):
      shard[0] = 1


def test_the_manifest_is_as_documented(kept):
  values = json.loads((kept.directory / store.MANIFEST).read_text())
  assert values['dtype'] == 'uint16' and values['tokenizer'] == {'kind': 'byte'}
  for count in ('tokens', 'documents', 'characters', 'empty_documents', 'invalid_utf8'):
    assert sum(shard[count] for shard in values['shards']) == values[count]
  files = [shard[file] for shard in values['shards'] for file in ('file', 'documents_file')]
  assert sorted(path.name for path in kept.directory.iterdir()) == sorted([store.MANIFEST, *files])
  for shard in values['shards']:
    data = (kept.directory / shard['file']).read_bytes()
    assert hashlib.sha256(data).hexdigest() == shard['sha256']


def test_the_content_hash_is_of_the_tokens_and_their_order(prepare_parts, tmp_path):
  def content_hash(name, parts, **knobs):
    return prepare_parts(parts, tmp_path / name, **knobs).sources[0].content_hash

  first = content_hash('a', [['ab'], ['c']])
  assert first == content_hash('b', [['ab'], [''], ['c']], splits=['train', '', 'test'])
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
  summary = kept.summary()
  assert summary.startswith('text:made.txt: 2 documents, 4 characters, 10 tokens, 3 empty')
  assert '2 invalid' in summary
  (plain,) = prepare_parts([['a']], tmp_path / 'b').sources
  assert plain.summary() == 'text:made.txt: 1 documents, 1 characters, 2 tokens'


def _verify(folder):
  read: list[int] = []
  store.Store.open(folder).verify(read.append)
  return sum(read)


def _fails(folder, file):
  assert raised.user_error(_verify, folder).key == str(folder / file)


def test_verifying_reads_everything(kept, monkeypatch):
  monkeypatch.setattr(store, '_BLOCK', 3)
  assert _verify(kept.directory) == kept.tokens.nbytes == 2 * kept.manifest.tokens


def _resealed(kept, folder, **changes):
  """A copy of a store whose manifest was changed and has the right hash."""
  shutil.copytree(kept.directory, folder)
  manifest = dataclasses.replace(kept.manifest, **changes).sealed()
  (folder / store.MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest)))
  return folder


def test_an_id_outside_the_vocabulary_is_noticed(kept, tmp_path):
  first, *others = kept.manifest.shards
  tokens = np.fromfile(kept.directory / first.file, '<u2')
  tokens[3] = 257
  digest = hashlib.sha256(tokens.tobytes()).hexdigest()
  shards = [dataclasses.replace(first, sha256=digest), *others]
  folder = _resealed(kept, tmp_path / 's', shards=shards)
  tokens.tofile(folder / first.file)
  _fails(folder, first.file)


@pytest.mark.parametrize(
  'changes',
  [{'format_version': 2}, {'tokenizer_hash': '0' * 64}, {'tokens': None}, {'shards': [{}]}],
)
def test_an_invalid_manifest_is_reported(kept, tmp_path, changes):
  values = json.loads((kept.directory / store.MANIFEST).read_text()) | changes
  folder = tmp_path / 's'
  shutil.copytree(kept.directory, folder)
  (folder / store.MANIFEST).write_text(json.dumps(values))
  _fails(folder, store.MANIFEST)


def test_another_tokenizer_under_the_same_description_is_noticed(kept, tmp_path):
  folder = _resealed(kept, tmp_path / 's', tokenizer_hash='0' * 64)
  _fails(folder, store.MANIFEST)


def _corrupt(folder, seed):
  """Does one random damage; returns what it was."""
  path, other = np.random.default_rng(seed).permutation(sorted(folder.iterdir()))[:2]
  data = path.read_bytes()
  match kind := seed % 8:
    case 5:
      path.unlink()
    case 6:
      path.write_bytes(data + bytes(1 + seed % 9))
    case 7:  # one file over the other, or the two exchanged
      path.write_bytes(other.read_bytes() if seed % 16 < 8 else data)
      other.write_bytes(data)
    case _:
      path.write_bytes(damage.damaged(data, seed // 8 * 5 + kind))
  return f'{path.name} {kind} {other.name}'


def test_every_corruption_is_noticed_or_changes_nothing(kept, tmp_path):
  """Two hundred seeded ones, in each file of the store."""
  before = {path.name: path.read_bytes() for path in kept.directory.iterdir()}
  harmless = []
  for seed in range(200):
    folder = tmp_path / str(seed)
    shutil.copytree(kept.directory, folder)
    what = _corrupt(folder, seed)
    same = {path.name: path.read_bytes() for path in folder.iterdir()} == before
    try:
      _verify(folder)
    except errors.UserError as e:
      assert e.key.startswith(str(folder)) and not same, what
    else:  # zeros over zeros, or a file over one of the same content
      assert same, f'{what} was not noticed'
      harmless.append(what)
    shutil.rmtree(folder)
  assert len(harmless) < 20, harmless
