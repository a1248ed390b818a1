"""A name gives the model that the cache of the Hub has, without a network."""

import pathlib
import shutil
import sys

import pytest
from huggingface_hub import constants

from gpt_jax.weights import hub, saved_model
from tests import raised

_TIED = pathlib.Path(__file__).with_name('fixtures') / 'huggingface' / 'tied'
_OLD, _NEW = '1' * 40, '2' * 40


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
  """The cache of the Hub with two revisions of GPT-2, the older of which has a pickle alone."""
  folder = tmp_path / 'models--openai-community--gpt2'
  (folder / 'refs').mkdir(parents=True)
  (folder / 'refs' / 'main').write_text(_NEW)
  shutil.copytree(_TIED, folder / 'snapshots' / _NEW)
  shutil.copytree(_TIED, folder / 'snapshots' / _OLD)
  weights = folder / 'snapshots' / _OLD / 'model.safetensors'
  weights.rename(weights.with_name('pytorch_model.bin'))
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  return folder


def test_a_name_of_gpt2_or_of_its_repository_opens_the_newest_revision(cache: pathlib.Path) -> None:
  wanted = saved_model.open_model(_TIED).config
  for name in ('gpt2', 'hf:openai-community/gpt2', f'hf:openai-community/gpt2@{_NEW}'):
    found = saved_model.open_model(name)
    assert found.config == wanted and found.path.name == _NEW


def test_a_revision_is_the_one_that_is_asked_for_and_a_pickle_is_refused(
  cache: pathlib.Path,
) -> None:
  error = raised.user_error(saved_model.open_model, f'hf:openai-community/gpt2@{_OLD}')
  assert _OLD in error.key and 'pickle' in error.problem


def test_a_folder_comes_first(cache: pathlib.Path) -> None:
  assert hub.download('gpt2') is not None
  shutil.copytree(_TIED, 'gpt2')
  assert hub.download('gpt2') is None
  assert saved_model.open_model('gpt2').path == pathlib.Path('gpt2')


@pytest.mark.parametrize('name', ['gpt2-xl', 'hf:nobody/nothing', 'hf:no name', 'hf:'])
def test_what_is_not_there_is_named(cache: pathlib.Path, name: str) -> None:
  error = raised.user_error(saved_model.open_model, name)
  assert error.key == name and 'cannot be downloaded' in error.problem


def test_a_missing_package_is_named(cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert 'gpt_jax[hub]' in raised.user_error(saved_model.open_model, 'gpt2').fix
