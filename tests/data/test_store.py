"""A store gives back the tokens that went in, or says what is wrong with it."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import errors
from gpt_jax.data import store, store_writer, tokenizers

BYTE = tokenizers.build('byte', [])


def write(directory, documents, tokenizer=BYTE, progress=None):
  return store_writer.write(
    directory, documents, tokenizer, source='text:x', fingerprint={'n': 1}, progress=progress
  )


@hypothesis.settings(max_examples=25)
@hypothesis.given(
  documents=st.lists(st.text(st.characters(exclude_categories=['Cs']), min_size=1), min_size=1),
  kind=st.sampled_from(['char', 'byte']),
)
def test_documents_come_back(tmp_path_factory, documents, kind):
  tokenizer = tokenizers.build(kind, documents)
  directory = tmp_path_factory.mktemp('stores') / 'store'
  write(directory, iter(documents), tokenizer)
  kept = store.Store.open(directory)
  kept.verify()
  assert kept.tokenizer().hash == tokenizer.hash
  assert kept.tokenizer().decode(kept.tokens) == ''.join(documents)
  assert kept.manifest.documents == len(documents)
  assert kept.manifest.characters == len(''.join(documents))
  assert kept.manifest.tokens == len(kept.tokens)
  ends = (kept.tokens == 256).sum() if kind == 'byte' else 0
  assert ends == (len(documents) if kind == 'byte' else 0)


def test_each_document_ends_with_the_end_of_text(tmp_path):
  tokens = write(tmp_path / 's', ['ab', 'c']).tokens
  assert tokens.tolist() == [97, 98, 256, 99, 256]


def test_many_documents_stream_through_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(store_writer, '_BATCH_CHARACTERS', 10)
  behind = []
  drawn = 0

  def documents():
    nonlocal drawn
    for drawn in range(1, 301):
      yield f'{drawn};'

  def progress(documents, characters, tokens):
    behind.append(drawn - documents)
    assert tokens == characters + documents

  kept = write(tmp_path / 's', documents(), progress=progress)
  assert kept.tokenizer().decode(kept.tokens) == ''.join(f'{i};' for i in range(1, 301))
  assert len(behind) > 50 and max(behind) == 0, 'documents are held back'


@pytest.mark.parametrize(('vocab_size', 'dtype'), [(65_536, np.uint16), (65_537, np.uint32)])
def test_the_type_is_the_smallest_that_holds_the_vocabulary(tmp_path, vocab_size, dtype):
  points = [i for i in range(32, vocab_size + 2048 + 32) if not 0xD800 <= i < 0xE000]
  alphabet = ''.join(map(chr, points))
  char = tokenizers.build('char', [alphabet])
  assert char.vocab_size == vocab_size
  kept = write(tmp_path / 's', [alphabet], char)
  assert kept.tokens.dtype == np.dtype(dtype).newbyteorder('<')
  assert kept.tokens.tolist() == list(range(vocab_size))


def test_the_split_is_by_position(tmp_path):
  kept = write(tmp_path / 's', ['x' * 998])
  for fraction, expected in [(0.1, 899), (0.5, 499), (0.25, 749)]:
    train, val = kept.split(fraction)
    assert len(train) == expected
    assert np.concatenate([train, val]).tolist() == kept.tokens.tolist()


def test_tokens_are_mapped_and_cannot_be_changed(tmp_path):
  tokens = write(tmp_path / 's', ['text']).tokens
  assert isinstance(tokens, np.memmap)
  with pytest.raises(ValueError, match='read-only'):
    tokens[0] = 1


@pytest.mark.parametrize('problem', [KeyboardInterrupt, errors.Stopped, errors.UserError])
def test_nothing_is_left_of_a_broken_write(tmp_path, problem):
  def documents():
    yield 'text' * 10**6
    raise problem('enough')

  with pytest.raises(problem):
    write(tmp_path / 's', documents())
  assert not list(tmp_path.iterdir())


def test_a_document_that_cannot_be_encoded_leaves_nothing(tmp_path):
  with pytest.raises(errors.UserError, match='outside the vocabulary'):
    write(tmp_path / 's', ['ab', 'abc'], tokenizers.build('char', ['ab']))
  assert not list(tmp_path.iterdir())


def test_no_text_is_no_store(tmp_path):
  with pytest.raises(errors.UserError, match='is empty'):
    write(tmp_path / 's', [])
  assert not list(tmp_path.iterdir())


def test_the_first_of_two_writers_wins(tmp_path):
  def documents():
    yield 'late'
    write(tmp_path / 's', ['early'])

  late = write(tmp_path / 's', documents())
  late.verify()
  assert BYTE.decode(late.tokens) == 'early'
  assert [path.name for path in tmp_path.iterdir()] == ['s']


class TestDamage:
  @pytest.fixture(autouse=True)
  def sound(self, tmp_path):
    self.directory = tmp_path / 's'
    kept = write(self.directory, ['some text'])
    self.shard = self.directory / kept.manifest.shards[0].file
    self.manifest = self.directory / 'manifest.json'

  def opening_fails(self, *words):
    with pytest.raises(errors.UserError) as e:
      store.Store.open(self.directory)
    for word in (str(self.directory), *words):
      assert word in str(e.value)

  @pytest.mark.parametrize('size', [0, 1, 19, 21])
  def test_a_shard_of_another_length(self, size):
    self.shard.write_bytes(self.shard.read_bytes().ljust(21)[:size])
    self.opening_fails(str(self.shard), f'{size} bytes, expected 20', 'Delete')

  def test_a_missing_shard(self):
    self.shard.unlink()
    self.opening_fails(str(self.shard), 'Delete')

  def test_no_manifest(self):
    self.manifest.unlink()
    self.opening_fails('not a token store')

  @pytest.mark.parametrize('text', ['', '{', '[]', '{}', '{"format_version": 1}', '\xff'])
  def test_a_manifest_that_is_none(self, text):
    self.manifest.write_bytes(text.encode('latin-1'))
    self.opening_fails('not a manifest', 'Delete')

  @pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [('format_version', 2, 'format 2'), ('dtype', 'int8', 'type'), ('shards', [], 'shards')],
  )
  def test_a_manifest_of_another_format(self, key, value, message):
    self.manifest.write_text(json.dumps({**json.loads(self.manifest.read_text()), key: value}))
    self.opening_fails(message)

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(bit=st.integers(0, 159))
  def test_a_flipped_bit_is_found_by_verify(self, bit):
    sound = self.shard.read_bytes()
    rotten = bytearray(sound)
    rotten[bit // 8] ^= 1 << bit % 8
    self.shard.write_bytes(rotten)
    try:
      with pytest.raises(errors.UserError, match='SHA-256'):
        store.Store.open(self.directory).verify()
    finally:
      self.shard.write_bytes(sound)

  def test_another_tokenizer(self):
    values = json.loads(self.manifest.read_text())
    values['tokenizer'] = {'kind': 'char', 'characters': 'abc'}
    self.manifest.write_text(json.dumps(values))
    with pytest.raises(errors.UserError, match='tokenizer'):
      store.Store.open(self.directory).tokenizer()
