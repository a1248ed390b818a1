"""A name gives the model that the cache of the Hub has, or that the Hub has and the cache gets."""

import pathlib
import shutil
import sys
from collections.abc import Iterator

import pytest
from huggingface_hub import constants, utils

from gpt_jax.weights import hub, saved_model
from tests import raised, screen
from tests.weights import hub_server

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


@pytest.fixture
def served(tmp_path: pathlib.Path) -> Iterator[hub_server.Hub]:
  """A Hub with two revisions of GPT-2, which have a pickle too, and what else lies there."""
  files = {path.name: path.read_bytes() for path in _TIED.iterdir()}
  files |= {'pytorch_model.bin': b'pickle', 'README.md': b'# GPT-2', 'onnx/model.safetensors': b''}
  with hub_server.serving(tmp_path / 'served') as served:
    served.repositories['openai-community/gpt2'] = {_OLD: files, _NEW: files}
    served.names['main'] = _NEW
    yield served


def test_a_name_is_resolved_to_a_commit_and_downloaded_once_without_the_pickle(
  served: hub_server.Hub,
) -> None:
  found = saved_model.open_model('gpt2')
  assert found.path.name == _NEW and found.config == saved_model.open_model(_TIED).config
  wanted = {path.name for path in _TIED.iterdir()} - {'expected.npz'}
  assert {path.name for path in found.path.iterdir()} == wanted
  contents = [path for _, path in served.requests if '/resolve/' in path]
  assert {path.rpartition('/')[2] for path in contents} == wanted and 'config.json' in wanted
  assert all(f'/resolve/{_NEW}/' in path for path in contents)
  served.requests.clear()
  assert saved_model.open_model('gpt2').path == found.path
  assert [path.rpartition('/')[2] for _, path in served.requests] == ['main']
  served.names['main'] = _OLD  # another commit
  assert saved_model.open_model('gpt2').path.name == _OLD


def test_bars_of_downloads_are_not_left_on_a_terminal(
  served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
  utils.enable_progress_bars()
  for name in ('downloaded', 'cached'):
    terminal = screen.Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    saved_model.open_model('gpt2')
    assert 'Fetching' in terminal.getvalue(), name
    assert not any(screen.lines(terminal.getvalue())), name


def test_a_pinned_revision_is_asked_for_by_its_hash_and_then_needs_no_network(
  served: hub_server.Hub,
) -> None:
  pinned = f'hf:openai-community/gpt2@{_OLD}'
  assert saved_model.open_model(pinned).path.name == _OLD
  models = [path for _, path in served.requests if 'openai-community' in path]
  assert models and all(_OLD in path for path in models)
  served.requests.clear()
  assert saved_model.open_model(pinned).path.name == _OLD
  assert served.requests == []


@pytest.mark.parametrize(
  ('name', 'status', 'reason'),
  [
    ('hf:nobody/nothing', 0, 'there is none, or it is private'),
    ('hf:openai-community/gpt2@v9', 0, 'no such revision'),
    ('gpt2', 401, '401'),
    ('gpt2', 403, '403'),
    ('gpt2', 404, '404'),
    ('gpt2', 503, '503'),
  ],
)
def test_what_the_hub_refuses_is_named_with_a_fix(
  served: hub_server.Hub, name: str, status: int, reason: str
) -> None:
  served.status = status
  error = raised.user_error(saved_model.open_model, name)
  assert error.key == name and reason in error.problem and 'hf auth login' in error.fix


def test_without_a_network_the_cache_is_enough(
  served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  error = raised.user_error(saved_model.open_model, 'gpt2')
  assert 'cannot be downloaded' in error.problem and 'network' in error.fix
  monkeypatch.undo()
  saved_model.open_model('gpt2')
  monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
  assert saved_model.open_model('gpt2').path.name == _NEW


def test_a_download_that_is_cut_is_a_user_error_and_goes_on_later(
  served: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr('time.sleep', lambda _: None)  # between its attempts
  served.cut = True
  assert 'cannot be downloaded' in raised.user_error(saved_model.open_model, 'gpt2').problem
  served.cut = False
  assert saved_model.open_model('gpt2').path.name == _NEW
