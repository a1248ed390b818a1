"""A text to measure on has the tokens that training would have, by the model's tokenizer."""

import contextlib
import json
import pathlib
import tempfile

import numpy as np
import pytest

from gpt_jax import config, errors
from gpt_jax.data import prepare, store, tokenizers
from gpt_jax.data.store import writer
from gpt_jax.data.tokenizers import char
from gpt_jax.evaluation import corpus

BYTE = char.ByteTokenizer()
END = BYTE.end_of_text


def _open(spec, tokenizer=BYTE, **options):
  defaults = {
    'text_field': 'text',
    'invalid_utf8': 'fail',
    'split': '',
    'limit': None,
    'progress': None,
  }
  return corpus.open_tokens(str(spec), tokenizer, **(defaults | options))


def _ids(spec, tokenizer=BYTE, **options):
  with _open(spec, tokenizer, **options) as tokens:
    return tokens.read(0, len(tokens)).tolist()


def _stored(data):
  """The token store that training makes."""
  (made,) = prepare.prepare(data, progress=None, check=None).sources
  assert isinstance(made, store.Store)
  return made


@pytest.fixture
def texts(tmp_path):
  """A spec of two documents and an empty one."""
  for name, text in (('a', 'one'), ('b', ''), ('c', 'zwei é')):
    (tmp_path / f'{name}.txt').write_text(text)
  return f'text:{tmp_path}/*.txt'


@pytest.mark.parametrize(
  'tokenizer', [BYTE, char.ByteTokenizer(['bos']), char.CharTokenizer('onezwi é')]
)
def test_the_tokens_are_those_of_training(texts, tmp_path, tokenizer):
  data = config.DataConfig(
    source=texts,
    tokenizer=tokenizer.kind,
    special_tokens='bos' if tokenizer.start_of_text else '',
    cache_dir=str(tmp_path / 'cache'),
    processes=1,
  )
  trained = _stored(data)
  tokens = trained.tokenized().tokens
  # A vocabulary that is counted has an order of its own.
  spelled = trained.tokenizer().decode(tokens.read(0, len(tokens)))
  assert tokenizer.decode(_ids(texts, tokenizer)) == spelled == 'onezwei é'
  if tokenizer.kind == 'byte':
    assert _ids(texts, tokenizer) == tokens.read(0, len(tokens)).tolist()
    assert _ids(trained.directory, tokenizer) == _ids(texts, tokenizer)


def test_a_store_of_another_tokenizer_is_refused(texts, tmp_path):
  data = config.DataConfig(source=texts, tokenizer='char', cache_dir=str(tmp_path / 'cache'))
  made = _stored(data)
  assert _ids(made.directory, made.tokenizer(), limit=2) == made.tokenizer().encode('on').tolist()
  other = char.CharTokenizer('abc')
  with pytest.raises(errors.UserError, match='tokens of another tokenizer .char.*--data=text:'):
    _ids(made.directory, other)
  with pytest.raises(errors.UserError, match='is not a token store'):
    _ids(tmp_path)


def test_ready_tokens_are_read_as_they_are(tmp_path):
  np.array([1, 2, END], np.uint16).tofile(tmp_path / 'train.bin')
  np.array([3, 4, END], np.uint16).tofile(tmp_path / 'val.bin')
  assert _ids(f'tokens:{tmp_path}') == [1, 2, END, 3, 4, END]
  assert _ids(f'tokens:{tmp_path}', split='validation') == [3, 4, END]


@pytest.fixture
def parquet(tmp_path):
  """The spec of a folder with two splits, as Hugging Face has them."""
  import pyarrow
  from pyarrow import parquet

  for split, texts in (('train', ['abc', 'd']), ('test', ['ef'])):
    table = pyarrow.table({'words': texts})
    parquet.write_table(table, tmp_path / f'{split}-00000-of-00001.parquet')
  return f'parquet:{tmp_path}'


