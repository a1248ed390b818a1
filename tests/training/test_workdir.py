"""A workdir describes its run, and is left as it was where another run may not go on in it."""

import json

import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data.tokenizers import char
from gpt_jax.training import workdir as workdir_lib

_KNOBS = [knob.key for knob in config_lib.knobs(config_lib.Config())]

# What may change within a run: where it is computed and how often one looks, not what is computed.
_FREE = {
  'mesh.data',
  'mesh.fsdp',
  'mesh.tensor',
  'mesh.cpu_devices',
  'data.cache_dir',
  'data.processes',
  'data.verify',
  'train.gradient_accumulation',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.tensorboard',
  'model.attention',
  'model.remat',
}

_TEXT = {'text:x': '0123'}

_OTHER = {
  'mesh.data': 2,
  'data.tokenizer': 'char',
  'data.invalid_utf8': 'replace',
  'data.special_tokens': 'bos',
  'data.chunks': 'packed',
  'data.split': 'document',
  'data.source': 'text:x',
  'init_from': 'x',
  'data.cache_dir': 'x',
  'data.val_fraction': 0.5,
  'model.attention': 'xla',
  'model.dtype': 'bfloat16',
  'model.dropout': 0.5,
  'optimizer.schedule': 'linear',
  'optimizer.min_learning_rate': 1e-5,
  'optimizer.b1': 0.5,
  'optimizer.b2': 0.5,
  'model.n_embd': 1536,
  'model.n_head': 6,
}


def _with(values):
  config = config_lib.Config()
  config.model.vocab_size = 257
  config.data.tokenizer = 'byte'
  config.init_from = 'runs/base'  # which adapters need
  for key, value in values.items():
    section, _, name = key.rpartition('.')
    setattr(getattr(config, section) if section else config, name, value)
  return config


def _another(key):
  """A sound value of `key` that isn't the default."""
  value = {knob.key: knob.value for knob in config_lib.knobs(_with({}))}[key]
  return _OTHER.get(key, not value if type(value) is bool else value * 2 or 1)


def _files(folder):
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
    for path in folder.rglob('*')
  }


@pytest.fixture
def started(tmp_path):
  """A workdir in which a run with the default config has saved a checkpoint."""
  workdir = workdir_lib.Workdir(tmp_path / 'runs' / 'one')
  workdir.start(_with({}), char.ByteTokenizer(), _TEXT)
  (workdir.checkpoints / '5').mkdir(parents=True)
  return workdir


def test_a_run_is_described_as_it_is(tmp_path):
  workdir = workdir_lib.Workdir(str(tmp_path / 'a' / 'b'))
  config = _with({'model.n_layer': 3, 'data.source': 'text:☃ "quoted"', 'optimizer.b2': 0.999})
  tokenizer = char.CharTokenizer('\n aé☃')
  workdir.start(config, tokenizer, _TEXT)
  assert workdir.read_config() == config
  assert workdir.read_tokenizer().hash == tokenizer.hash
  assert workdir.read_tokenizer().decode([3, 4]) == 'é☃'
  names = ['config.json', 'text.json', 'tokenizer.json']
  assert sorted(path.name for path in workdir.path.iterdir()) == names
  assert json.loads(workdir.config.read_text(encoding='utf-8'))['model']['n_layer'] == 3


@pytest.mark.parametrize('key', _KNOBS)
def test_the_same_run_goes_on_and_another_is_refused(started, key):
  changed = _with({key: _another(key)})
  validation.validate(changed)
  before = _files(started.path)
  started.check(_with({}))
  if key in _FREE:
    started.check(changed)
  else:
    with pytest.raises(errors.UserError) as e:
      started.check(changed)
    _, line, *_ = str(e.value).splitlines()
    old = {knob.key: knob.value for knob in config_lib.knobs(_with({}))}[key]
    assert line.strip() == f'{key}: {old!r} there, {_another(key)!r} here'
    assert str(started.path) in str(e.value) and '--workdir' in str(e.value)
  assert _files(started.path) == before


