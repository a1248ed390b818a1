"""A run directory describes its run, and is left as it was if another run may not resume in it."""

import json
import os
import types

import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs
from gpt_jax.data.tokenizers import char
from gpt_jax.training import run as run_lib
from gpt_jax.weights import manifest
from tests import raised

TEXT = {'text:x': '0123'}


def _config(**values):
  return knobs.replace(
    config_lib.Config(),
    {'model.vocab_size': 257, 'data.tokenizer': 'byte', 'data.source': 'text:x', **values},
  )


def _data(tokenizer=None, hashes=TEXT):
  return types.SimpleNamespace(
    tokenizer=tokenizer or char.ByteTokenizer(), content_hashes=dict(hashes)
  )


def _files(folder):
  return {
    path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
    for path in folder.rglob('*')
  }


def _started(folder, *, step=5, **values):
  """Returns the path of a run that has saved a checkpoint of `step`."""
  run = run_lib.Run(folder / 'runs' / 'one')
  run.start(_config(**values), _data())
  (run.checkpoints / str(step)).mkdir(parents=True)
  return run.path


def _refused_keys(path, config):
  before = _files(path)
  try:
    run_lib.Run(path).check(config)
    return []
  except errors.UserError as e:
    return [error.key for error in e.all]
  finally:
    assert _files(path) == before


def test_a_run_is_described_as_it_is(tmp_path):
  run = run_lib.Run(str(tmp_path / 'a' / 'b'))
  config = _config(**{'data.source': 'text:☃ "quoted"', 'optimizer.b2': 0.999})
  tokenizer = char.CharTokenizer('\n aé☃')
  run.start(config, _data(tokenizer))
  assert run.read_config() == config
  assert run.read_tokenizer().hash == tokenizer.hash
  assert json.loads(run.text.read_text()) == TEXT
  assert len(list(run.path.iterdir())) == 3


def test_a_run_resumes_with_its_config_and_what_does_not_change_its_parameters(tmp_path):
  path = _started(tmp_path)
  free = {
    'mesh.fsdp': 2,
    'processes.count': 3,
    'mesh.cpu_devices': 2,
    'data.cache_dir': 'x',
    'data.verify': False,
    'train.gradient_accumulation': 2,
    'train.log_every': 3,
    'train.eval_every': 7,
    'train.eval_batches': 9,
    'train.checkpoint_every': 11,
    'train.keep_checkpoints': 4,
    'train.max_minutes': 5.0,
    'train.patience': 3,
    'train.tensorboard': True,
    'train.trackers': 'wandb',
    'train.deterministic': True,
    'model.attention': 'xla',
    'model.remat': True,
    'model.remat_keep': 'products',
    'model.vocab_size': 0,  # not known yet
  }
  assert _refused_keys(path, _config()) == _refused_keys(path, _config(**free)) == []
  others = [
    (knob.key, knob.value)
    for knob in knobs.knobs(_config())
    if knob.key not in free and not knob.key.startswith(('mesh.', 'processes.', 'data.processes'))
  ]
  changed = {
    key: not value if type(value) is bool else 2 * value + 1 if type(value) is not str else 'word'
    for key, value in others
  }
  changed |= {'optimizer.schedule': 'linear', 'model.vocab_size': 300, 'model.mask_id': 3}
  assert _refused_keys(path, _config(**changed)) == [
    key for key in map(lambda knob: knob.key, knobs.knobs(_config())) if key in changed
  ]