def test_a_split_and_a_field_are_chosen(parquet, tmp_path):
  end = [END]
  assert _ids(parquet, text_field='words', split='test') == [*b'ef', *end]
  assert _ids(parquet, text_field='words') == [*b'abc', *end, *b'd', *end, *b'ef', *end]
  with pytest.raises(errors.UserError, match='--split=val: .* no such split; .* test, train'):
    _ids(parquet, text_field='words', split='val')
  data = config.DataConfig(
    source=parquet, text_field='words', tokenizer='byte', cache_dir=str(tmp_path / 'cache')
  )
  made = _stored(data)
  assert _ids(made.directory, split='test') == [*b'ef', *end]


def test_the_limit_cuts(tmp_path, parquet):
  assert _ids(parquet, text_field='words', limit=5) == [*b'abc', END, *b'd']
  np.array([1, 2, 3], np.uint16).tofile(tmp_path / 'a.bin')
  np.array([4, 5], np.uint16).tofile(tmp_path / 'b.bin')
  for limit in range(1, 8):
    assert _ids(f'tokens:{tmp_path}', limit=limit) == [1, 2, 3, 4, 5][:limit]


@pytest.mark.parametrize(('limit', 'parts'), [(6, 1), (7, 2), (None, 2)])
def test_no_more_parts_are_encoded_than_the_limit_needs(parquet, monkeypatch, limit, parts):
  write_part, written, told = writer.write_part, [], []

  def recording(task):
    written.append(task.number)
    return write_part(task)

  monkeypatch.setattr(writer, 'write_part', recording)
  _ids(parquet, text_field='words', limit=limit, progress=lambda *args: told.append(args))
  assert len(written) == len(told) == parts
  assert all(0 < done <= whole for _, done, whole in told)


def test_nothing_stays_behind(texts, tmp_path, monkeypatch):
  (tmp_path / 'temporary').mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
  with _open(texts) as tokens:
    assert len(tokens) == 12
    assert list((tmp_path / 'temporary').rglob('*.bin'))
  with contextlib.suppress(ZeroDivisionError), _open(texts):
    _ = 1 / 0
  assert not list((tmp_path / 'temporary').iterdir())


def test_a_character_outside_the_vocabulary_is_told_with_its_file(texts, tmp_path):
  with pytest.raises(errors.UserError, match=r"c\.txt: the text has .*'é' at position 5"):
    _ids(texts, char.CharTokenizer('onezwi '))
  lines = ('abba', 'xaxb')
  path = tmp_path / 'x.jsonl'
  path.write_text('\n'.join(json.dumps({'text': line}) for line in lines))
  with pytest.raises(errors.UserError, match=r"x\.jsonl at byte 17: .*'x' at position 0, 'x'"):
    _ids(f'jsonl:{path}', char.CharTokenizer('ab'))


def test_text_that_is_not_utf8(tmp_path):
  (tmp_path / 'x').write_bytes(b'a\xe9b')
  with pytest.raises(errors.UserError, match='x is not UTF-8'):
    _ids(f'text:{tmp_path}/x')
  replaced = [*'a\ufffdb'.encode(), END]
  assert _ids(f'text:{tmp_path}/x', invalid_utf8='replace') == replaced


def test_an_empty_text_has_no_tokens(tmp_path):
  (tmp_path / 'x').touch()
  assert _ids(f'text:{tmp_path}/x') == []


@pytest.mark.parametrize(
  ('spec', 'complaint'),
  [
    ('text:a + text:b', 'is a mixture: measure one source'),
    ('0.5*text:a', 'is a mixture'),
    ('text:nonesuch', 'no such file'),
    ('nonesuch', 'no such source'),
  ],
)
def test_mistakes_are_told(spec, complaint):
  with pytest.raises(errors.UserError, match=complaint):
    _ids(spec)


def test_a_full_disk_is_told(texts, monkeypatch):
  def full(*args):
    raise OSError(28, 'No space left on device')
    yield

  monkeypatch.setattr(writer, 'write_part', full)
  with pytest.raises(errors.UserError, match='No space left on device.*TMPDIR'):
    _ids(texts)


def test_a_tokenizer_that_was_read_again_is_the_same(tmp_path):
  (tmp_path / 'x').write_text('ab')
  again = tokenizers.from_dict(json.loads(json.dumps(char.CharTokenizer('ba').to_dict())))
  assert _ids(f'text:{pathlib.Path(tmp_path)}/x', again) == [1, 0]