def test_all_differences_are_told_and_nothing_else(started):
  keys = ['model.n_layer', 'data.seed', 'train.steps', 'optimizer.b1']
  changed = _with({key: _another(key) for key in [*keys, 'mesh.fsdp', 'train.log_every']})
  with pytest.raises(errors.UserError) as e:
    started.check(changed)
  lines = [line.strip() for line in str(e.value).splitlines() if ' there, ' in line]
  assert [line.split(':')[0] for line in lines] == keys


def test_a_vocabulary_size_that_is_not_known_yet_is_no_difference(started):
  started.check(_with({'model.vocab_size': 0}))
  with pytest.raises(errors.UserError, match='model.vocab_size: 257 there, 300 here'):
    started.check(_with({'model.vocab_size': 300}))


def test_a_check_leaves_nothing_behind(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path / 'a' / 'b')
  workdir.check(config_lib.Config())
  assert list(tmp_path.iterdir()) == []
  workdir.path.mkdir(parents=True)
  workdir.check(config_lib.Config())
  assert list(workdir.path.iterdir()) == []


@pytest.mark.parametrize('name', ['file', 'file/run', 'file/a/run'])
def test_a_file_in_the_way_is_named(tmp_path, name):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(errors.UserError) as e:
    workdir_lib.Workdir(tmp_path / name).check(config_lib.Config())
  assert str(tmp_path / name) in str(e.value) and '--workdir' in str(e.value)
  assert (tmp_path / 'file').read_text() == 'mine'


def test_checkpoints_of_an_unknown_run_are_not_mixed_with_new_ones(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(errors.UserError, match='no config.json'):
    workdir_lib.Workdir(tmp_path).check(config_lib.Config())


def test_a_run_does_not_go_on_with_another_vocabulary(started):
  before = _files(started.path)
  with pytest.raises(errors.UserError, match='(?s)other text.*--workdir'):
    started.start(_with({}), char.CharTokenizer('abc'), _TEXT)
  assert _files(started.path) == before
  started.start(_with({}), char.ByteTokenizer(), _TEXT)


@pytest.mark.parametrize('text', [{'text:x': '4567'}, {}, {'text:y': '0123'}])
def test_a_run_does_not_go_on_with_other_text(started, text):
  before = _files(started.path)
  with pytest.raises(errors.UserError, match='(?s)other text: text:x.*--workdir'):
    started.start(_with({}), char.ByteTokenizer(), text)
  assert _files(started.path) == before


def test_the_free_keys_of_a_run_are_those_it_was_last_started_with(started):
  config = _with({'train.log_every': 77})
  started.start(config, char.ByteTokenizer(), _TEXT)
  assert started.read_config() == config


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', ['config.json', 'damaged']),
    (b'{"model": {"n_layer"', ['config.json', 'damaged']),
    (b'\xff\xfe', ['config.json', 'damaged']),
    (b'[]', ['config.json', 'object']),
    (b'{"model": 3}', ['config.json', 'model']),
    (b'{"model": {"n_layers": 3}}', ['config.json', 'did you mean model.n_layer?']),
    (b'{"model": {"n_layer": 0}}', ['config.json', 'model.n_layer: 0']),
    (b'{"optimizer": {"clip": Infinity}}', ['config.json', 'optimizer.clip: inf']),
    (b'{"__doc__": {"x": 3}}', ['config.json', '__doc__']),
  ],
)
def test_a_damaged_config_is_named(started, content, words):
  started.config.write_bytes(content)
  for read in (started.read_config, lambda: started.check(_with({}))):
    with pytest.raises(errors.UserError) as e:
      read()
    assert all(word in str(e.value) for word in words), e.value
  assert started.config.read_bytes() == content


@pytest.mark.parametrize(
  'content',
  ['', '{}', '[]', '{"kind": "words"}', '{"kind": "char"}', '{"kind": "char", "characters": 1}'],
)
def test_a_damaged_tokenizer_is_refused(started, content):
  started.tokenizer.write_text(content)
  with pytest.raises(errors.UserError):
    started.read_tokenizer()
