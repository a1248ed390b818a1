"""A run is one run in each tracker, however often it stops, and a tracker that fails ends none."""

import collections
import json
import pathlib
import sqlite3
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from gpt_jax import errors
from gpt_jax.training import metrics
from tests import raised
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')


def _read_wandb(folder: pathlib.Path) -> tuple[set[str], dict[int, float]]:
  from wandb.proto import wandb_internal_pb2

  names, losses, make = set(), {}, getattr(wandb_internal_pb2, 'Record')  # noqa: B009
  for path in folder.glob('wandb/offline-run-*/*.wandb'):
    for data in _records(path.read_bytes()):
      record = make.FromString(data)
      if record.HasField('run'):
        names.add(record.run.run_id)
      items = {x.key or '/'.join(x.nested_key): x.value_json for x in record.history.item}
      if 'train/loss' in items:
        losses[record.history.step.num] = float(items['train/loss'])
  return names, losses


def _records(data: bytes) -> Iterator[bytes]:
  """The records of a log of LevelDB (its doc/log_format.md), behind 7 bytes of wandb's."""
  place, record = 7, b''
  while place < len(data):
    if (left := 2**15 - place % 2**15) < 7:
      place += left
      continue
    _, length, kind = struct.unpack_from('<IHB', data, place)
    record += data[place + 7 : place + 7 + length]
    place += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield record
      record = b''


def _read_trackio(folder: pathlib.Path) -> tuple[set[str], dict[int, float]]:
  (path,) = folder.glob('gpt_jax.db')
  rows = sqlite3.connect(path).execute('SELECT run_name, step, metrics FROM metrics').fetchall()
  found = [(step, json.loads(text)) for _, step, text in rows]
  losses = {step: values['train/loss'] for step, values in found if 'train/loss' in values}
  return {name for name, _, _ in rows}, losses


def _read_mlflow(folder: pathlib.Path) -> tuple[set[str], dict[int, float]]:
  import mlflow

  client: Any = mlflow.MlflowClient()
  found = client.search_runs([client.get_experiment_by_name('gpt_jax').experiment_id])
  history = client.get_metric_history(found[0].info.run_id, 'train/loss')
  return {run.info.run_id for run in found}, {each.step: each.value for each in history}


@pytest.mark.parametrize('name', ['wandb', 'trackio', 'mlflow'])
def test_a_run_that_stops_and_resumes_is_one_run_with_each_step(
  name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  places = {'WANDB_DIR': '', 'TRACKIO_DIR': '', 'MLFLOW_TRACKING_URI': 'file:'}
  for variable, scheme in places.items():
    monkeypatch.setenv(variable, f'{scheme}{tmp_path}')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  pytest.importorskip(name)  # after these, which some read when they are imported
  config, path = runs.make_config(tmp_path, train__trackers=name), tmp_path / 'run'

  def stop() -> None:
    raise errors.Stopped

  with monkeypatch.context() as patch:
    runs.at_step(patch, 3, stop)
    with pytest.raises(errors.Stopped):
      runs.run(config, path)
  runs.run(config, path)
  readers = {'wandb': _read_wandb, 'trackio': _read_trackio, 'mlflow': _read_mlflow}
  names, losses = readers[name](tmp_path)
  lines = metrics.read(path / 'metrics.jsonl')
  assert losses == {x['step']: pytest.approx(x['train/loss']) for x in lines if 'train/loss' in x}
  assert len(names) == 1 and len(losses) == runs.STEPS


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  calls = collections.Counter[str]()

  def log(values: object, step: int) -> None:
    calls['log'] += 1
    raise ConnectionError('no network')

  fake = types.SimpleNamespace(
    __spec__=object(), init=lambda **_: None, log=log, finish=lambda: calls.update(['finish'])
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  path = runs.run(runs.make_config(tmp_path, train__trackers='wandb'), tmp_path / 'run')
  assert max(runs.val_losses(path)) == runs.STEPS
  assert calls == {'log': 1, 'finish': 1}
  assert capsys.readouterr().err.count('no network') == 1


def test_a_tracker_that_does_not_start_is_a_user_error(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def init(**_: object) -> None:
    raise PermissionError('no API key')

  fake: Any = types.SimpleNamespace(__spec__=object(), init=init)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  config = runs.make_config(tmp_path, train__trackers='wandb')
  error = raised.user_error(runs.run, config, tmp_path / 'run')
  assert error.key == 'train.trackers' and 'no API key' in error.problem


def test_a_missing_package_is_named_before_anything_slow(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  config = runs.make_config(tmp_path, train__trackers='mlflow')
  error = raised.user_error(runs.run, config, tmp_path / 'run')
  assert error.key == 'train.trackers' and 'pip install mlflow' in error.fix
