"""A config becomes the rows of its training and validation split."""

import json
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs
from gpt_jax.data import loader
from tests import raised


@pytest.fixture
def make_config(tmp_path):
  """A function that gives a config with a cache of its own; values are by key in `data`."""

  def make(source, **data):
    config = config_lib.Config(model=config_lib.ModelConfig(block_size=16))
    defaults = {'tokenizer': 'byte', 'val_fraction': 0.3, 'processes': 1}
    data = {'source': source, 'cache_dir': str(tmp_path / 'cache'), **defaults, **data}
    return knobs.replace(config, {f'data.{key}': value for key, value in data.items()})

  return make


@pytest.fixture
def mixture(tmp_path):
  """Two sets of documents, mixed."""
  for name, words in [('a', 'some short words. and more.'), ('b', 'other text. ends. here.')]:
    lines = [json.dumps({'text': f'{words} {i}. ' * (1 + i % 3)}) for i in range(40)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))
  return f'3*jsonl:{tmp_path}/a.jsonl + 1*jsonl:{tmp_path}/b.jsonl'


def _open(config):
  return loader.open_data(config, check=None)


@pytest.mark.parametrize('kind', ['windows', 'partition', 'packed', 'sentences'])
def test_a_config_has_the_same_data_each_time(make_config, mixture, kind):
  config = make_config(mixture, chunks=kind, min_length=4, max_length=17, split='document')
  one, other = _open(config), _open(config)
  assert one.content_hashes == other.content_hashes
  assert set(one.content_hashes) == {source.spec for source in one.sources}
  assert one.train.weights == one.val.weights == (3, 1)
  assert one.train.summary.count(' + ') == one.val.summary.count(' + ') == 1
  for number in (0, 10**9):
    rows = [data.train.train_rows(number + np.arange(8)) for data in (one, other)]
    assert rows[0].inputs.shape == (8, 16)
    for first, second in zip(*rows, strict=True):
      np.testing.assert_array_equal(first, second)


def test_the_seed_of_the_config_orders_the_rows(make_config, mixture):
  first, second = (
    _open(make_config(mixture, seed=seed)).train.train_rows(np.arange(400)).inputs
    for seed in (0, 1)
  )
  assert not np.array_equal(first, second)


def test_each_split_has_its_own_text(make_config, tmp_path):
  (tmp_path / 'text.txt').write_text('a' * 300 + 'b' * 100)
  data = _open(make_config(f'text:{tmp_path}/text.txt', val_fraction=0.25))
  assert set(np.unique(data.train.train_rows(np.arange(99)).inputs)) == {ord('a')}
  assert set(np.unique(data.val.val_rows(np.arange(9), total=9).inputs)) == {ord('b')}


@pytest.mark.parametrize(
  ('tokenizer', 'specials', 'start', 'pad'),
  [
    ('byte', '', 256, 256),
    ('byte', 'bos', 257, 256),
    ('char', '', None, 0),
    ('char', 'bos', 2, 0),
    ('char', 'bos eos pad', 2, 4),
  ],
)
def test_special_tokens_open_and_fill_packed_rows(
  make_config, tmp_path, tokenizer, specials, start, pad
):
  lines = [json.dumps({'text': 'ab' * (4 + i % 4)}) for i in range(60)]
  (tmp_path / 'ab.jsonl').write_text('\n'.join(lines))
  spec = f'jsonl:{tmp_path}/ab.jsonl'
  config = make_config(spec, tokenizer=tokenizer, special_tokens=specials, chunks='packed')
  rows = _open(config).train.train_rows(np.arange(40))
  begins = np.diff(rows.segments, axis=1, prepend=0) > 0
  opened = set(np.unique(rows.inputs[begins]).tolist())
  assert opened == {start} if start is not None else 0 in opened
  assert set(np.unique(rows.inputs[rows.segments == 0]).tolist()) == {pad}


@pytest.mark.parametrize(
  ('key', 'values'),
  [
    ('data.sentence_end', {'chunks': 'sentences', 'sentence_end': '. etc.'}),
    ('data.split', {'split': 'given'}),
    ('data.chunks', {'val_fraction': 0.001}),
    ('data.source', {'source': 'nonesuch'}),
  ],
)
def test_a_mistake_is_found_at_its_key(make_config, mixture, key, values):
  assert raised.user_error(_open, make_config(**{'source': mixture, **values})).key == key


def _labelled(tmp_path, name, *classes):
  path = tmp_path / f'{name}.jsonl'
  lines = [{'text': f'{name} {i}', 'is': classes[i % len(classes)]} for i in range(40)]
  path.write_text('\n'.join(map(json.dumps, lines)))
  return f'jsonl:{path}'


def test_documents_of_all_sources_are_classified_alike(make_config, tmp_path):
  sources = [_labelled(tmp_path, 'a', 'good', 'bad'), _labelled(tmp_path, 'b', 'new', 'good')]
  values = {'label_field': 'is', 'split': 'document', 'test_fraction': 0.2}
  config = knobs.replace(make_config(' + '.join(sources), **values), {'task': 'classify'})
  data = _open(config)
  assert data.classes == ('bad', 'good', 'new') and data.test
  texts = set()
  for split in (data.train, data.val, data.test):
    for chunks in split.chunks:
      for inputs, targets in zip(*chunks.rows(np.arange(len(chunks)))[:2], strict=True):
        ends = np.flatnonzero(targets >= 0) + 1
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
          name, number = data.tokenizer.decode(inputs[begin:end]).split()
          wanted = {'a': ('good', 'bad'), 'b': ('new', 'good')}[name][int(number) % 2]
          assert data.classes[targets[end - 1]] == wanted
          texts.add((name, number))
  assert len(texts) == 80


@pytest.mark.parametrize('classes', [None, ('good',)])
def test_there_must_be_classes_to_tell_apart(make_config, tmp_path, classes):
  source = _labelled(tmp_path, 'a', *(classes or ('x', 'y')))
  config = make_config(source, label_field='is' if classes else '')
  assert _open(config).test is None
  error = raised.user_error(_open, knobs.replace(config, {'task': 'classify'}))
  assert error.key == 'data.label_field' and ('good' in error.problem) == bool(classes)


def test_the_tokens_are_verified_unless_that_is_not_wanted(make_config, mixture, tmp_path):
  _open(make_config(mixture))
  (path, *_) = (tmp_path / 'cache').glob('*/tokens-00000.bin')
  path.write_bytes(b'\xff' + path.read_bytes()[1:])
  assert raised.user_error(_open, make_config(mixture)).key == str(path)
  _open(make_config(mixture, verify=False))


def test_token_files_that_changed_are_noticed_without_verifying(make_config, tmp_path):
  path = tmp_path / 'train.bin'
  hashes = []
  for last in (3, 4):
    np.array([1, 2, 256, last] * 50, np.uint16).tofile(path)
    config = make_config(f'tokens:{path}', verify=False)
    hashes.append(_open(config).content_hashes[f'tokens:{path}'])
  assert hashes[0] != hashes[1]


def test_a_stop_request_ends_the_preparation(make_config, mixture):
  with pytest.raises(errors.Stopped):
    loader.open_data(make_config(mixture), check=mock.Mock(side_effect=errors.Stopped))


def test_the_data_pipeline_needs_no_module_of_unix_alone():
  """Windows has none of these."""
  program = 'import sys; sys.modules.update(fcntl=None, resource=None, pwd=None); '
  program += 'import gpt_jax.data.loader'
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
