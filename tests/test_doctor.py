"""The doctor names each thing that is wrong, and goes on to the next."""

import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import pytest

from gpt_jax import cli, doctor, train
from gpt_jax.data.tokenizers import bpe
from gpt_jax.generation import language_model
from gpt_jax.training import metrics
from tests import raised


@pytest.fixture
def quick(monkeypatch, tmp_path):
  """Leaves training out, and gives the doctor a folder and a vocabulary."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(doctor, '_cycle', lambda: 'yes')
  monkeypatch.setattr(bpe, 'find_merges', lambda: b'#version\na b\n')
  before = jax.config.values['jax_compilation_cache_dir']
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'xla'))
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def _call(capsys):
  """Returns the exit code, and whether each check found nothing wrong."""
  try:
    doctor.main(doctor.define_flags())
    code = 0
  except SystemExit as e:
    code = int(e.code or 0)
  lines = capsys.readouterr().out.splitlines()
  assert all(len(line) <= 100 or ' ' not in line[26:] for line in lines)
  heads = [line for line in lines if line[:5].strip()]
  return code, {line[7:24].strip(): line[:5].strip() != 'WRONG' for line in heads}


def test_a_sound_machine(quick, capsys):
  code, found = _call(capsys)
  assert code == 0
  assert len(found) == 6
  assert all(found.values())


def _no_devices():
  raise RuntimeError('no TPU')


def _no_file(**_):
  raise PermissionError(13, 'Permission denied')


@pytest.mark.parametrize(
  ('place', 'name', 'change', 'wrong'),
  [
    (jax, 'devices', _no_devices, ['devices']),
    (tempfile, 'TemporaryFile', _no_file, ['this folder', 'compiled programs']),
    (doctor, '_PACKAGES', ('nonesuch',), ['versions']),
  ],
)
def test_what_is_wrong_is_named(quick, capsys, monkeypatch, place, name, change, wrong):
  monkeypatch.setattr(place, name, change)
  code, found = _call(capsys)
  assert code == cli.USER_ERROR
  assert [name for name, right in found.items() if not right] == wrong
  assert len(found) == 6


def test_the_tiny_run_learns_and_leaves_nothing(monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  assert 'loss' in doctor._cycle()
  assert list(pathlib.Path(tmp_path).iterdir()) == []
  assert capsys.readouterr().out == ''
  monkeypatch.setattr(train, 'train', lambda *_: None)
  with pytest.raises(Exception, match='.'):
    doctor._cycle()


def test_a_gpu_that_jax_does_not_see_is_wrong_and_nothing_is_trained(quick, capsys, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(shutil, 'which', lambda name: f'/usr/bin/{name}')
  monkeypatch.setattr(doctor, '_cycle', lambda: pytest.fail('trained'))
  code, found = _call(capsys)
  assert code == cli.USER_ERROR
  assert [name for name, right in found.items() if not right] == ['devices']


def test_a_loss_that_does_not_fall_is_wrong(monkeypatch):
  monkeypatch.setattr(train, 'train', lambda *_: None)
  monkeypatch.setattr(metrics, 'column', lambda *_: ([0, 30], [1.0, 1.0]))
  monkeypatch.setattr(language_model, 'load', mock.Mock())
  assert raised.user_error(doctor._cycle).key == 'loss'
