"""Where metrics go besides metrics.jsonl: TensorBoard's files, and trackers of experiments.

Imports wandb, trackio and mlflow, each only if a config names it.
"""

import contextlib
import importlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from gpt_jax import atomic, errors, json_files, knobs
from gpt_jax import config as config_lib
from gpt_jax.training import event_file
from gpt_jax.weights import run_dir

_PROJECT = 'gpt_jax'


class Writer(Protocol):
  """What takes metrics by their names; a run that resumes writes some of them again."""

  def write(self, step: int, values: Mapping[str, float]) -> None: ...


class _Tracker:
  """One run in a tracker; if that fails, as without a network, it is left out."""

  def __init__(self, name: str, log: Callable[..., Any], close: Callable[[], Any]) -> None:
    self._name, self._log, self.close = name, log, close

  def write(self, step: int, values: Mapping[str, float]) -> None:
    try:
      self._log(dict(values), step=step)
    except Exception as e:  # of any kind: no reason to end a run
      print(f'warning: {self._name} gets no more metrics ({e!r:.300})', file=sys.stderr)
      self._log = lambda *_, **__: None


def check(config: config_lib.Config) -> None:
  """Raises `UserError` if a package of a tracker is missing."""
  for name in config.train.trackers.split():
    if importlib.util.find_spec(name) is None:
      raise errors.UserError('train.trackers', f'needs the package {name}', f'pip install {name}')


@contextlib.contextmanager
def opened(
  config: config_lib.Config, run: run_dir.RunDir, resume_step: int | None
) -> Iterator[list[Writer]]:
  """Opens what a config names, for a run that has one identity in all of them, kept in its folder.

  WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME, by default gpt_jax, say where.
  """
  writers = list[Writer]()
  if config.train.tensorboard:
    first = 0 if resume_step is None else resume_step + 1
    writers.append(event_file.EventFile(run.tensorboard, purge_step=first))
  names = config.train.trackers.split()
  if names and not run.trackers.exists():
    atomic.write_json(run.trackers, {'id': secrets.token_hex(4)})
  with contextlib.ExitStack() as stack:
    for name in names:
      values = {knob.key: knob.value for knob in knobs.knobs(config)}
      start = _mlflow if name == 'mlflow' else _wandb
      identity = json_files.read(run.trackers)['id']
      try:
        tracker = start(name, run.path.name, identity, values)
      except Exception as e:  # each has its own
        problem = f'{name} cannot be started ({e!r:.300})'
        raise errors.UserError('train.trackers', problem, 'see its documentation') from e
      stack.callback(tracker.close)
      writers.append(tracker)
    yield writers


def _wandb(name: str, title: str, identity: str, values: dict[str, Any]) -> _Tracker:
  """Weights & Biases, or trackio, which has the same functions, but knows a run by its name."""
  module: Any = importlib.import_module(name)
  options = {'name': title, 'id': identity}
  if name == 'trackio':
    options = {'name': f'{title}-{identity}'}
  project = os.environ.get('WANDB_PROJECT', _PROJECT)
  module.init(project=project, resume='allow', config=values, **options)
  return _Tracker(name, module.log, module.finish)


def _mlflow(name: str, title: str, identity: str, values: dict[str, Any]) -> _Tracker:
  """MLflow, at MLFLOW_TRACKING_URI."""
  module: Any = importlib.import_module(name)
  client, project = module.MlflowClient(), os.environ.get('MLFLOW_EXPERIMENT_NAME', _PROJECT)
  found = client.get_experiment_by_name(project)
  experiment = found.experiment_id if found else client.create_experiment(project)
  if runs := client.search_runs([experiment], f"tags.gpt_jax = '{identity}'"):
    run_id = runs[0].info.run_id
  else:
    run_id = client.create_run(experiment, run_name=title, tags={'gpt_jax': identity}).info.run_id
    for key, value in values.items():
      client.log_param(run_id, key, value)

  def log(values: dict[str, float], step: int) -> None:
    for key, value in values.items():
      client.log_metric(run_id, key, value, step=step)

  return _Tracker(name, log, lambda: client.set_terminated(run_id))