CONSTANT = {'train.steps': 10, 'optimizer.schedule': 'constant', 'optimizer.warmup_steps': 2}
WSD = {**CONSTANT, 'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 2}


@pytest.mark.parametrize(
  ('old', 'step', 'changes', 'refused'),
  [
    (CONSTANT, 10, {'train.steps': 20}, []),
    (CONSTANT, 10, {'optimizer.min_learning_rate': 1e-9, 'optimizer.decay_steps': 4}, []),
    (CONSTANT, 7, {'train.steps': 7}, []),
    (CONSTANT, 7, {'train.steps': 6}, ['train.steps']),
    (CONSTANT, 7, {'train.steps': 9, 'optimizer.learning_rate': 1e-3}, None),
    (CONSTANT, 2, {'optimizer.warmup_steps': 1}, ['optimizer.warmup_steps']),
    (CONSTANT, 0, {'optimizer.learning_rate': 1e-3}, []),
    (CONSTANT, 9, {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 1}, []),
    ({**CONSTANT, 'optimizer.schedule': 'cosine'}, 7, {'train.steps': 20}, ['train.steps']),
    ({**CONSTANT, 'optimizer.schedule': 'cosine'}, 2, {'train.steps': 20}, []),
    (WSD, 8, {'train.steps': 20, 'optimizer.decay_steps': 5}, []),
    (WSD, 10, {'train.steps': 20}, ['train.steps']),
    (WSD, 10, {'train.steps': 20, 'optimizer.b1': 0.5}, ['train.steps', 'optimizer.b1']),
  ],
)
def test_a_schedule_may_change_if_it_is_the_same_so_far(tmp_path, old, step, changes, refused):
  path = _started(tmp_path, step=step, **old)
  refused = list(changes) if refused is None else refused
  assert _refused_keys(path, _config(**{**old, **changes})) == refused


def test_a_run_that_has_saved_nothing_may_become_another(tmp_path):
  path = _started(tmp_path)
  (path / 'checkpoints' / '5').rename(path / 'checkpoints' / '5.unfinished')
  (path / 'config.json').write_text('damaged')
  assert _refused_keys(path, _config(**{'model.n_layer': 3})) == []


def test_a_check_leaves_nothing_behind(tmp_path):
  run = run_lib.Run(tmp_path / 'a' / 'b')
  run.check(_config())
  assert list(tmp_path.iterdir()) == []
  run.path.mkdir(parents=True)
  run.check(_config())
  assert list(run.path.iterdir()) == []


def test_a_run_does_not_resume_if_it_cannot_save(tmp_path, monkeypatch):
  path = _started(tmp_path)
  run, before = run_lib.Run(path), _files(path)
  monkeypatch.setattr(os, 'access', lambda place, _: place != run.checkpoints)
  assert raised.user_error(run.start, _config(**{'train.log_every': 7}), _data()).key == 'workdir'
  assert _files(path) == before


def test_checkpoints_without_a_config_are_not_mixed_with_new_ones(tmp_path):
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  assert _refused_keys(tmp_path, _config()) == ['workdir']


@pytest.mark.parametrize(
  ('data', 'keys'),
  [
    (_data(char.CharTokenizer('abc')), ['data.tokenizer']),
    (_data(hashes={'text:x': '4567'}), ['data.source']),
    (_data(hashes={'text:y': '0123'}), ['data.source']),
    (_data(char.CharTokenizer('abc'), {}), ['data.source', 'data.tokenizer']),
  ],
)
def test_a_run_does_not_resume_on_other_text_or_with_another_tokenizer(tmp_path, data, keys):
  path = _started(tmp_path)
  before = _files(path)
  with pytest.raises(errors.UserError) as e:
    run_lib.Run(path).start(_config(), data)
  assert [error.key for error in e.value.all] == keys
  assert _files(path) == before


def _checkpoint(folder, step):
  """Writes a checkpoint of one file."""
  path = folder / str(step)
  (path / 'params').mkdir(parents=True)
  (path / 'params' / 'x').write_bytes(b'123')
  manifest.write(path, manifest.Manifest(step, None, {}, {}, {}))


def test_damaged_checkpoints_are_set_aside_and_the_newest_intact_one_is_taken(tmp_path, capsys):
  folder = tmp_path / 'checkpoints'
  (folder / '8.damaged').mkdir(parents=True)  # from an earlier time
  for step in (2, 4, 6, 8):
    _checkpoint(folder, step)
  for step in (2, 6, 8):
    (folder / str(step) / 'params' / 'x').write_bytes(b'124')
  run = run_lib.Run(tmp_path)
  assert run.step == 8
  run.find_intact()
  assert run.step == run_lib.Run(tmp_path).step == 4
  assert sorted(path.name for path in folder.iterdir()) == ['2', '4', '6.damaged', '8.damaged']
  told = capsys.readouterr().out.splitlines()
  assert [str(folder / step) in line for step, line in zip('86', told, strict=True)] == [True] * 2
  run.find_intact()
  assert capsys.readouterr().out == ''


def test_without_an_intact_checkpoint_all_stay_where_they_are(tmp_path):
  folder = tmp_path / 'checkpoints'
  for step in (2, 4):
    _checkpoint(folder, step)
    (folder / str(step) / 'params' / 'x').unlink()
  assert raised.user_error(run_lib.Run(tmp_path).find_intact).key == 'workdir'
  assert sorted(path.name for path in folder.iterdir()) == ['2', '4']


def test_a_run_without_checkpoints_has_none_to_set_aside(tmp_path):
  run = run_lib.Run(tmp_path / 'new')
  run.find_intact()
  assert run.step is None
  assert not run.path.exists()


def test_what_changed_is_written_when_a_run_resumes(tmp_path):
  path, config = _started(tmp_path), _config(**{'train.log_every': 77})
  run_lib.Run(path).start(config, _data())
  assert run_lib.Run(path).read_config() == config
